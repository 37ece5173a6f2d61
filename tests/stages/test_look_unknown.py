"""Folders as people have them, which no config describes: `omniloom look` prints one that ingests what is there."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ingested import lines, put, take, tarred, zipped
from PIL import Image

from omniloom.pipelines.commands.look import look
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_mp4


def picture(number: int, format: str = "PNG") -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format)
    return sink.getvalue()


def clip(number: int) -> bytes:
    return encode_mp4(np.random.default_rng(number).integers(0, 256, (4, 32, 48, 3), np.uint8), 4)


def text(number: int) -> bytes:
    words = np.random.default_rng(number).integers(0, 10_000, 60)
    return (" ".join(f"word{word}" for word in words) + ".\n").encode()


def camera_roll() -> dict:
    roll = {f"DCIM/100APPLE/IMG_{n:04d}.HEIC": picture(n, "HEIF") for n in range(3)}
    roll |= {f"DCIM/100APPLE/IMG_{n:04d}.MOV": clip(n) for n in range(2)}
    return roll | {"DCIM/101APPLE/IMG_0100.JPG": picture(100, "JPEG"), "DCIM/100APPLE/IMG_0001.AAE": b"<plist/>"}


def kohya() -> dict:
    files = {f"10_my style/{n}.png": picture(n) for n in range(4)}
    return files | {f"10_my style/{n}.txt": f"my style, number {n}".encode() for n in range(4)}


def llava() -> dict:
    rows = [
        {
            "id": n,
            "image": f"coco/{n}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is number {n}?"},
                {"from": "gpt", "value": f"Noise, of kind {n}."},
            ],
        }
        for n in range(3)
    ]
    pictures = {f"coco/{n}.jpg": picture(n, "JPEG") for n in range(3)}
    return {"llava_instruct.json": json.dumps(rows).encode(), **pictures}


def coco() -> dict:
    notes = [{"id": 10 * n + k, "image_id": n, "caption": f"picture {n}, said {k}"} for n in range(3) for k in range(2)]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 64, "height": 48} for n in range(3)]
    files = {f"val2017/{n:012d}.jpg": picture(n, "JPEG") for n in range(3)}
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": notes}
    return {"annotations/captions_val2017.json": json.dumps(content).encode(), **files}


def hugging_face() -> dict:
    rows = [{"file_name": f"{n}.png", "text": f"number {n}"} for n in range(3)]
    pictures = {f"train/{n}.png": picture(n) for n in range(3)}
    card = b"---\nlicense: mit\n---\n# A dataset\n"
    return {"README.md": card, "train/metadata.jsonl": lines(*rows).encode(), **pictures}


def webdataset() -> dict:
    def shard(first: int) -> bytes:
        files: dict[str, bytes] = {}
        for n in range(first, first + 3):
            files |= {f"{n:09d}.jpg": picture(n, "JPEG"), f"{n:09d}.txt": f"number {n}".encode()}
            files[f"{n:09d}.json"] = json.dumps({"url": "http://x/y", "caption": f"number {n}"}).encode()
        return tarred(files)

    return {"00000.tar": shard(0), "00001.tar": shard(3), "00000_stats.json": b'{"count": 3}'}


def parquet() -> dict:
    table = pa.table(
        {
            "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in range(4)],
            "caption": [f"number {n}" for n in range(4)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return {"data/train-00000-of-00001.parquet": sink.getvalue(), "README.md": b"# Pictures\n"}


def zip_of_pictures() -> dict:
    return {
        "holiday.zip": zipped({f"holiday/{n}.jpg": picture(n, "JPEG") for n in range(3)} | {"__MACOSX/._0.jpg": b"x"})
    }


def packed_texts() -> dict:
    return {f"books/{n}.txt.gz": gzip.compress(text(n)) for n in range(3)} | {"LICENSE": b"free"}


def mixed() -> dict:
    files = {f"a/{n}.png": picture(n) for n in range(2)} | {f"b/{n}.webm.mp4": clip(n) for n in range(2)}
    files |= {f"b/c/{n}.JPG": picture(10 + n, "JPEG") for n in range(2)} | {"notes.txt": text(1), ".DS_Store": b"x"}
    return files | {"a/broken.png": picture(50)[:200], "a/empty.png": b""}


def chats() -> dict:
    def row(n: int) -> dict:
        said = text(n).decode().strip()
        return {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": said}]}

    return {
        "chats.jsonl": lines(*(row(n) for n in range(4))).encode(),
        "pile.jsonl": lines({"text": "x" * 50}).encode(),
    }


def img2dataset() -> dict:
    files: dict[str, bytes] = {}
    for n in range(3):
        facts = {"caption": f"number {n}", "url": f"http://127.0.0.1:9/{n}.jpg", "status": "success"}
        files |= {f"00000/00000000{n}.jpg": picture(n, "JPEG"), f"00000/00000000{n}.json": json.dumps(facts).encode()}
    sink = io.BytesIO()
    urls = [f"http://127.0.0.1:9/{n}.jpg" for n in range(3)]
    pq.write_table(pa.table({"url": urls, "caption": ["a", "b", "c"]}), sink)
    return files | {"00000.parquet": sink.getvalue(), "00000_stats.json": b'{"count": 3}'}


def img2dataset_tars() -> dict:
    """Its tars, whose tables name the same pictures and captions once more."""
    files = dict(webdataset())
    for path in list(files):
        stem, sink = path.removesuffix(".tar"), io.BytesIO()
        pq.write_table(pa.table({"url": ["http://127.0.0.1:9/0.jpg"], "caption": ["a"], "key": ["0"]}), sink)
        files |= {f"{stem}.parquet": sink.getvalue(), f"{stem}_stats.json": b'{"count": 3, "successes": 3}'}
    return files


def detection() -> dict:
    """Boxes beside some pictures and in a folder of their own for others."""
    boxes = "0 0.5 0.5 0.25 0.125\n3 0.1 0.2 0.3 0.4\n"
    files = {f"images/train/{n}.png": picture(n) for n in range(3)}
    files |= {f"labels/train/{n}.txt": boxes for n in range(3)}
    return files | {"more/7.png": picture(7), "more/7.txt": boxes, "data.yaml": "names: [cat]\n"}


def pairs() -> dict:
    return {"qa.csv": "question,answer\nWhat is it?,A question.\nWho says so?,Nobody at all.\n"}


def recipes() -> dict:
    pages = {f"posts/{n}.md": f"# Dish {n}\n\n![dish]({n}.png)\n\nStir {n} times.\n".encode() for n in range(3)}
    return pages | {f"posts/{n}.png": picture(n) for n in range(3)}


# Files, the records by kind, captions of pictures, rejects.
FOLDERS: dict[str, tuple[Callable[[], dict], dict[str, int], set[str], int]] = {
    "camera_roll": (camera_roll, {"image": 4, "video": 2}, set(), 0),
    "kohya": (kohya, {"image": 4}, {f"my style, number {n}" for n in range(4)}, 0),
    "llava": (llava, {"document": 3}, set(), 0),
    "coco": (coco, {"image": 3}, {f"picture {n}, said {k}" for n in range(3) for k in range(2)}, 0),
    "hugging_face": (hugging_face, {"image": 3}, {f"number {n}" for n in range(3)}, 0),
    "webdataset": (webdataset, {"image": 6}, {f"number {n}" for n in range(6)}, 0),
    "parquet": (parquet, {"image": 4}, {f"number {n}" for n in range(4)}, 0),
    "zip_of_pictures": (zip_of_pictures, {"image": 3}, set(), 0),
    "packed_texts": (packed_texts, {"text": 3}, set(), 0),
    "mixed": (mixed, {"image": 4, "video": 2, "text": 1}, set(), 2),
    "chats": (chats, {"text": 5}, set(), 0),
    "img2dataset": (img2dataset, {"image": 3}, {f"number {n}" for n in range(3)}, 0),
    "img2dataset_tars": (img2dataset_tars, {"image": 6}, {f"number {n}" for n in range(6)}, 0),
    "detection": (detection, {"image": 4}, set(), 0),
    "pairs": (pairs, {"text": 2}, set(), 0),
    "recipes": (recipes, {"document": 3}, set(), 0),
}


def printed(name: str, folder: Path, capsys) -> str:
    put(folder, FOLDERS[name][0]())
    look(str(folder))
    return capsys.readouterr().out


def check(name: str, rows: list[dict], rejects: int, text: str) -> None:
    _, kinds, captions, refused = FOLDERS[name]
    assert Counter(row["kind"] for row in rows) == kinds, text
    assert {caption for row in rows for caption in row["captions"] or ()} == captions, text
    assert rejects == refused, text


@pytest.mark.parametrize("name", FOLDERS)
def test_the_sources_that_are_printed_read_what_is_there(name, tmp_path, capsys):
    text = printed(name, tmp_path / name, capsys)
    _, rows, rejects = take(*yaml.safe_load(text)["stages"]["ingest"]["sources"])
    check(name, list(rows.values()), len(rejects), text)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_run_works_with_the_config_as_it_is_printed(name, tmp_path, capsys):
    file = tmp_path / "printed.yaml"
    file.write_text(text := printed(name, tmp_path / name, capsys))
    command = [sys.executable, "-m", "omniloom.pipelines.cli", "run", str(file), "--until", "ingest"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = (tmp_path / "runs" / yaml.safe_load(text)["name"] / "artifacts" / "ingest").iterdir()
    rejects = sum(bool(line) for file in artifact.glob("rejects/*") for line in file.read_bytes().split(b"\n"))
    check(name, list(records.iterate(str(artifact))), rejects, text)
