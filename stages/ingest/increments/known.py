"""What of the sources was read before: items of an earlier artifact whose files have not changed since.

In: the items of this run in their order, and the artifact that it builds on. Out: the items that are to be read; of all
of them, where their records lie; and for the next run, under `resume/`:

    files.npy       the listing (`stages.ingest.increments.growth`)
    items.parquet   one row an item, rising by its key: where its records lie (`group` of shards, its number `item`
                    there), the `generation` that read it, and the paths of other files that it `reads`, with what
                    stood for their content then
    lineage.json    how many records are left of each artifact that it was built on (`stages.ingest.increments.growth`)

An item is known where its key is: what the source's options, its manifests and the listing say of it, with the identity
of its file, or for a piece of a JSONL file the digest of its bytes, so that a file which grew is read from there on
where it has grown; and where every other file that reading it asked for is, or is missing, as it was. So an item is
read again where its caption has changed, and is not where another line of the same manifest has.
"""

from __future__ import annotations

import io
import json
import marshal
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.infra.artifacts import RESUME, Artifact
from omniloom.stages.data.arrow import read_parquet
from omniloom.stages.data.records import KINDS
from omniloom.stages.ingest.increments import growth
from omniloom.stages.ingest.increments.in_order import Order

if TYPE_CHECKING:
    from omniloom.stages.ingest.splitting.settling import Settled

ITEMS = f"{RESUME}items.parquet"
SCHEMA = pa.schema(
    [
        pa.field("high", pa.uint64(), nullable=False),  # the key's first eight bytes
        pa.field("low", pa.uint64(), nullable=False),
        pa.field("group", pa.uint32(), nullable=False),
        pa.field("item", pa.uint32(), nullable=False),
        pa.field("generation", pa.uint32(), nullable=False),
        pa.field("reads", pa.list_(pa.string())),  # null: no other file
        pa.field("content", pa.uint64()),  # of those files
    ]
)
_BATCH = 4096
_PLAIN = 2  # of marshal: equal values are written alike, whoever else holds them
_OF_THIS_RUN = ("source", "held", "packed")  # of an item: its source's number, and how work is divided
_OF_THE_FILE = "identity"  # of an item: left aside where the bytes of a piece have a digest
_NONE = np.uint32(0xFFFFFFFF)


class Known:
    """The items of an earlier artifact; without one there are none."""

    def __init__(self, artifact: Artifact | None):
        table = SCHEMA.empty_table()
        if artifact:
            table = read_parquet(artifact.file(ITEMS), SCHEMA)
        self.artifact = artifact
        self.high, self.low, self.group, self.item, self.generation = (
            table[name].to_numpy() for name in ("high", "low", "group", "item", "generation")
        )
        self.reads, self._content = table["reads"].combine_chunks(), table["content"].combine_chunks()
        self.reads_some = self.reads.is_valid().to_numpy(zero_copy_only=False)  # other files than its own
        self.lineage = (artifact and storage.read_json(artifact.file(growth.LINEAGE))) or {}

    @property
    def generations(self) -> list[dict]:
        """Of the artifacts that this run builds on, the oldest first."""
        if not self.artifact:
            return []
        own = {"fingerprint": self.artifact.fingerprint, "records": self.lineage["records"]}
        return [*self.lineage["generations"], own]

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0

    def find(self, keys: list[bytes]) -> np.ndarray:
        """Their places, -1 for one that is not there."""
        if not len(self.high):
            return np.full(len(keys), -1)
        wanted = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        place = np.searchsorted(self.high, wanted[:, 0])
        place[place == len(self.high)] = 0
        same = (self.high[place] == wanted[:, 0]) & (self.low[place] == wanted[:, 1])
        return np.where(same, place, -1)

    def files_of(self, place: int) -> tuple[list[str], int]:
        """The other files that an item read, and what stood for their content."""
        return self.reads[place].as_py(), self._content[place].as_py()


class Files:
    """What the listing says of the files of each source, by their paths."""

    def __init__(self) -> None:
        self._tables: dict[int, np.ndarray] = {}

    def add(self, source: int, facts: Iterable[dict]) -> None:
        """`facts`: as `sources.listing` gives them, of all files that may be read."""
        self._tables[source] = growth.file_table(facts)

    def table(self) -> np.ndarray:
        """Of all sources, as the next run compares it."""
        tables = list(self._tables.values())
        return np.sort(np.concatenate(tables), order="path")

    def content(self, source: int, paths: list[str]) -> int:
        """What changes where the content of one of these files does, or one is there that was missing."""
        table = self._tables[source]
        wanted = np.array([growth.place(source, path) for path in paths], np.uint64)
        at = np.searchsorted(table["path"], wanted)
        at[at == len(table)] = 0
        found = np.where(table["path"][at] == wanted, table["identity"][at], 0) if len(table) else np.zeros(len(paths))
        return int.from_bytes(blake2b(found.astype("<u8").tobytes(), digest_size=8).digest(), "little")


class Items:
    """The items of this run. Memory: 40 bytes an item, and the paths that some of them read."""

    def __init__(self, known: Known, files: Files, names: list[str]):
        """`names`: what stands for each source, whatever its number."""
        self._known, self._files = known, files
        self._digests = [blake2b(f"{name} ".encode("utf-8", "surrogatepass"), digest_size=16) for name in names]
        self._seen: Counter[bytes] = Counter()  # of what cannot be read, which may come more than once
        self._keys = bytearray()
        self._columns: list[np.ndarray] = []  # (3, n): group, item and generation of n items
        self._file_numbers: list[np.ndarray] = []
        self._reads: dict[tuple[int, int], tuple[int, list[str]]] = {}
        self._last_file: tuple | None = None
        self.files = 0
        self.count = 0
        self.unread_files = 0
        self._last_unread = -1  # of the files, which come in order
        self.unread_bytes = 0

    def unread(self, items: Iterable[dict]) -> Iterator[dict]:
        """The items that are not known, each with its number under "number"."""
        items = iter(items)
        while batch := list(islice(items, _BATCH)):
            keys = [self._key(item) for item in batch]
            places = self._known.find(keys)
            found = places >= 0
            for n in np.flatnonzero(found & self._known.reads_some[places]).tolist() if found.any() else ():
                found[n] = self._as_it_was(batch[n]["source"], int(places[n]))
            columns, old = np.full((3, len(batch)), _NONE), places[found]
            columns[:, found] = self._known.group[old], self._known.item[old], self._known.generation[old]
            self._columns.append(columns)
            self._keys += b"".join(keys)
            self._file_numbers.append(np.array([self._file(item) for item in batch], np.int64))
            first, self.count = self.count, self.count + len(batch)
            for number in np.flatnonzero(~found).tolist():
                item, file = batch[number], int(self._file_numbers[-1][number])
                self.unread_files, self._last_unread = self.unread_files + (file != self._last_unread), file
                self.unread_bytes += item["size"]
                yield {**item, "number": first + number}

    def _key(self, item: dict) -> bytes:
        if len(item) == 4 and _OF_THE_FILE in item:  # nearly all: a file, whole
            told = {"path": item["path"], "size": item["size"], "identity": item["identity"]}
        else:
            told = {name: value for name, value in item.items() if name not in _OF_THIS_RUN}
        if "digest" in told:
            told.pop(_OF_THE_FILE, None)
        digest = self._digests[item["source"]].copy()
        digest.update(marshal.dumps(told, _PLAIN))
        key = digest.digest()
        if "reject" not in item:
            return key
        self._seen[key] += 1
        return blake2b(key + str(self._seen[key]).encode(), digest_size=16).digest()

    def _file(self, item: dict) -> int:
        """The number of the item's file: pieces of one come one after another."""
        file = (item["source"], item["path"]) if "from" in item else None
        if file is None or file != self._last_file:
            self.files += 1
        self._last_file = file
        return self.files - 1

    def _as_it_was(self, source: int, place: int) -> bool:
        reads, content = self._known.files_of(place)
        if self._files.content(source, reads) != content:
            return False
        self._reads[int(self._known.group[place]), int(self._known.item[place])] = source, reads
        return True

    def placed(self, group: dict) -> dict:
        """Note where the items of a group are going to lie; the group as its reader gets it."""
        for place, item in enumerate(group["items"]):
            batch, number = divmod(item.pop("number"), _BATCH)
            self._columns[batch][:, number] = group["index"], place, len(self._known.generations)
        return group

    def asked(self, group: int, item: int, source: int, paths: list[str]) -> None:
        """Reading an item asked for these files besides its own."""
        self._reads[group, item] = source, paths

    # ---- once all are placed ----

    def order(self) -> Order:
        return Order(self._table())

    def _table(self) -> np.ndarray:
        """int (3, items): group, item and generation of each."""
        return np.concatenate(self._columns, axis=1) if self._columns else np.empty((3, 0), np.uint32)

    def files_without(self, records: np.ndarray) -> int:
        """How many files gave none of so many `records` of each item."""
        numbers = np.concatenate(self._file_numbers)
        return int((np.bincount(numbers, weights=records, minlength=self.files) == 0).sum())

    def write(self, output: str, settled: Settled) -> None:
        """What the next run asks for, below the output."""
        storage.write_bytes(storage.join(output, growth.FILES), growth.to_bytes(self._files.table()))
        storage.write_bytes(storage.join(output, ITEMS), self._to_bytes())
        generations = self._known.generations
        of_records = self._table()[2][settled.places]
        kept = [
            {**known, "kept": _by_kind(settled.kinds[of_records <= number])} for number, known in enumerate(generations)
        ]
        lineage = {"records": _by_kind(settled.kinds), "generations": kept}
        storage.write_bytes(storage.join(output, growth.LINEAGE), json.dumps(lineage).encode())

    def _to_bytes(self) -> bytes:
        keys = np.frombuffer(self._keys, "<u8").reshape(-1, 2)
        order = np.argsort(keys[:, 0], kind="stable")
        group, item, generation = self._table()[:, order]
        columns: list[Any] = [keys[order, 0], keys[order, 1], group, item, generation]
        if self._reads:
            found = [self._reads.get(place) for place in zip(group.tolist(), item.tolist(), strict=True)]
            columns.append([read and read[1] for read in found])
            columns.append([read and self._files.content(*read) for read in found])
        else:
            columns += [pa.nulls(len(order)), pa.nulls(len(order))]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        sink = io.BytesIO()
        pq.write_table(pa.table(arrays, schema=SCHEMA), sink, compression="zstd", use_dictionary=False)
        return sink.getvalue()


def _by_kind(kinds: np.ndarray) -> dict[str, int]:
    return {kind: int((kinds == code).sum()) for code, kind in enumerate(KINDS)}
