"""How much of a mixed corpus is read by who uses a part of it: a kind, a split, texts without their pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from omniloom.infra import storage
from omniloom.stages.data import changes, records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import ClipStore
from omniloom.stages.data.in_place import MappedFile
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.pretokenize.stage import _texts

RNG = np.random.default_rng(5)
SEGMENT = dict.fromkeys(("media", "format", "width", "height"))


def record(number: int, kind: str, split: str, **fields) -> dict:
    common = {"source": kind, "path": str(number), "part": 0, "synthetic": False, "meta": "{}"}
    return {"id": hashlib.sha256(str(number).encode()).hexdigest(), "kind": kind, "split": split, **common, **fields}


def words(number: int) -> str:
    return " ".join(RNG.integers(0, 1 << 30, 150).astype(str)) + f" {number}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SimpleNamespace:
    """60 pictures of 12 KB, then 400 texts of 1.5 KB, then 40 documents that hold pictures; in two shards. A fifth of
    each is held out."""
    folder = tmp_path_factory.mktemp("mixed")
    pictures = [encode_png(RNG.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(60)]
    splits = ("train", "train", "train", "train", "validation")
    sized = {"format": "png", "width": 64, "height": 64}
    rows = [
        record(n, "image", splits[n % 5], media=data, frames=1, captions=[f"a caption of {n}"], **sized)
        for n, data in enumerate(pictures)
    ]
    rows += [record(1000 + n, "text", splits[n % 5], text=words(n)) for n in range(400)]
    for n in range(40):
        shown = {"type": "image", "text": "alt", "media": pictures[n], **sized}
        rows.append(
            record(2000 + n, "document", splits[n % 5], segments=[{"type": "text", "text": words(n), **SEGMENT}, shown])
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_ROW_GROUP_BYTES", 100_000)
        for number, part in enumerate((rows[:250], rows[250:])):
            records.write_shard(str(folder / records.shard_name(number)), part)
    return SimpleNamespace(uri=str(folder), digest="0" * 64, rows=rows)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Bytes of each reading of a shard."""
    found: list[int] = []
    real = storage.filesystem

    class Counting:
        def __init__(self, file):
            self._file = file

        def read(self, *size):
            found.append(len(data := self._file.read(*size)))
            return data

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

    def filesystem(uri):
        fs, path = real(uri)
        if "/shard-" not in path:
            return fs, path
        return SimpleNamespace(open=lambda place, mode: Counting(fs.open(place, mode))), path

    monkeypatch.setattr(storage, "filesystem", filesystem)
    return found


def packed(uri: str, columns: tuple[str, ...], kinds: tuple[str, ...] = records.KINDS) -> int:
    """Bytes that these columns take in the row groups that have one of the kinds, with what a file says of itself."""
    total = 0
    for shard in records.shards(uri):
        metadata = pq.ParquetFile(shard).metadata
        total += 2 * metadata.serialized_size + 128 * 1024  # the end is read with room before it
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            held = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
            least, greatest = held["kind"].statistics.min, held["kind"].statistics.max
            if any(least <= kind <= greatest for kind in kinds):
                total += sum(held[name].total_compressed_size for name in columns)
    return total


def parts(uri: str) -> Iterator[int]:
    for shard in records.shards(uri):
        yield storage.local_path(shard).stat().st_size


def test_a_text_tokenizer_reads_no_picture_of_a_document(corpus, read):
    texts = list(_texts(corpus))
    chosen = [row for row in corpus.rows if row["split"] == "train"]
    assert sorted(texts) == sorted(
        [row["captions"][0] for row in chosen if row["kind"] == "image"]
        + [row["text"] for row in chosen if row["kind"] == "text"]
        + [row["segments"][0]["text"] for row in chosen if row["kind"] == "document"]
    )
    names = tuple(f"segments.list.element.{name}" for name in ("type", "text"))
    used = packed(corpus.uri, ("id", "kind", "split", "captions.list.element", "text", *names))
    assert sum(read) <= used < sum(parts(corpus.uri)) / 2


@pytest.mark.parametrize("kind", ["image", "text"])
def test_row_groups_of_other_kinds_are_not_read(corpus, read, kind):
    found = list(records.iterate(corpus.uri, kinds=[kind], split="train"))
    assert [row["path"] for row in found] == [
        row["path"] for row in corpus.rows if (row["kind"], row["split"]) == (kind, "train")
    ]
    leaves = tuple(pq.ParquetFile(records.shards(corpus.uri)[0]).schema.to_arrow_schema().names)
    leaves = tuple(name for name in leaves if name not in ("captions", "segments"))
    lists = ("captions.list.element", *(f"segments.list.element.{field.name}" for field in records.SEGMENT))
    used = packed(corpus.uri, (*leaves, *lists), (kind,))
    assert sum(read) <= used < 0.75 * packed(corpus.uri, (*leaves, *lists))


def test_a_picture_is_read_where_it_lies_and_no_other(corpus, tmp_path, monkeypatch):
    """A tokenizer of pictures on a corpus that has texts and documents too."""
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path))
    taken = []
    real = MappedFile.read
    monkeypatch.setattr(MappedFile, "read", lambda self, at, length: taken.append(length) or real(self, at, length))
    store = ClipStore(corpus, "image", "train", Aspects(["1:1"], 8), 64, 1, 0)
    found = sum(taken)  # to find out where they lie: lengths, and the heads of pages
    taken.clear()
    for index in range(len(store)):
        store[index]
    chosen = [row for row in corpus.rows if (row["kind"], row["split"]) == ("image", "train")]
    assert sum(taken) == sum(len(row["media"]) for row in chosen) and len(store) == len(chosen)
    assert found < sum(taken) / 50


def test_a_split_that_changed_is_found_in_any_row_group(corpus, tmp_path):
    """What a row group says of its splits no longer counts where records have others."""
    uri = str(tmp_path)
    rows = [record(n, "image", "train", media=bytes(60), frames=1) for n in range(12)]
    rows += [record(n, "text", "train", text=f"text {n}") for n in range(12, 40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_ROW_GROUP_BYTES", 60)
        records.write_shard(f"{uri}/{records.shard_name(0)}", rows)
    assert not list(records.iterate(uri, split="test"))
    name = records.shard_name(0).rpartition("/")[2]
    changes.write(uri, {name: changes.Changes(dropped={7}, splits={31: "test", 7: "test"})})
    assert [row["path"] for row in records.iterate(uri, split="test")] == ["31"]
    assert [row["path"] for row in records.iterate(uri, split="test", kinds=["text"])] == ["31"]
    assert len(list(records.iterate(uri, split="train", kinds=["text", "image"]))) == 38
