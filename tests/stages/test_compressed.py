"""Compressed files: gz, bz2, xz and zst are read as what they hold, whatever kind of source they belong to."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os

import pyarrow as pa
import pytest
from ingested import lines, picture, put, take

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import texts
from omniloom.stages.ingest.files.compressed import decompressed
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import compression, suffix
from omniloom.stages.ingest.options import SourceConfig

WAYS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", WAYS)
@pytest.mark.parametrize("size", [700, 1 << 20])
def test_streams_that_were_joined_cut_or_damaged(ending, size):
    data = os.urandom(100_000) + b"a" * 2_000_000

    def read(raw: bytes) -> bytes:
        return b"".join(decompressed((raw[at : at + size] for at in range(0, len(raw), size)), ending))

    raw = WAYS[ending](data)
    assert read(raw) == data and read(raw + WAYS[ending](b"end")) == data + b"end" and read(b"") == b""
    with pytest.raises(MediaError) as cut:
        read(raw[: len(raw) // 2])
    assert cut.value.code == "truncated"
    with pytest.raises(MediaError) as damaged:
        read(raw + b"not compressed")
    assert damaged.value.code == "corrupt"


def test_the_suffix_before_says_what_a_file_holds():
    names = ("a.TXT.gz", "b.jsonl.zst", "c.tar.bz2", "d.tgz", "e.gz", "f.png", "g.d/h")
    assert [suffix(name) for name in names] == [".txt", ".jsonl", ".tar", ".tar", ".gz", ".png", ""]
    assert [compression(name) for name in names] == [".gz", ".zst", ".bz2", ".gz", ".gz", None, None]


@pytest.mark.parametrize("ending", WAYS)
def test_texts_and_rows_are_those_of_the_plain_files(tmp_path, ending):
    book = "".join(f"Paragraph {n} of a book.\n\n" for n in range(400)).encode()
    rows = lines(*({"text": f"row {n}"} for n in range(50))).encode()
    ids = {}
    for name, pack in (("plain", None), ("packed", WAYS[ending])):
        files = {"a.txt": book, "b.jsonl": rows, "c.csv": b"text\nfrom a table\n", "d.png": picture()}
        folder = put(
            tmp_path / name, {f"{k}{ending if pack else ''}": pack(v) if pack else v for k, v in files.items()}
        )
        sources = [{"kind": "text", "uri": folder}, {"kind": "jsonl", "uri": folder, "text_field": "text"}]
        sources += [{"kind": "csv", "uri": folder, "text_field": "text"}, {"kind": "image_folder", "uri": folder}]
        _, records, rejects = take(*sources, chunk_chars=500)
        assert not rejects
        ids[name] = [(row["id"], path.removesuffix(ending), part) for (path, part), row in records.items()]
    assert [i for i in ids["plain"] if i[1] != "d.png"] == [i for i in ids["packed"] if i[1] != "d.png"]
    assert len(ids["packed"]) > 60 and ("d.png", 0) in [i[1:] for i in ids["packed"]]


def test_a_large_packed_text_is_cut_as_the_plain_one(tmp_path):
    line = "".join(chr(97 + n % 26) for n in range(999)).encode() + b"\n"
    data = b"".join(b"%07d" % n + line for n in range(2 * texts.SECTION // 1000))
    chunks = []
    for name, content in (("a.txt", data), ("a.txt.gz", gzip.compress(data, 1))):
        put(tmp_path / name, {name: content})
        _, records, _ = take({"kind": "text", "uri": str(tmp_path / name)}, chunk_chars=100_000, shard_bytes=1 << 20)
        chunks.append([(row["id"], part) for (_, part), row in sorted(records.items())])
    assert chunks[0] == chunks[1] and len(chunks[0]) > 80


def test_what_is_damaged_or_grows_beyond_the_limit_is_a_reject(tmp_path):
    whole = gzip.compress(lines(*({"text": f"row {n} {os.urandom(20).hex()}"} for n in range(5000))).encode())
    files = {
        "cut.jsonl.gz": whole[:-5000],
        "no.txt.gz": b"plain text",
        "bomb.txt.gz": gzip.compress(b"\0" * 3_000_000),
        "empty.txt.gz": gzip.compress(b""),
        "fine.txt.gz": gzip.compress("Grüße.".encode("latin-1")),
    }
    folder = put(tmp_path, files)
    rows = {"kind": "jsonl", "uri": folder, "text_field": "text"}
    text = {"kind": "text", "uri": folder, "encoding": "latin-1"}
    metrics, records, rejects = take(rows, text, limits={"max_bytes": 1 << 20})
    assert set(rejects) == {
        ("cut.jsonl.gz", "truncated"),
        ("no.txt.gz", "corrupt"),
        ("bomb.txt.gz", "too_large"),
        ("empty.txt.gz", "empty"),
    }
    assert records["fine.txt.gz", 0]["text"] == "Grüße." and metrics["records"] > 4000


def test_a_part_of_what_a_packed_file_holds(tmp_path):
    put(tmp_path, {"a.txt.gz": gzip.compress(bytes(range(200)))})
    root = Root(SourceConfig(kind="any", uri=str(tmp_path)), 0)
    assert b"".join(root.blocks("a.txt.gz", 50, 60)) == bytes(range(50, 60))
    assert root.read("a.txt.gz") == bytes(range(200))
