"""Tokens: what pretokenize writes and training reads; uncompressed Arrow IPC, memory-mapped.

    tokens/SPLIT/shard-00000.arrow   one row a document, in the order of the records
    index/SPLIT/                     lengths, see `stages.data.index`
    tokens.json                      schema version, digests of both tokenizers, sizes and aspect ratios, latents' mean
                                     and std, channels of features (null without), counts; of text alone no digest of
                                     pictures' and no statistics
    text.json                        the text tokenizer

A visual segment holds codes (t*h*w, absent for continuous tokenizers) and latents (t*h*w*C, position-major), both in
the order time, row, column, with its grid (t, h, w); of a KL tokenizer, where they were asked for, also the
log-variances of the posterior whose means the latents then are, to draw from; and where they were asked for its raw
pixels, in patches of one frame with a grid of their own, and a frozen encoder's features (m*F, position-major), on a
grid of the latents' frames and of rows and columns of their own. Texts of an image or a video are captions of it, of
which any one may stand with it; those of an interleaved document stand where they are. `loss` False marks a segment
that is never a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data.arrow import map_table
from omniloom.stages.data.shards import Shards, open_index
from omniloom.stages.data.token_shards import SCHEMA, SCHEMA_VERSION, from_bf16


@dataclass(frozen=True)
class StoredSegment:
    """One segment as numpy views: `ids` of a text; `codes` (or None), `latents` (n, C) and `grid` of a visual one, and
    `pixels`, uint8 (m, p*p*3), with `pixel_grid` (or None), `features`, float16 (m, F), with `feature_grid` (or None),
    `log_variances` (n, C) of the latents (or None). Latents in bf16 come as float32, a copy.
    """

    kind: str
    ids: np.ndarray | None
    codes: np.ndarray | None
    latents: np.ndarray | None
    grid: tuple[int, int, int] | None
    loss: bool
    pixels: np.ndarray | None = None
    pixel_grid: tuple[int, int, int] | None = None
    features: np.ndarray | None = None
    feature_grid: tuple[int, int, int] | None = None
    log_variances: np.ndarray | None = None

    @property
    def text_ids(self) -> np.ndarray:
        """`ids`; ValueError for a visual one."""
        if self.ids is None:
            raise ValueError(f"expected a text, got a {self.kind} segment")
        return self.ids

    @property
    def length(self) -> int:
        """Tokens, without the two that frame a visual segment."""
        return len(self.text_ids) if self.grid is None else math.prod(self.grid)


class TokenSet:
    """Random access to one split of a pretokenize artifact, of which nothing is read before it is asked for: lengths
    are in `index`, contents in the shards (`stages.data.shards`). `cache_bytes` is the room that shards of a remote
    artifact may take on this machine's disk."""

    def __init__(self, artifact: Artifact, split: str, cache_bytes: int | None = None):
        self.facts = storage.load_json(artifact.file("tokens.json"))
        if self.facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{artifact.uri}: tokens of schema version {self.facts['schema_version']}, expected {SCHEMA_VERSION}"
            )
        self.text_json = storage.read_bytes(artifact.file("text.json")).decode()
        self._shards = Shards(artifact, split, cache_bytes)
        self.index = open_index(artifact, split, self._shards)

    def __len__(self) -> int:
        return len(self.index)

    def document(self, index: int) -> list[StoredSegment]:
        columns, row = self._find(index)
        return columns.document(row)

    def row(self, index: int) -> dict:
        """id, kind, label and bytes."""
        columns, row = self._find(index)
        return {name: columns.rows[name][row].as_py() for name in ("id", "kind", "label", "bytes")}

    def origin(self, index: int) -> dict[str, Any]:
        """Where a document comes from: the record's id, its source and file, and the shard of tokens, with the
        document's row in it."""
        columns, row = self._find(index)
        places, rows = self.index.shard_of(np.array([index]))
        found = {name: columns.rows[name][row].as_py() for name in ("id", "source", "path")}
        return {**found, "shard": int(self.index.shards[places[0]]), "shard_row": int(rows[0])}

    def _find(self, index: int) -> tuple[_Columns, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shards, rows = self.index.shard_of(np.array([index]))
        held = self._shards.open(int(self.index.shards[shards[0]]), _Shard)
        return held.find(int(rows[0]))

    @property
    def remote(self) -> bool:
        """Whether shards are brought to this machine before they are read."""
        return self._shards.remote

    def ahead(self, documents: np.ndarray) -> None:
        """Brings what these documents lie in to this machine, in the background."""
        self._shards.ahead(self.index.shards[np.unique(self.index.shard_of(documents)[0])].tolist())

    def indices(self, kind: str) -> np.ndarray:
        """The numbers of a kind's documents, rising."""
        return np.sort(self.index.documents(kind))

    @property
    def table(self) -> pa.Table:
        """What is known of each document beside its tokens: id, kind, label, source and path, in memory."""
        names = ["id", "kind", "label", "source", "path"]
        tables = [self._shards.open(number, _Shard).copied(names) for number in self.index.shards.tolist()]
        return pa.concat_tables([pa.schema([SCHEMA.field(name) for name in names]).empty_table(), *tables])

    def __iter__(self) -> Iterator[list[StoredSegment]]:
        return (self.document(i) for i in range(len(self)))


class _Shard:
    """One mapped file, batch by batch as it lies there: joining them would copy it into memory."""

    def __init__(self, file: Path):
        self.table = map_table(file)
        self._batches = [_Columns(batch) for batch in self.table.to_batches()]
        self._starts = np.cumsum([0] + [len(batch) for batch in self._batches])

    def find(self, row: int) -> tuple[_Columns, int]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[batch], row - int(self._starts[batch])

    def copied(self, names: list[str]) -> pa.Table:
        return self.table.select(names).take(np.arange(len(self.table)))


class _Columns:
    """Zero-copy numpy views of one record batch's nested columns: a document is found by offsets, never by Python
    objects."""

    def __init__(self, batch: pa.RecordBatch):
        self.rows = {name: batch.column(name) for name in ("id", "kind", "label", "bytes", "source", "path")}
        segments = batch.column("segments")
        self._documents = segments.offsets.to_numpy()
        fields = segments.values
        self.kind = pc.equal(fields.field("kind"), "text").to_numpy(zero_copy_only=False)
        self.loss = fields.field("loss").to_numpy(zero_copy_only=False)
        held = {field.name: fields.field(field.name) for field in fields.type if field.name not in ("kind", "loss")}
        self.lists = {name: (lists.offsets.to_numpy(), lists.values.to_numpy()) for name, lists in held.items()}

    def __len__(self) -> int:
        return len(self._documents) - 1

    def _list(self, name: str, segment: int) -> np.ndarray:
        offsets, values = self.lists[name]
        return values[offsets[segment] : offsets[segment + 1]]

    def document(self, index: int) -> list[StoredSegment]:
        tokens = []
        for segment in range(self._documents[index], self._documents[index + 1]):
            loss = bool(self.loss[segment])
            if self.kind[segment]:
                tokens.append(StoredSegment("text", self._list("ids", segment), None, None, None, loss))
                continue
            codes = self._list("codes", segment)
            latents, grid = self._floats("latents", segment)
            pixels, pixel_grid = self._placed("pixels", "pixel_grid", segment)
            features, feature_grid = self._placed("features", "feature_grid", segment)
            kept = "log_variances" in self.lists
            tokens.append(
                StoredSegment(
                    "visual",
                    None,
                    codes if len(codes) else None,
                    latents,
                    grid,
                    loss,
                    pixels,
                    pixel_grid,
                    features,
                    feature_grid,
                    self._floats("log_variances", segment)[0] if kept else None,
                )
            )
        return tokens

    def _floats(self, name: str, segment: int) -> tuple:
        """Values of the latents' places (n, C) as float32, and their grid; None for values that are not kept."""
        values, grid = self._placed(name, "grid", segment)
        if values is None or not values.size:
            return None, grid
        return from_bf16(values) if values.dtype == np.uint16 else values, grid

    def _placed(self, name: str, grid_name: str, segment: int) -> tuple:
        """Values (n, ...) and their grid of n places; None for both where there is no grid."""
        if not (grid := tuple(int(n) for n in self._list(grid_name, segment))):
            return None, None
        return self._list(name, segment).reshape(int(np.prod(grid)), -1), grid
