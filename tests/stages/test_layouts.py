"""Whatever way a corpus is laid out, its records are the same: ids and captions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS, Corpus
from PIL import Image
from sources_read import picture

from omniloom.stages.data.media.decode import encode_mp4
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.readers import Reader

REAL = os.environ.get("OMNILOOM_TEST_CORPUS", "")


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Corpus:
    """Pictures with one, several and repeated captions, clips, books, lines and documents."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(1)
    for part in ("images/a", "videos", "text", "interleaved/images"):
        (folder / part).mkdir(parents=True)
    for n in range(9):
        (folder / f"images/a/{n}.png").write_bytes(picture(n))
    rows = [{"file": f"a/{n}.png", "caption": f"number {n}, “quoted”"} for n in range(7)]
    rows += [{"file": "a/7.png", "caption": ["seven", "sieben"]}, {"file": "a/2.png", "caption": "two again"}]
    rows += [{"file": "a/8.png", "caption": "eight"}, {"file": "a/8.png", "caption": "huit"}]
    (folder / "images/manifest.jsonl").write_text(lines(rows))
    frames = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(3)]
    frames[0].save(folder / "videos/moving.gif", save_all=True, append_images=frames[1:])
    for n in range(3):
        clip = np.kron(rng.integers(0, 256, (4, 3, 3, 3), np.uint8), np.ones((1, 16, 16, 1), np.uint8))
        (folder / f"videos/{n}.mp4").write_bytes(encode_mp4(clip, 8))
    rows = [{"file": f"{n}.mp4", "caption": [f"clip {n}", f"Film {n}"][: n + 1]} for n in range(3)]
    rows.append({"file": "moving.gif", "caption": "noise"})
    (folder / "videos/manifest.jsonl").write_text(lines(rows))
    book = "\n\n".join(f"Paragraph {n}. " + 'Some wörds\tand a "quote". ' * (n % 9) for n in range(60))
    (folder / "text/book.txt").write_bytes(book.replace("\n", "\r\n").encode())
    (folder / "text/manifest.jsonl").write_text(lines([{"file": "book.txt"}]))
    rows = [{"question": f"{n}+1?", "answer": f"{n + 1}\n"} for n in range(20)]
    (folder / "text/lines.jsonl").write_text(lines(rows))
    for n in range(4):
        (folder / f"interleaved/images/{n}.png").write_bytes(picture(20 + n))
    image = [{"type": "image", "file": f"images/{n}.png", "alt": f"picture {n}"} for n in range(4)]
    text = [{"type": "text", "text": f"Text {n}.\n\n- a list"} for n in range(4)]
    documents = [[image[0], text[0]], [text[1], image[1], image[2], text[2]], [text[3], image[3]]]
    rows = [{"file": f"{n}.md", "segments": segments} for n, segments in enumerate(documents)]
    (folder / "interleaved/manifest.jsonl").write_text(lines(rows))
    return Corpus(folder)


def records(given: list[dict], pieces: bool = False) -> tuple[list[tuple], list[dict]]:
    """(kind, id, captions) of every record, sorted; and the rejects."""
    fields = {"shard_bytes": 3000, "shard_items": 5} if pieces else {}
    config = Config.model_validate({"sources": given, **fields})
    sources.listing(config)
    readers = [Reader(config, index) for index in range(len(given))]
    items = sources.pieces(config) if pieces else sources.items(config)
    rows = [row for item in items for row in readers[item["source"]].read(item)]
    told = [(row["kind"], row["id"], tuple(row.get("captions") or ())) for row in rows if "code" not in row]
    return sorted(told), [row for row in rows if "code" in row]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_records_are_the_same_in_every_layout(small, tmp_path, layout):
    expected, _ = records(LAYOUTS["folders"](small, tmp_path))
    assert [sum(row[0] == kind for row in expected) for kind in ("image", "video", "document")] == [9, 4, 3]
    assert sorted(len(row[2]) for row in expected if row[0] == "image") == [1] * 6 + [2] * 3
    given = LAYOUTS[layout](small, tmp_path)
    for pieces in (False, True):
        found, rejects = records(given, pieces)
        assert found == expected and not rejects


@pytest.mark.slow
@pytest.mark.skipif(not Path(REAL, "images/manifest.jsonl").is_file(), reason="OMNILOOM_TEST_CORPUS names no corpus")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_corpus_is_the_same_in_every_layout(tmp_path, layout):
    corpus = Corpus(Path(REAL))
    expected = _expected(REAL)
    found, rejects = records(LAYOUTS[layout](corpus, tmp_path))
    print(f"{layout}: {len(found)} records, {len(rejects)} rejects, {sum(len(row[2]) for row in found)} captions")
    assert found == expected and len(rejects) == 0


_KNOWN: dict[str, list[tuple]] = {}


def _expected(folder: str) -> list[tuple]:
    if folder not in _KNOWN:
        _KNOWN[folder] = records(LAYOUTS["folders"](Corpus(Path(folder)), Path(folder)))[0]
    return _KNOWN[folder]
