"""Tokens: what pretokenize writes and training reads; uncompressed Arrow IPC, memory-mapped.

    tokens/SPLIT/shard-00000.arrow   one row a document, in the order of the records
    tokens.json                      schema version, digests of both tokenizers, sizes and aspect ratios, latents' mean
                                     and std, channels of features (null without), counts; of text alone no digest of
                                     pictures' and no statistics
    text.json                        the text tokenizer

A visual segment holds codes (t*h*w, absent for continuous tokenizers) and latents (t*h*w*C, position-major), both in
the order time, row, column, with its grid (t, h, w); and where they were asked for its raw pixels, in patches of one
frame with a grid of their own, and a frozen encoder's features (m*F, position-major), on a grid of the latents' frames
and of rows and columns of their own. Texts of an image or a video are captions of it, of which any one may stand with
it; those of an interleaved document stand where they are. `loss` False marks a segment that is never a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data.arrow import map_table

SCHEMA_VERSION = 5

SEGMENT = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),  # "text" or "visual"
        pa.field("ids", pa.list_(pa.int32())),
        pa.field("codes", pa.list_(pa.int32())),
        pa.field("latents", pa.list_(pa.float32())),
        pa.field("grid", pa.list_(pa.int32())),
        pa.field("pixels", pa.list_(pa.uint8())),
        pa.field("pixel_grid", pa.list_(pa.int32())),
        pa.field("features", pa.large_list(pa.float16())),  # a shard's may be more than 2^31
        pa.field("feature_grid", pa.list_(pa.int32())),
        pa.field("loss", pa.bool_(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # the record's kind
        pa.field("label", pa.string()),
        pa.field("source", pa.string()),  # the record's source and file, over which draws are spread
        pa.field("path", pa.string()),
        pa.field("bytes", pa.int32(), nullable=False),  # UTF-8 bytes of the text, for bits per byte
        pa.field("segments", pa.list_(SEGMENT), nullable=False),
    ],
    metadata={"omniloom.tokens": str(SCHEMA_VERSION)},
)


def write_shard(uri: str, rows: list[dict]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), max_chunksize=1024)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Token:
    """One segment as numpy views: `ids` of a text; `codes` (or None), `latents` (n, C) and `grid` of a visual one, and
    `pixels`, uint8 (m, p*p*3), with `pixel_grid` (or None), `features`, float16 (m, F), with `feature_grid` (or None).
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
    """Random access to one split of a pretokenize artifact. Lengths are read once, contents on demand."""

    def __init__(self, artifact: Artifact, split: str):
        folder = artifact.local()
        self.facts = storage.load_json(str(folder / "tokens.json"))
        if self.facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{folder}: tokens of schema version {self.facts['schema_version']}, expected {SCHEMA_VERSION}"
            )
        self.text_json = (folder / "text.json").read_text(encoding="utf-8")
        files = sorted(Path(folder, "tokens", split).glob("shard-*.arrow"))
        # Batch by batch as they lie in the files: joining them would copy the corpus into memory.
        batches = [batch for file in files for batch in map_table(file).to_batches()]
        self.table = pa.Table.from_batches(batches, schema=SCHEMA)
        self.kinds = np.array(self.table["kind"].to_pylist(), dtype=object)
        self._columns = [_Columns(batch.column("segments")) for batch in batches]
        self._starts = np.cumsum([0] + [len(batch) for batch in batches])

    def __len__(self) -> int:
        return len(self.table)

    def document(self, index: int) -> list[Token]:
        columns, row = self._find(index)
        return columns.document(row)

    def lengths(self, index: int, representation: str = "latents") -> list[tuple[str, int]]:
        """(kind, tokens) of each segment in one of `models.unified.representations`, without touching the contents;
        the two that frame a visual segment are not counted."""
        columns, row = self._find(index)
        return columns.lengths(row, "pixel_grid" if representation == "pixels" else "grid")

    def _find(self, index: int) -> tuple[_Columns, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._columns[batch], index - int(self._starts[batch])

    def row(self, index: int) -> dict:
        """id, kind, label and bytes."""
        return {name: self.table[name][index].as_py() for name in ("id", "kind", "label", "bytes")}

    def indices(self, kind: str) -> np.ndarray:
        return np.flatnonzero(self.kinds == kind)

    def __iter__(self) -> Iterator[list[Token]]:
        return (self.document(i) for i in range(len(self)))


class _Columns:
    """Zero-copy numpy views of one record batch's nested columns: a document is found by offsets, never by Python
    objects."""

    def __init__(self, segments: pa.ListArray):
        self.rows = segments.offsets.to_numpy()
        fields = segments.values
        self.kind = np.array([k == "text" for k in fields.field("kind").to_pylist()], dtype=bool)
        self.loss = np.array(fields.field("loss").to_pylist(), dtype=bool)
        self.lists = {
            name: (fields.field(name).offsets.to_numpy(), fields.field(name).values.to_numpy())
            for name in ("ids", "codes", "latents", "grid", "pixels", "pixel_grid", "features", "feature_grid")
        }

    def _list(self, name: str, segment: int) -> np.ndarray:
        offsets, values = self.lists[name]
        return values[offsets[segment] : offsets[segment + 1]]

    def lengths(self, index: int, grid: str) -> list[tuple[str, int]]:
        found = []
        for segment in range(self.rows[index], self.rows[index + 1]):
            if self.kind[segment]:
                offsets = self.lists["ids"][0]
                found.append(("text", int(offsets[segment + 1] - offsets[segment])))
            else:
                found.append(("visual", int(np.prod(self._list(grid, segment)))))
        return found

    def document(self, index: int) -> list[Token]:
        tokens = []
        for segment in range(self.rows[index], self.rows[index + 1]):
            loss = bool(self.loss[segment])
            if self.kind[segment]:
                tokens.append(Token("text", self._list("ids", segment), None, None, None, loss))
                continue
            codes = self._list("codes", segment)
            latents, grid = self._placed("latents", "grid", segment)
            tokens.append(
                Token(
                    "visual",
                    None,
                    codes if len(codes) else None,
                    latents,
                    grid,
                    loss,
                    *self._placed("pixels", "pixel_grid", segment),
                    *self._placed("features", "feature_grid", segment),
                )
            )
        return tokens

    def _placed(self, name: str, grid_name: str, segment: int) -> tuple:
        """Values (n, ...) and their grid of n places; None for both where there is no grid."""
        if not (grid := tuple(int(n) for n in self._list(grid_name, segment))):
            return None, None
        return self._list(name, segment).reshape(int(np.prod(grid)), -1), grid
