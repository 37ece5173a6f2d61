"""Curation finds copies: planted ones among others, of pictures and of texts; none of them lies across a split."""

from __future__ import annotations

import time

import numpy as np
import pytest
from curation_cases import Drawn, curated, ingested, jsonl, paths, put, saved
from PIL import Image

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.data.media.limits import DEFAULT_LIMITS
from omniloom.stages.data.media.sketches import text_runs
from omniloom.stages.ingest.rows import media_row
from omniloom.stages.ingest.splitting import lookup


@pytest.fixture
def memory():
    root = f"memory://curate-twins-{time.monotonic_ns()}"
    yield root
    storage.remove(root)


def planted_pictures(root: str, originals: int, copies: int, seed: int = 1) -> str:
    """Captioned pictures, and copies of the first of them under reworded captions."""
    drawn = Drawn(seed)
    files, rows = {}, []
    for number in range(originals):
        pixels = drawn.photo()
        caption = f"the {drawn.words(8)} of {drawn.words(3)}"
        files[f"a{number:05d}.png"] = pixels
        rows.append({"file": f"a{number:05d}.png", "caption": caption})
        if number < copies:
            suffix, data = drawn.copy(pixels, number)
            files[f"b{number:05d}.{suffix}"] = data
            rows.append({"file": f"b{number:05d}.{suffix}", "caption": drawn.reworded(caption, 0.3)})

    content = {name: data if isinstance(data, bytes) else saved(data) for name, data in files.items()}
    source = {"kind": "image_folder", "uri": put(f"{root}/in", {**content, "m.jsonl": jsonl(rows)})}
    return ingested(root, {**source, "captions": {"manifest": "m.jsonl"}})


def found_and_false(found, originals: int, copies: int) -> tuple[int, int, int]:
    """(pairs of which one is left, others that went, pairs that are left on two sides of a split)"""
    left = {row["path"].partition(".")[0]: row["split"] for row in found.rows}
    pairs = [(f"a{number:05d}", f"b{number:05d}") for number in range(copies)]
    hit = sum((a in left) != (b in left) for a, b in pairs)
    false = originals + copies - len(left) - hit
    return hit, false, sum(a in left and b in left and left[a] != left[b] for a, b in pairs)


def test_copies_of_pictures_go_and_others_stay(memory):
    found = curated(memory, planted_pictures(memory, 200, 80), {"kind": "near_pictures"})
    assert found_and_false(found, 200, 80) == (80, 0, 0)
    assert found.metrics["left_out_near_pictures"] == found.metrics["left_out"] == 80
    line = found.left[0]
    assert line["reason"].startswith("shows the same as image_folder_0: ") and line["step"] == "0.near_pictures"


def planted_texts(root: str, originals: int, copies: int, share: float, sentences: int = 12) -> str:
    drawn = Drawn(2)
    rows = []
    for number in range(originals):
        text = drawn.prose(sentences)
        rows.append({"t": text})
        if number < copies:
            rows.append({"t": drawn.reworded(text, share)})
    source = {"kind": "jsonl", "uri": put(f"{root}/in", {"t.jsonl": jsonl(rows)}), "text_field": "t"}
    return ingested(root, source)


def copies_left(rows, originals: int, copies: int) -> tuple[int, int, int]:
    """As `found_and_false`: lines 2 n and 2 n + 1 of the first are a pair."""
    left = {row["part"] - 1: row["split"] for row in rows}
    pairs = [(2 * number, 2 * number + 1) for number in range(copies)]
    hit = sum((a in left) != (b in left) for a, b in pairs)
    across = sum(a in left and b in left and left[a] != left[b] for a, b in pairs)
    return hit, originals + copies - len(left) - hit, across


def test_copies_of_texts_go_and_others_stay(memory):
    found = curated(memory, planted_texts(memory, 120, 60, 0.05), {"kind": "near_texts"})
    assert copies_left(found.rows, 120, 60) == (60, 0, 0)


def test_how_alike_texts_are_is_exact(memory):
    """A twentieth of the words are others: three quarters of the runs are left, which no sketch tells for sure."""
    corpus = planted_texts(memory, 60, 60, 0.05)
    assert len(curated(f"{memory}/1", corpus, {"kind": "near_texts", "similarity": 0.9}).rows) == 120
    found = curated(f"{memory}/2", corpus, {"kind": "near_texts", "similarity": 0.75})
    runs = [set(text_runs(row["text"]).tolist()) for row in records.iterate(corpus)]
    shared = [len(a & b) / len(a | b) for a, b in zip(runs[::2], runs[1::2], strict=True)]
    assert 0 < len(found.left) <= sum(share >= 0.75 for share in shared)


@pytest.mark.slow
def test_a_thousand_planted_copies_of_pictures(memory):
    """At least 95% found, at most 0.1% false, never across a split."""
    found = curated(memory, planted_pictures(memory, 3000, 1000, seed=7), {"kind": "near_pictures"})
    hit, false, across = found_and_false(found, 3000, 1000)
    assert hit >= 950 and false <= 3 and across == 0, (hit, false, across)


@pytest.mark.slow
def test_a_thousand_planted_copies_of_texts(memory):
    found = curated(memory, planted_texts(memory, 3000, 1000, 0.05), {"kind": "near_texts"})
    hit, false, across = copies_left(found.rows, 3000, 1000)
    assert hit >= 950 and false <= 3 and across == 0, (hit, false, across)


def test_of_copies_the_one_stays_that_is_held_out_and_then_the_largest(memory):
    drawn = Drawn(3)
    pixels = drawn.photo(120, 160)
    rows = []
    for number, (split, scale) in enumerate([("train", 1.0), ("test", 0.5), ("test", 0.7), ("validation", 0.9)]):
        picture = Image.fromarray(pixels).resize((round(160 * scale), round(120 * scale)))
        row = media_row("image", saved(picture), DEFAULT_LIMITS)
        fields = {"split": split, "source": "s", "path": f"{number}.png", "part": 0, "meta": "{}"}
        rows.append({**row, **fields, "captions": [f"number {number}"]})
    records.write_shard(f"{memory}/c/{records.shard_name(0)}", rows)
    found = curated(memory, f"{memory}/c", {"kind": "near_pictures"})
    assert paths(found.rows) == ["2.png"]
    assert {line["reason"] for line in found.left} == {"shows the same as s: 2.png"}


def test_many_copies_of_one_picture_leave_one(memory, monkeypatch):
    """More than a row is paired with at once."""
    monkeypatch.setattr(lookup, "_NEIGHBOURS", 1)
    drawn = Drawn(4)
    pixels = drawn.photo()
    noise = [np.clip(pixels.astype(int) + drawn.rng.integers(-6, 7, pixels.shape), 0, 255) for _ in range(60)]

    files = {f"{number:02d}.png": saved(copy.astype(np.uint8)) for number, copy in enumerate(noise)}
    corpus = ingested(memory, {"kind": "image_folder", "uri": put(f"{memory}/in", files)})
    assert len(curated(memory, corpus, {"kind": "near_pictures"}).rows) == 1


def test_a_caption_that_is_said_of_many_stays_with_few(memory):
    drawn = Drawn(5)

    said = "Image may contain one or more persons standing outdoors"
    rows = []
    for number in range(30):
        captions = [said.upper() if number % 2 else said + "."] if number < 20 else []
        rows.append({"file": f"{number:02d}.png", "caption": [*captions, f"a {drawn.words(6)}"]})
    files = {row["file"]: saved(drawn.photo(32, 40)) for row in rows}
    source = {"kind": "image_folder", "uri": put(f"{memory}/in", {**files, "m.jsonl": jsonl(rows)})}
    corpus = ingested(memory, {**source, "captions": {"manifest": "m.jsonl"}}, shard_items=7)
    found = curated(memory, corpus, {"kind": "near_captions", "max_records": 3})
    assert len(found.rows) == 30 and found.metrics["left_out"] == 0
    captions = [caption for row in found.rows for caption in row["captions"]]
    assert len(captions) == 33 and sum("persons" in caption.lower() for caption in captions) == 3
    assert all(row["caption"] == row["captions"][0] for row in found.rows)
    assert [line["what"] for line in found.left] == ["caption"] * 17


def test_texts_that_differ_in_case_and_punctuation_hold_the_same(memory):
    drawn = Drawn(6)
    texts = [drawn.words(8) for _ in range(5)]
    rows = [{"t": text} for text in [*texts, *(text.upper() + "!" for text in texts)]]
    source = {"kind": "jsonl", "uri": put(f"{memory}/in", {"t.jsonl": jsonl(rows)}), "text_field": "t"}
    corpus = ingested(memory, source)
    assert len(curated(f"{memory}/1", corpus, {"kind": "exact_duplicates"}).rows) == 10
    found = curated(f"{memory}/2", corpus, {"kind": "exact_duplicates", "letters": True})
    assert len(found.rows) == 5 and found.metrics["left_out_exact_duplicates"] == 5
