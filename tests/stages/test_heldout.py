"""Held out means unseen: copies of one picture, clip or text, and all of one group, lie in one split."""

from __future__ import annotations

import hashlib
import io
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest
from blake3 import blake3
from curation_cases import jsonl as lines
from curation_cases import put, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits

from omniloom.infra import storage
from omniloom.stages.data import changes, records
from omniloom.stages.data.media.decode import decode_video, encode_mp4, probe_image, probe_video
from omniloom.stages.data.media.identity import LOOK_BYTES, picture_look
from omniloom.stages.data.media.sketches import SKETCH, text_sketch
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.ingest.splitting import bonds, registration, splits, text_twins, twins

EVEN = {"train": 0.4, "validation": 0.3, "test": 0.3}
RNG = np.random.default_rng(5)


@pytest.fixture
def memory():
    root = f"memory://heldout-{time.monotonic_ns()}"
    yield root
    storage.remove(root)


def photo(height: int = 96, width: int = 128) -> np.ndarray:
    """A scene: a few smooth areas with edges between them, and texture."""
    coarse = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), 3)
    return np.clip(np.asarray(coarse, float) + RNG.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def ingested(root: str, *sources: dict, **fields) -> SimpleNamespace:
    config = ingest.Config.model_validate({"sources": sources, "splits": EVEN, **fields})
    context = SimpleNamespace(
        config=config, output=f"{root}/output", state=f"{root}/state", predecessor=None, progress=lambda *a, **k: None
    )
    metrics = ingest.run(context)
    return SimpleNamespace(metrics=metrics, rows=list(records.iterate(context.output)), context=context)


def split_of(rows, key) -> dict:
    """{key(row): the only split of its rows}"""
    found: dict = {}
    for row in rows:
        found.setdefault(key(row), set()).add(row["split"])
    assert all(len(seen) == 1 for seen in found.values()), found
    return {name: seen.pop() for name, seen in found.items()}


# ---- one content, one identity ----


def test_a_picture_is_its_pixels_in_whichever_lossless_file(memory):
    pixels = photo()
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Author", "somebody")
    grey = np.repeat(pixels[..., :1], 3, -1)
    copies = {
        "a.png": saved(pixels, compress_level=0),
        "b.png": saved(pixels, compress_level=9, pnginfo=noted),
        "c.bmp": saved(pixels, "BMP"),
        "d.webp": saved(pixels, "WEBP", lossless=True),
        "e.tif": saved(pixels, "TIFF", compression="tiff_lzw"),
    }
    jpeg = saved(pixels, "JPEG")
    others = {
        "f.jpg": jpeg,
        "g.jpg": jpeg[:2] + b"\xff\xfe\x00\x06note" + jpeg[2:],  # a comment
        "h.png": saved(grey),
        "i.png": Image.fromarray(grey[..., 0]) and _grey(grey[..., 0]),
        "j.png": saved(pixels.reshape(pixels.shape[1], pixels.shape[0], 3)),
    }
    assert {probe_image(data).identity for data in copies.values()} == {
        blake3(b"picture 96x128 " + pixels.tobytes()).hexdigest()
    }
    found = ingested(memory, {"kind": "image_folder", "uri": put(f"{memory}/in", {**copies, **others})})
    assert [row["path"] for row in found.rows] == ["a.png", "f.jpg", "h.png", "j.png"]
    assert (found.metrics["records"], found.metrics["duplicates"]) == (4, 6)


def _grey(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def remuxed(data: bytes, format_: str) -> bytes:
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format=format_) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return sink.getvalue()


def lossless(data: bytes) -> bytes:
    """The same frames by another codec."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(sink, "w", format="matroska") as target:
        stream = target.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 50, 68, "yuv420p"
        for frame in source.decode(video=0):
            frame.pict_type = 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return sink.getvalue()


def test_a_clip_is_its_frames_in_whichever_container_and_codec():
    frames = np.stack([photo(50, 68) for _ in range(6)])  # rows that decoders pad
    data = encode_mp4(frames, 8)
    known = probe_video(data).identity
    assert {
        probe_video(copy).identity
        for copy in (
            encode_mp4(frames, 8, {"note": 1}),
            remuxed(data, "matroska"),
            remuxed(data, "mov"),
            lossless(data),
        )
    } == {known}
    touched = frames.copy()
    touched[3, 20:30, 20:30] ^= 255
    assert known != probe_video(encode_mp4(touched, 8)).identity != probe_video(encode_mp4(frames[:5], 8)).identity


@pytest.mark.parametrize("way", [lambda data: data, lossless, lambda data: remuxed(data, "matroska")])
def test_a_clips_look_shows_four_of_its_frames(way):
    """Against what Pillow makes of the frames; only some of them are kept small, so a look may show the next one."""
    moving = np.stack([np.roll(photo(96, 128), 3 * n, 1) for n in range(70)])
    data = way(encode_mp4(moving, 24))
    frames = decode_video(data)
    looks = np.frombuffer(probe_video(data).look, np.uint8).reshape(4, 32, 32, 3).astype(int)
    made = np.stack([np.asarray(Image.fromarray(f).resize((32, 32), Image.Resampling.BOX)) for f in frames]).astype(int)
    for look, place in zip(looks, (0, 23, 46, 69), strict=True):
        near = range(max(0, place - 3), min(70, place + 4))
        assert min(np.abs(look - made[n]).mean() for n in near) < 6 < np.abs(look - made[(place + 35) % 70]).mean()


def test_a_picture_of_a_document_is_the_same_content_as_in_a_folder(memory):
    pictures = [photo(40, 40) for _ in range(30)]
    folder = put(f"{memory}/in", {f"{i:02d}.bmp": saved(p, "BMP") for i, p in enumerate(pictures)})
    docs = put(
        f"{memory}/docs",
        {
            **{f"{i:02d}.md": f"number {i} ![]({i}.png)" for i in range(30)},
            **{f"{i}.png": saved(p) for i, p in enumerate(pictures)},
        },
    )
    found = ingested(memory, {"kind": "image_folder", "uri": folder}, {"kind": "interleaved", "uri": docs})
    by_picture = split_of(found.rows, lambda row: row["path"][:2])
    assert set(by_picture.values()) == set(records.SPLITS)


def test_a_decoration_binds_no_documents(memory):
    logo = saved(photo(20, 20))
    docs = put(f"{memory}/docs", {"logo.png": logo, **{f"{i:02d}.md": f"number {i} ![](logo.png)" for i in range(40)}})
    found = ingested(memory, {"kind": "interleaved", "uri": docs})
    assert {row["split"] for row in found.rows} == set(records.SPLITS)


# ---- near twins ----


def copies(pixels: np.ndarray) -> dict[str, bytes]:
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    return {
        "jpg": saved(pixels, "JPEG", quality=60),
        "webp": saved(pixels, "WEBP", quality=50),
        "gif": saved(pixels, "GIF"),
        "png": saved(np.asarray(image.resize((width // 2, height // 2)))),
        "bmp": saved(np.asarray(image.resize((2 * width, 2 * height))), "BMP"),
        "jp2": saved(pixels[2:-1, 1:-3], "JPEG2000"),
    }


def test_copies_of_a_picture_lie_in_one_split_and_others_where_they_belong(memory):
    files = {f"{i:02d}.{suffix}": data for i in range(40) for suffix, data in copies(photo()).items()}
    found = ingested(
        memory,
        {"kind": "image_folder", "uri": put(f"{memory}/in", files)},
        shard_items=50,
        splits={"train": 0.9, "validation": 0.05, "test": 0.05},
    )
    assert set(split_of(found.rows, lambda row: row["path"][:2]).values()) == set(records.SPLITS)
    assert (found.metrics["split_clusters"], found.metrics["largest_cluster"]) == (40, 6)
    assert found.metrics["near_twins"] == found.metrics["records"] == 240
    alone = {f"{i}.png": saved(photo()) for i in range(60)}
    found = ingested(f"{memory}/b", {"kind": "image_folder", "uri": put(f"{memory}/one", alone)})
    assert found.metrics["near_twins"] == 0


def test_twins_are_found_among_many():
    """Two hundred pairs among 3,000 pictures, against every pair compared."""
    pictures = [photo(32, 32) for _ in range(2800)]
    looks = np.stack(
        [
            np.frombuffer(picture_look(p), np.uint8)
            for p in [
                *pictures,
                *(np.asarray(Image.open(io.BytesIO(saved(p, "JPEG", quality=70)))) for p in pictures[:200]),
            ]
        ]
    )
    found = set(map(tuple, twins.near_pictures(looks).tolist()))
    assert {(i, 2800 + i) for i in range(200)} <= found and len(found) < 220


def look(pixels: np.ndarray) -> np.ndarray:
    return np.frombuffer(picture_look(np.ascontiguousarray(pixels)), np.uint8)


def test_pictures_that_were_cut_are_found_wherever_they_were_cut():
    """By a twentieth of each axis at any end, or at every edge, and stored again."""
    pictures = [photo(200, 240) for _ in range(100)]
    cuts = [
        np.s_[10:, 12:],
        np.s_[:-10, :-12],
        np.s_[10:, :-12],
        np.s_[5:-5, 6:-6],
        np.s_[10:-10, 12:-12],
        np.s_[3:-7, 9:-3],
    ]
    cut = [picture[cuts[number % len(cuts)]] for number, picture in enumerate(pictures)]
    again = [np.asarray(Image.open(io.BytesIO(saved(picture, "JPEG", quality=70)))) for picture in cut]
    found = twins.near_pictures(np.stack([look(picture) for picture in [*pictures, *again]]))
    planted = {(number, 100 + number) for number in range(100)}
    assert len(planted & set(map(tuple, found.tolist()))) >= 99 and len(found) <= 100


def test_what_differs_at_one_place_is_another_picture():
    """An eye that is shut: little over the whole, much where it is."""
    pictures = [photo(128, 128) for _ in range(20)]
    others = [picture.copy() for picture in pictures]
    for other in others:
        other[40:60, 40:60] = 255 - other[40:60, 40:60]
    found = twins.near_pictures(np.stack([look(picture) for picture in [*pictures, *others]]))
    assert len(found) <= 1


def test_pictures_without_contrast_are_no_twins():
    flat = np.stack([np.full(LOOK_BYTES, level, np.uint8) for level in range(100, 110)])
    assert not len(twins.near_pictures(flat)) and not len(twins.near_pictures(flat[:0]))
    assert not len(text_twins.near_texts(np.empty((0, SKETCH), np.uint32)))


def test_copies_of_a_clip_lie_in_one_split(memory):
    files = {}
    for i in range(12):
        frames = np.stack([photo(64, 64) for _ in range(3)]).repeat(4, 0)
        files[f"{i:02d}a.mp4"] = encode_mp4(frames, 8)
        files[f"{i:02d}b.mp4"] = encode_mp4(frames, 8, crf=32)
        smaller = [np.asarray(Image.fromarray(frame).resize((48, 48))) for frame in frames]
        files[f"{i:02d}c.mp4"] = encode_mp4(np.stack(smaller), 8)
    found = ingested(memory, {"kind": "video_folder", "uri": put(f"{memory}/in", files)})
    assert len(set(split_of(found.rows, lambda row: row["path"][:2]).values())) > 1
    assert (found.metrics["split_clusters"], found.metrics["largest_cluster"]) == (12, 3)


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "lo", "sk")]


def words(count: int) -> str:
    return " ".join(RNG.choice(WORDS, count))


def test_copies_of_a_text_lie_in_one_split(memory):
    texts = [words(150) for _ in range(40)]
    rows = [{"n": i, "t": text} for i, text in enumerate(texts)]
    rows += [{"n": i, "t": text.upper().replace(" ", ",\n")} for i, text in enumerate(texts)]
    rows += [{"n": i, "t": f"{text} {words(3)}"} for i, text in enumerate(texts)]
    found = ingested(memory, {"kind": "jsonl", "uri": put(f"{memory}/in", {"a.jsonl": lines(rows)}), "text_field": "t"})
    by_text = split_of(found.rows, lambda row: (row["part"] - 1) % 40)
    assert set(by_text.values()) == set(records.SPLITS) and found.metrics["near_twins"] == 120


def test_the_sketch_estimates_what_two_texts_share():
    """Against the exact share of runs of nine letters."""
    for kept in (0.95, 0.8, 0.5, 0.2):
        a = words(2000).split()
        b = [word if RNG.random() < kept else RNG.choice(WORDS) for word in a]
        runs = [{"".join(x)[i : i + 9] for i in range(len("".join(x)) - 8)} for x in (a, b)]
        exact = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        one, two = (np.frombuffer(text_sketch(" ".join(x)), np.uint32) for x in (a, b))
        assert (one == two).mean() == pytest.approx(exact, abs=0.2)  # three deviations of 64 values
    assert text_sketch("short") is None


# ---- groups ----


def test_all_of_a_text_file_lies_in_one_split_and_a_shared_licence_binds_no_files(memory):
    licence = words(300)
    files = {f"{i:02d}.txt": "\n\n".join([*(words(100) for _ in range(12)), f"{licence} {i}"]) for i in range(30)}
    files |= {f"{i:02d}-again.md": files[f"{i:02d}.txt"].upper().replace(" ", "  ") for i in range(30)}
    found = ingested(memory, {"kind": "text", "uri": put(f"{memory}/in", files)}, chunk_chars=400)
    by_file = split_of(found.rows, lambda row: row["path"][:2])  # a file and its copy
    assert set(by_file.values()) == set(records.SPLITS) and found.metrics["split_clusters"] == 30
    assert len({row["part"] for row in found.rows}) > 10


@pytest.mark.parametrize("kind", ["manifest", "jsonl", "both"])
def test_rows_with_one_group_lie_in_one_split(memory, kind):
    pictures = {f"{i}.png": saved(photo(16, 16)) for i in range(60)}
    rows = [{"file": f"{i}.png", "caption": f"c{i}", "who": f"person {i % 12}"} for i in range(60)]
    manifest = {"kind": "image_folder", "captions": {"manifest": "m.jsonl", "group_field": "who"}}
    jsonl = {"kind": "jsonl", "image_field": "file", "group_field": "who", "include": "m.jsonl"}
    half = {"m.jsonl": lines(rows[:30]), **dict(list(pictures.items())[:30])}
    rest = {"m.jsonl": lines(rows[30:]), **dict(list(pictures.items())[30:])}
    first, second = (jsonl, jsonl) if kind == "jsonl" else (manifest, manifest if kind == "manifest" else jsonl)
    found = ingested(memory, {**first, "uri": put(f"{memory}/a", half)}, {**second, "uri": put(f"{memory}/b", rest)})
    by_group = split_of(found.rows, lambda row: int(row["caption"][1:]) % 12)
    assert len(found.rows) == 60 and set(by_group.values()) == set(records.SPLITS)
    own = {number: records.split_of(splits.group_key("named", f"person {number}"), EVEN) for number in range(12)}
    assert by_group == own


def test_four_books_give_something_to_every_split(memory):
    sizes = {"shakespeare.txt": 110, "dictionary.txt": 40, "alice.txt": 17, "nous.txt": 15}
    for attempt in range(6):  # other names, other keys
        files = {f"{attempt}-{name}": "\n\n".join(words(60) for _ in range(n)) for name, n in sizes.items()}
        found = ingested(
            f"{memory}/{attempt}",
            {"kind": "text", "uri": put(f"{memory}/in{attempt}", files)},
            chunk_chars=300,
            splits={"train": 0.88, "validation": 0.04, "test": 0.08},
        )
        by_file = split_of(found.rows, lambda row: row["path"])
        assert sorted(by_file.values()) == ["test", "train", "train", "validation"]
        assert by_file[f"{attempt}-shakespeare.txt"] == "train"
        assert found.metrics["records_test"] < 0.25 * found.metrics["records"]
        assert found.metrics["held_out_for_want"] > 0


def keys_of(content: str, group: str | None) -> dict:
    key = hashlib.sha256(content.encode()).hexdigest()
    return {"id": key, "group": group and splits.group_key("named", group)}


def uint64s(texts: list[str]) -> np.ndarray:
    return np.array([[int(text[:16], 16), int(text[16:32], 16)] for text in texts], np.uint64).reshape(-1, 2)


def assigned(rows: list[tuple[str, str | None, str]]) -> dict[str, str]:
    """{content: split} of (content, group, kind) of each record."""
    rows = list(dict.fromkeys(rows))
    found = [keys_of(content, group) for content, group, _ in rows]
    kinds, number = np.array([records.KINDS.index(kind) for *_, kind in rows], np.uint8), np.zeros(len(rows), np.uint32)
    columns = bonds.Rows(
        id=uint64s([row["id"] for row in found]),
        key=uint64s([row["group"] or row["id"] for row in found]),
        kind=kinds,
        stratum=kinds,
        sketched=np.zeros(len(rows), bool),
        shard=number,
        row=number,
        strata=[("s", kind) for kind in records.KINDS],
        shards=["shard-000000-0000.parquet"],
        pictures=np.empty((0, 2), np.uint64),
        owner=np.empty(0, np.int64),
    )
    codes, own, _ = splits.assign(columns, lambda *where: np.empty((0, 0), np.uint8), EVEN)
    assert [records.SPLITS[code] for code in own] == [splits.own_split(row, EVEN) for row in found]
    return {content: records.SPLITS[code] for (content, *_), code in zip(rows, codes, strict=True)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
def test_growing_the_corpus_takes_nothing_out_of_test(before, after, seed):
    """Of records on their own and groups of two; no source is too poor for its splits."""

    def record(n: int) -> tuple[str, str | None, str]:
        return f"{seed}-{n}", f"g{n // 2}" if n % 4 < 2 else None, "image"

    old = assigned([record(n) for n in range(before)])
    new = assigned([record(n) for n in range(before + after)])
    assert all(new[content] == "test" for content, split in old.items() if split == "test")
    assert all(new[content] != "train" for content, split in old.items() if split != "train")


def test_twins_that_come_later_take_nothing_out_of_test(memory):
    pictures = [photo(64, 64) for _ in range(60)]
    first = {f"{i:02d}a.png": saved(p) for i, p in enumerate(pictures)}
    later = {**first, **{f"{i:02d}b.jpg": saved(p, "JPEG", quality=70) for i, p in enumerate(pictures)}}
    old = ingested(f"{memory}/1", {"kind": "image_folder", "uri": put(f"{memory}/in1", first)})
    new = ingested(f"{memory}/2", {"kind": "image_folder", "uri": put(f"{memory}/in2", later)})
    before, now = (split_of(found.rows, lambda row: row["path"]) for found in (old, new))
    assert all(now[path] == "test" for path, split in before.items() if split == "test")
    assert any(now[path] == "test" != split for path, split in before.items())


def test_a_group_that_is_most_of_the_corpus_stays_in_train(memory):
    name = next(f"g{n}" for n in range(99) if records.split_of(splits.group_key("named", f"g{n}"), EVEN) == "test")
    rows = [(f"x{n}", name, "image") for n in range(90)] + [(f"y{n}", None, "image") for n in range(30)]
    found = assigned(rows)
    assert {found[f"x{n}"] for n in range(90)} == {"train"}
    assert {found[f"y{n}"] for n in range(30)} == set(records.SPLITS)


def test_no_shard_is_written_again_and_a_repeated_pass_changes_nothing(memory):
    files = {f"{i:02d}.png": saved(photo()) for i in range(24)}
    files |= {f"{i:02d}x.jpg": saved(np.asarray(Image.open(io.BytesIO(files[f"{i:02d}.png"]))), "JPEG") for i in (0, 1)}
    found = ingested(memory, {"kind": "image_folder", "uri": put(f"{memory}/in", files)}, shard_items=5)
    written = [storage.read_bytes(uri) for uri in records.shards(found.context.output)]
    assert set(changes.of_artifact(found.context.output)) <= {"shard-000000-0000.parquet"}
    before = [(row["path"], row["split"]) for row in found.rows]
    ingest.run(found.context)
    assert [(row["path"], row["split"]) for row in records.iterate(found.context.output)] == before
    assert [storage.read_bytes(uri) for uri in records.shards(found.context.output)] == written


def test_pictures_that_are_drawn_alike_are_told_apart_before_they_are_laid_upon_one_another(monkeypatch):
    """Of digits thousands of pairs are near; each that is laid upon another costs half a millisecond."""
    digits = load_digits().images[:500]
    grey = [np.asarray(Image.fromarray((image * 15.9).astype(np.uint8)).resize((32, 32), 3)) for image in digits]
    looks = np.stack([np.frombuffer(picture_look(np.repeat(image[..., None], 3, 2)), np.uint8) for image in grey])
    shapes = twins.shapes(looks)
    near = sum(
        len(twins._candidates(shapes, window, number, None))
        for window, number in enumerate(twins.projections(shapes).tolist())
    )
    laid: list[int] = []
    registered = registration._registered
    monkeypatch.setattr(registration, "_registered", lambda one, *rest: laid.append(len(one)) or registered(one, *rest))
    assert len(twins.near_pictures(looks)) == 0
    assert near > 5000 and sum(laid) < near / 10
