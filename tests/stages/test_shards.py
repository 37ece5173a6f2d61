"""Shards as others' loaders write them: Energon folders and Mosaic Data Shards."""

from __future__ import annotations

import base64
import gzip
import json
import struct

import pyarrow as pa
import pytest
from ingested import picture, put, take, tarred

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.look.looking import look

PICTURES = [picture() for _ in range(6)]

# ---- Energon ----


def energon(split: dict | None = None, field_map: str = "image: png, caption: 'json[0][text]'") -> dict[str, bytes]:
    files = {
        ".nv-meta/dataset.yaml": f"sample_type: {{__class__: CaptioningSample}}\nfield_map: {{{field_map}}}".encode()
    }
    for shard in range(3):
        members: dict[str, bytes] = {}
        for n in (2 * shard, 2 * shard + 1):
            members[f"{n:04d}.png"] = PICTURES[n]
            members[f"{n:04d}.json"] = json.dumps([{"text": f"number {n}"}]).encode()
            members[f"{n:04d}.txt"] = b"another caption"
        files[f"shards/shard_{shard:03d}.tar"] = tarred(members)
    if split is not None:
        files[".nv-meta/split.yaml"] = json.dumps(split).encode()
    return files


SPLIT = {
    "split_parts": {"train": ["shards/shard_{000..001}.tar"], "val": ["shards/shard_002.tar"], "test": []},
    "exclude": ["shards/shard_001.tar"],
}


def made(source: dict) -> list:
    _, records, rejects = take(source)
    assert not rejects
    return [row["captions"] for row in records.values()]


def test_an_energon_folder_is_read_by_its_description(tmp_path):
    folder = put(tmp_path / "a", energon())
    assert made({"kind": "energon", "uri": folder}) == [[f"number {n}"] for n in range(6)]
    folder = put(tmp_path / "b", energon(SPLIT, "image: png, caption: txt"))
    assert made({"kind": "energon", "uri": folder}) == [["another caption"]] * 4
    assert made({"kind": "energon", "uri": folder, "split": "val", "caption_field": "json.text"}) == [
        ["number 4"],
        ["number 5"],
    ]
    with pytest.raises(InputError, match="has no split 'dev'; it has train, val, test"):
        take({"kind": "energon", "uri": folder, "split": "dev"})
    with pytest.raises(InputError, match=r"no such file or folder: .*\.nv-meta/dataset\.yaml"):
        take({"kind": "energon", "uri": put(tmp_path / "c", {"a.tar": tarred({"a.png": PICTURES[0]})})})


def test_texts_of_an_energon_folder_and_code_that_it_names(tmp_path):
    texts = energon(field_map="text: txt") | {
        ".nv-meta/sample_loader.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(),
    }
    texts[".nv-meta/dataset.yaml"] += b"\nsample_loader: sample_loader.py:load"
    folder = put(tmp_path / "a", texts)
    (proposed,) = look(str(tmp_path)).sources
    assert proposed.options == {"kind": "energon", "uri": folder, "text_field": "text"}
    metrics, records, _ = take(proposed.options)
    assert metrics["duplicates"] == 5 and next(iter(records.values()))["text"] == "another caption"
    assert not (tmp_path / "ran").exists()


def test_an_energon_folder_is_recognized_before_its_tars(tmp_path):
    put(tmp_path, {f"set/{name}": data for name, data in energon(SPLIT).items()})
    (proposed,) = look(str(tmp_path)).sources
    assert proposed.options == {"kind": "energon", "uri": f"{tmp_path}/set"} and proposed.captioned == 4


# ---- MDS ----

# Written by mosaicml-streaming 0.13.0 (MDSWriter, columns image: png, caption: str, n: int, two samples).
THEIRS = base64.b64decode(
    "AgAAAOEAAABGAQAAqwEAAHsiY29sdW1uX2VuY29kaW5ncyI6IFsic3RyIiwgInBuZyIsICJpbnQiXSwgImNvbHVtbl9uYW1lcyI6IFsiY2FwdGlv"
    "biIsICJpbWFnZSIsICJuIl0sICJjb2x1bW5fc2l6ZXMiOiBbbnVsbCwgbnVsbCwgOF0sICJjb21wcmVzc2lvbiI6IG51bGwsICJmb3JtYXQiOiAi"
    "bWRzIiwgImhhc2hlcyI6IFtdLCAic2l6ZV9saW1pdCI6IDY3MTA4ODY0LCAidmVyc2lvbiI6IDJ9CAAAAE0AAABudW1iZXIgMIlQTkcNChoKAAAA"
    "DUlIRFIAAAAFAAAABAgCAAAAyVFiFwAAABRJREFUeJxjZIg6wYAEmBhQASE+AEa0ASrtkvKRAAAAAElFTkSuQmCCAAAAAAAAAAAIAAAATQAAAG51"
    "bWJlciAxiVBORw0KGgoAAAANSUhEUgAAAAUAAAAECAIAAADJUWIXAAAAFElEQVR4nGM0ilrFgASYGFABIT4AS9wBPtXDd7sAAAAASUVORK5CYIIB"
    "AAAAAAAAAA=="
)


def mds(columns: dict[str, tuple[str, int | None]], samples: list[list[bytes]]) -> bytes:
    facts = {
        "column_names": list(columns),
        "column_encodings": [encoding for encoding, _ in columns.values()],
        "column_sizes": [size for _, size in columns.values()],
    }
    head = json.dumps(facts).encode()
    bodies = []
    for sample in samples:
        sizes = [len(value) for value, (_, size) in zip(sample, columns.values(), strict=True) if size is None]
        bodies.append(struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(sample))
    offsets = [4 * (len(samples) + 2) + len(head)]
    for body in bodies:
        offsets.append(offsets[-1] + len(body))
    return struct.pack(f"<{len(offsets) + 1}I", len(samples), *offsets) + head + b"".join(bodies)


def test_a_shard_that_the_library_wrote(tmp_path):
    folder = put(tmp_path, {"shard.00000.mds": THEIRS, "index.json": b'{"version": 2, "shards": []}'})
    (proposed,) = look(folder).sources
    assert proposed.options == {"kind": "mds", "uri": folder, "image_field": "image"}
    _, records, rejects = take({**proposed.options, "label_field": "n"})
    found = [(row["part"], row["caption"], row["label"], row["width"], row["height"]) for row in records.values()]
    assert not rejects and found == [(1, "number 0", "0", 5, 4), (2, "number 1", "1", 5, 4)]


@pytest.mark.parametrize("ending", ["", ".gz", ".zstd"])
def test_encodings_pieces_and_compression(tmp_path, ending):
    columns = {
        "text": ("str", None),
        "facts": ("json", None),
        "f": ("float32", 4),
        "n": ("uint16", 2),
        "x": ("pkl", None),
    }
    samples = [
        [
            f"text {n}".encode(),
            json.dumps({"g": f"group {n}"}).encode(),
            struct.pack("<f", n),
            struct.pack("<H", n),
            b"!",
        ]
        for n in range(30)
    ]
    data = mds(columns, samples)
    pack = {"": bytes, ".gz": gzip.compress, ".zstd": lambda data: pa.compress(data, "zstd", asbytes=True)}[ending]
    put(tmp_path, {f"shard.00000.mds{ending}": pack(data)})
    source = {"kind": "mds", "uri": str(tmp_path), "template": "{text} of {f} and {n}"}
    for limit in (1 << 20, 300):
        _, records, rejects = take(source, shard_bytes=limit, shard_items=7)
        assert not rejects and [row["part"] for row in records.values()] == list(range(1, 31))
        assert [row["text"] for row in records.values()] == [f"text {n} of {float(n)} and {n}" for n in range(30)]
    with pytest.raises(InputError, match="unsupported 30"):
        take({**source, "template": "{text} {x}"})


def test_what_is_damaged_is_a_reject(tmp_path):
    data = mds({"text": ("str", None)}, [[b"one"], [b"two"], [b"\xff\xfe\xff"], [b"four"]])
    bad = bytearray(mds({"text": ("str", None)}, [[b"five"], [b"six"]]))
    bad[-7:-3] = struct.pack("<I", 1 << 20)  # the size of the last text
    put(tmp_path, {"a.mds": data, "b.mds": data[:-6], "c.mds": bytes(bad), "d.mds": b"\xff" * 40, "e.mds": b""})
    _, records, rejects = take({"kind": "mds", "uri": str(tmp_path), "text_field": "text"})
    assert {row["text"] for row in records.values()} == {"one", "two", "four", "five"}
    assert set(rejects) == {
        ("a.mds", "corrupt"),
        ("b.mds", "corrupt"),
        ("b.mds", "truncated"),
        ("c.mds", "corrupt"),
        ("d.mds", "invalid_table"),
        ("e.mds", "truncated"),
    }
