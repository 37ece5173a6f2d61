"""The index of a split's tokens: what an order of documents is planned from, without a look at the tokens.

    index/SPLIT/shards.npy           numbers of the token shards, rising, and how many documents each holds
    index/SPLIT/id.npy               of every document 64 bits of its id's hash, in the order of the shards
    index/SPLIT/text.documents.npy   of each text its number in that order and its tokens with <bos> and <eos>, the
                                     shortest first: those with a k-th piece are the end of it
    index/SPLIT/text.tokens.npy      their sum
    index/SPLIT/KIND.documents.npy   of each image, video and document its number, and where its segments begin; with
                                     one entry more, where they end
    index/SPLIT/KIND.segments.npy    tokens of each segment in the representations by latents: of a text n, of a
                                     picture -n, the two that frame it not counted
    index/SPLIT/KIND.pixels.npy      the same by pixels, where the tokens hold any
    index/SPLIT/sources.json         "sources", the names of the documents' sources, as they come, and by kind in
                                     "bounds" where each begins in KIND.order, and the last one ends
    index/SPLIT/KIND.order.npy       places of the kind's documents, one source after the other and rising in each;
                                     only of several sources

pretokenize's workers make a `Lengths` of each shard, from which `write` makes the index: it holds one shard at a time
in memory, whatever their number. A token artifact without an index is read once for it.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, fields
from hashlib import blake2b
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniloom.infra import npy
from omniloom.stages.data.packing import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
_CHUNK = 1 << 20
_CLIPPED = (1 << 16) - 1
_SMALL = 1 << 16  # bytes of a file that is read rather than mapped
_SOURCES = 1 << 16
_AHEAD = 1 << 22  # bytes that are read at once to have them near


@dataclass(frozen=True)
class Lengths:
    """What the index keeps of one shard's documents, in their order."""

    kinds: np.ndarray  # uint8 (documents,), places in KINDS
    counts: np.ndarray  # int64 (documents,), segments
    segments: np.ndarray  # int32 (segments,), see KIND.segment
    pixels: np.ndarray  # int32 (segments,), see KIND.pixels
    ids: np.ndarray  # uint64 (documents,)
    sources: np.ndarray | None = None  # str (documents,); None of tokens that do not say

    def to_bytes(self) -> bytes:
        sink = BytesIO()
        held = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sources"}
        if self.sources is not None:
            names, numbers = np.unique(self.sources, return_inverse=True)
            held |= {"sources": names, "source": numbers.astype(np.uint16)}
        np.savez(sink, **held)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Lengths:
        found = npy.load_all(BytesIO(data))
        if "source" in found:
            found["sources"] = found["sources"][found.pop("source")]
        return Lengths(**found)


def id_hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def lengths_of(table: pa.Table) -> Lengths:
    """Of a token shard's rows (`stages.data.tokens.SCHEMA`)."""
    kinds = pc.index_in(table["kind"].combine_chunks(), pa.array(KINDS)).to_numpy(zero_copy_only=False)
    ids = np.array([id_hash(name) for name in table["id"].to_pylist()], np.uint64)
    counts, segments, pixels = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for column in table["segments"].iterchunks():
        counts.append(np.diff(column.offsets.to_numpy()))
        held = column.flatten()
        text = pc.equal(held.field("kind"), "text").to_numpy(zero_copy_only=False)
        words = np.diff(held.field("ids").offsets.to_numpy())
        segments.append(np.where(text, words, -_places(held.field("grid"))))
        pixels.append(np.where(text, words, -_places(held.field("pixel_grid"))))
    sources = table["source"].to_pylist()
    return Lengths(
        kinds.astype(np.uint8),
        np.concatenate(counts).astype(np.int64),
        np.concatenate(segments).astype(np.int32),
        np.concatenate(pixels).astype(np.int32),
        ids,
        np.array(["" if name is None else name for name in sources], np.str_),
    )


def _places(grids: pa.ListArray) -> np.ndarray:
    """The product of each grid; 0 where there is none."""
    offsets, sides = grids.offsets.to_numpy(), grids.values.to_numpy(zero_copy_only=False)
    found = np.zeros(len(offsets) - 1, np.int64)
    held = np.flatnonzero(np.diff(offsets))
    if len(held):
        found[held] = np.multiply.reduceat(sides, offsets[held])
    return found


SHARD = np.dtype([("number", "<u4"), ("documents", "<u4")])
TEXT = np.dtype([("document", "<u8"), ("tokens", "<u4")])
OTHER = np.dtype([("document", "<u8"), ("start", "<u8")])


def write(folder: Path, shards: Iterable[tuple[int, Lengths]]) -> None:
    """The index of these shards, which come with their numbers in rising order, into a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, _Column] = {}

    def column(name: str, dtype: Any) -> _Column:
        if name not in columns:
            columns[name] = _Column(folder / f"{name}.npy", np.dtype(dtype))
        return columns[name]

    listed, ids, total, pixels = column("shards", SHARD), column("id", "<u8"), 0, False
    names: dict[str, int] | None = {}  # None where a shard does not say
    for number, held in shards:
        names = _name(held, names, column("source", "<u2"))
        listed.add(number=[number], documents=[len(held.kinds)])
        ids.add(held.ids)
        pixels |= bool((held.pixels < 0).any())
        starts = np.cumsum(held.counts) - held.counts
        for code, kind in enumerate(KINDS):
            if not len(mine := np.flatnonzero(held.kinds == code)):
                continue
            counts = held.counts[mine]
            places = ragged(starts[mine], counts)
            begins = np.cumsum(counts) - counts
            if kind == "text":
                words = np.add.reduceat(np.append(held.segments[places], 0), begins) * (counts > 0)
                column("text.unsorted", TEXT).add(document=total + mine, tokens=words + 2)
                continue
            segments = column(f"{kind}.segments", "<i4")
            column(f"{kind}.documents", OTHER).add(document=total + mine, start=segments.count + begins)
            segments.add(held.segments[places])
            column(f"{kind}.pixels", "<i4").add(held.pixels[places])
        total += len(held.kinds)
    for kind in KINDS:
        if f"{kind}.documents" in columns:
            columns[f"{kind}.documents"].add(document=[0], start=[columns[f"{kind}.segments"].count])
    for held_open in columns.values():
        held_open.close()
    if not pixels:
        for kind in KINDS:
            (folder / f"{kind}.pixels.npy").unlink(missing_ok=True)
    if "text.unsorted" in columns:
        _sort_texts(folder)
    if names:
        _sort_by_source(folder, list(names))
    (folder / "source.npy").unlink(missing_ok=True)


def _name(held: Lengths, names: dict[str, int] | None, column: _Column) -> dict[str, int] | None:
    """Notes down the source of each document by the number of its name."""
    if held.sources is None or names is None:
        return None
    found, numbers = np.unique(held.sources, return_inverse=True)
    for name in found.tolist():
        names.setdefault(name, len(names))
    if len(names) > _SOURCES:
        raise ValueError(f"expected at most {_SOURCES:,} sources, got more")
    column.add(np.array([names[name] for name in found.tolist()], np.uint16)[numbers])
    return names


class _Column:
    """A .npy file of one dimension that grows; its header, of a fixed size, is written last."""

    _HEADER = 128

    def __init__(self, file: Path, dtype: np.dtype):
        self.dtype, self.count = dtype, 0
        self._file: BinaryIO = open(file, "wb")  # noqa: SIM115  # closed by `close`
        self._file.write(bytes(self._HEADER))

    def add(self, values: np.ndarray | None = None, **fields: Any) -> None:
        """Values, or those of each field."""
        if values is None:
            values = np.empty(len(next(iter(fields.values()))), self.dtype)
            for name, given in fields.items():
                values[name] = given
        self._file.write(values.astype(self.dtype, copy=False).tobytes())
        self.count += len(values)

    def close(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        told = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({self.count},), }}".encode()
        size = self._HEADER - 10
        self._file.seek(0)
        self._file.write(np.lib.format.magic(1, 0) + size.to_bytes(2, "little") + told.ljust(size - 1) + b"\n")
        self._file.close()


def _sort_texts(folder: Path) -> None:
    """text.unsorted into text.documents: by counting, a piece in memory at a time; what is longer than a counter holds
    is few, and sorted after it."""
    unsorted = folder / "text.unsorted.npy"
    given = npy.load(unsorted, mapped=True)
    found = np.lib.format.open_memmap(folder / "text.documents.npy", "w+", TEXT, given.shape)
    pieces = range(0, len(given), _CHUNK)

    def clipped(at: int) -> np.ndarray:
        return np.minimum(given["tokens"][at : at + _CHUNK], _CLIPPED).astype(np.uint16)

    counts = np.zeros(_CLIPPED + 1, np.int64)
    for at in pieces:
        counts += np.bincount(clipped(at), minlength=len(counts))
    free = np.cumsum(counts) - counts  # the next place of each length
    long, tokens = int(free[-1]), 0
    for at in pieces:
        lengths = clipped(at)
        chosen = np.argsort(lengths, kind="stable")
        times = np.bincount(lengths, minlength=len(counts))
        places = np.arange(len(lengths)) + np.repeat(free - (np.cumsum(times) - times), times)
        found[places] = given[at : at + _CHUNK][chosen]
        tokens += int(given["tokens"][at : at + _CHUNK].sum(dtype=np.int64))
        free += times
    found[long:] = found[long:][np.argsort(found["tokens"][long:], kind="stable")]
    found.flush()
    np.save(folder / "text.tokens.npy", np.array([tokens]))
    unsorted.unlink()


def _sort_by_source(folder: Path, names: list[str]) -> None:
    """sources.json and KIND.order of the sources in the order of their names, a piece of a kind in memory at a time."""
    order = np.argsort(np.array(names, np.str_), kind="stable")
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    source, bounds = npy.load(folder / "source.npy", mapped=True), {}
    for kind in KINDS:
        if not (file := folder / f"{kind}.documents.npy").exists():
            continue
        documents = npy.load(file, mapped=True)["document"]
        count = len(documents) - (kind != "text")
        pieces = [(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]

        def ranks(start: int, stop: int, documents=documents) -> np.ndarray:
            return rank[source[documents[start:stop].astype(np.int64)]]

        counts = sum((np.bincount(ranks(*piece), minlength=len(names)) for piece in pieces), np.zeros(len(names), int))
        free = np.cumsum(counts) - counts  # the next place of each source
        bounds[kind] = [*free.tolist(), count]
        if len(names) == 1 or not count:
            continue
        found = np.lib.format.open_memmap(folder / f"{kind}.order.npy", "w+", np.dtype("<u8"), (count,))
        for start, stop in pieces:
            mine = ranks(start, stop)
            chosen = np.argsort(mine, kind="stable")
            times = np.bincount(mine, minlength=len(names))
            found[np.arange(stop - start) + np.repeat(free - (np.cumsum(times) - times), times)] = chosen + start
            free += times
        found.flush()
    told = {"sources": [names[number] for number in order], "bounds": bounds}
    (folder / "sources.json").write_text(json.dumps(told), encoding="utf-8")


def ragged(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The places start, start + 1, ... of each run, one run after the other, int64 (sum of counts,)."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


class Index:
    """The index in a local folder, mapped: what is not asked for is not read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._maps: dict[str, np.ndarray] = {}
        self._files: dict[str, FileIO] = {}
        shards = self.column("shards")
        self.shards, self._sizes = shards["number"], shards["documents"].astype(np.int64)
        self._ends = np.cumsum(self._sizes)
        known = folder / "sources.json"
        told = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {"sources": [], "bounds": {}}
        self.sources: tuple[str, ...] = tuple(told["sources"])  # in the order of names; () where it is not known
        self._bounds_of: dict[str, list[int]] = told["bounds"]

    def of_source(self, kind: str, source: str) -> range:
        """Where a source's documents stand among the kind's in the order of sources."""
        if kind not in self._bounds_of or source not in self.sources:
            return range(0)
        number = self.sources.index(source)
        return range(self._bounds_of[kind][number], self._bounds_of[kind][number + 1])

    def ordered(self, kind: str, places: np.ndarray) -> np.ndarray:
        """The places in their kind of what stands at these places in the order of sources, int64."""
        return places if len(self.sources) < 2 else self._read(f"{kind}.order", places).astype(np.int64)

    def column(self, name: str) -> np.ndarray:
        """One of the arrays; empty where the split has nothing of it."""
        if name not in self._maps:
            file = self.folder / f"{name}.npy"
            if not file.exists():
                return np.empty(0, np.int64)
            held = npy.load(file, mapped=file.stat().st_size > _SMALL)
            # Documents are drawn from all over it, so that what lies beside a number is not wanted.
            _advise(held, mmap.MADV_RANDOM)
            self._maps[name] = held
            if isinstance(held, np.memmap):
                self._files[name] = open(file, "rb", buffering=0)  # noqa: SIM115  # as long as the map
        return np.asarray(self._maps[name])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def count(self, kind: str) -> int:
        return max(0, len(self.column(f"{kind}.documents")) - (kind != "text"))

    def documents(self, kind: str, places: np.ndarray | None = None) -> np.ndarray:
        """The numbers in the split of the documents at these places of their kind, or of all, int64: of texts the
        shortest first, of others as they come."""
        if not (count := self.count(kind)):
            return np.empty(0, np.int64)
        if places is None:
            return self.column(f"{kind}.documents")["document"][:count].astype(np.int64)
        return self._read(f"{kind}.documents", places)["document"].astype(np.int64)

    def tokens(self, places: np.ndarray) -> np.ndarray:
        """Of the texts at these places of their kind, with <bos> and <eos>, int64."""
        return self._read("text.documents", places)["tokens"].astype(np.int64)

    def segments(self, kind: str, places: np.ndarray, representation: str = "latents") -> tuple[np.ndarray, np.ndarray]:
        """Of the documents at these places of their kind: how many segments each has, and the tokens of all segments
        one after the other; see KIND.segments. Not of texts."""
        begin, end = self._bounds(kind, places)
        pixels = representation == "pixels" and len(self.column(f"{kind}.pixels"))
        found = self._read(f"{kind}.{'pixels' if pixels else 'segments'}", begin, end - begin)
        return end - begin, found.astype(np.int64)

    def _bounds(self, kind: str, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the segments of these documents begin and end."""
        if len(places) and places[-1] - places[0] == len(places) - 1 and (np.diff(places) == 1).all():
            bounds = self._read(f"{kind}.documents", places[:1], len(places) + 1)["start"].astype(np.int64)
            return bounds[:-1], bounds[1:]
        bounds = self._read(f"{kind}.documents", places, 2)["start"].astype(np.int64)
        return bounds[::2], bounds[1::2]

    def _read(self, name: str, starts: np.ndarray, counts: np.ndarray | int = 1) -> np.ndarray:
        """So many entries of a column from each of these places on, one run after the other. From a file: the system
        would map 64 KiB around each, which takes longer than to read it, and counts as this process's memory."""
        column = self.column(name)
        counts = np.broadcast_to(counts, starts.shape)
        if not isinstance(held := self._maps[name], np.memmap):
            return column[ragged(starts, counts)]
        if len(starts) and not (starts[1:] - starts[:-1] - counts[:-1]).any():  # all of it side by side
            starts, counts = starts[:1], np.array([counts.sum()])
        size, header = column.itemsize, held.offset
        file, pread = self._files[name].fileno(), os.pread
        places = zip((counts * size).tolist(), (header + starts * size).tolist(), strict=True)
        return np.frombuffer(b"".join([pread(file, length, at) for length, at in places]), column.dtype)

    def read_ahead(self) -> None:
        """In the background, has the system read what rows are planned from, in the files' order: from all over a file
        that it has not read yet, a window's numbers would take a disk's access each."""
        threading.Thread(target=self._read_through, name="index", daemon=True).start()

    def _read_through(self) -> None:
        buffer = bytearray(_AHEAD)
        for kind in KINDS:
            for name in (f"{kind}.documents", f"{kind}.segments", f"{kind}.pixels"):
                if (file := self.folder / f"{name}.npy").exists():
                    with open(file, "rb", buffering=0) as held:
                        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                        while held.readinto(buffer):
                            pass

    def shard_of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of these documents' shards in `shards`, and their rows there."""
        found = np.searchsorted(self._ends, documents, side="right")
        return found, documents - (self._ends[found] - self._sizes[found])

    def release(self) -> None:
        """Gives back the memory that mapped pages take in this process; they are mapped again when they are read."""
        for held in list(self._maps.values()):  # other threads look up columns
            _advise(held, mmap.MADV_DONTNEED)


def _advise(held: np.ndarray, advice: int) -> None:
    if isinstance(held, np.memmap):
        held._mmap.madvise(advice)  # type: ignore[attr-defined]  # numpy keeps the map there
