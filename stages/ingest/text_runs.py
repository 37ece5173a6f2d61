"""Runs of texts: records of texts that follow one another, held in columns from reading to Parquet.

In: `Texts`, what a kind of source gives, or `TextRun`, the same with what is known of all its records. Out: their
columns in `records.SCHEMA` and in that of `stages.ingest.splitting.keys`. What a record costs beyond its own hash is
shared by thousands: sketches (`stages.data.media.sketches`), splits and Arrow's arrays are made for all at once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

AT_ONCE = 1 << 20  # characters of a run, or of runs whose columns are made together
_COLUMNS = frozenset(("kind", "format", "text", "part", "path", "group", "license", "synthetic", "meta"))


class Texts(NamedTuple):
    """Texts of one file, each a record, and their parts. Each is text that UTF-8 can hold, not blank, without NUL."""

    texts: list[str]
    parts: Sequence[int]


class Facts(NamedTuple):
    """What all records of a run have: `group` is a key as `splits.group_key` makes it, `meta` JSON."""

    path: str
    group: str | None
    license: str | None
    synthetic: bool
    meta: str


@dataclass(slots=True)
class TextRun:
    texts: list[str]
    parts: Sequence[int]
    facts: Facts
    item: int = 0  # its number in its group
    source: str = ""
    size: int = field(init=False)  # characters

    def __post_init__(self):
        self.size = sum(map(len, self.texts))

    @classmethod
    def of_row(cls, row: Mapping) -> TextRun | None:
        """The run of one record; None where the row says more than runs hold."""
        if row["kind"] != "text" or "id" in row or not row.keys() <= _COLUMNS:
            return None
        facts = Facts(row["path"], row["group"], row["license"], row["synthetic"], row["meta"])
        return cls([row["text"]], [row["part"]], facts)

    def rows(self) -> list[dict]:
        """Its records as rows, with identity and sketch."""
        facts = self.facts._asdict()
        columns = zip(self.texts, self.parts, strict=True)
        return [completed({"kind": "text", "format": "text", "text": t, "part": p, **facts}) for t, p in columns]

    def cut(self, count: int, size: int, some: bool) -> tuple[TextRun, TextRun | None]:
        """The first records, at most `count` and of at most `size` characters in all, and the others, if any. `some`:
        one at least, whatever its size."""
        if len(self.texts) <= count and self.size <= size:
            return self, None
        fitting = bisect_right(list(accumulate(map(len, self.texts))), size)
        count = min(count, max(fitting, int(some)))
        rest = replace(self, texts=self.texts[count:], parts=self.parts[count:])
        return replace(self, texts=self.texts[:count], parts=self.parts[:count]), rest if rest.texts else None


def completed(row: dict) -> dict:
    """The row of a text, with what is made of the text."""
    from omniloom.stages.data.media.identity import text_identity
    from omniloom.stages.data.media.sketches import text_sketch

    made: dict[str, Any] = {
        "id": text_identity(row["text"]),
        "pictures": [],
        "looks": [],
        "sketch": text_sketch(row["text"]),
    }
    return {**row, **made}


class Columns:
    """Runs that follow one another, until they are made into tables."""

    def __init__(self, fractions: Mapping[str, float]):
        self._fractions = fractions
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._parts: list[int] = []
        self._runs: list[tuple] = []  # of each the facts, the item and the source
        self._counts: list[int] = []
        self.size = 0  # characters

    def add(self, run: TextRun) -> None:
        self._texts += run.texts
        self._parts += run.parts
        self._runs.append((*run.facts, run.item, run.source))
        self._counts.append(len(run.texts))
        self.size += run.size

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The records and their keys; the next runs begin anew."""
        import pyarrow as pa

        from omniloom.stages.data import records
        from omniloom.stages.ingest.splitting import keys

        columns = self._columns()
        self._clear()
        return tuple(
            pa.Table.from_arrays(
                [columns[f.name] if f.name in columns else _lacking(f, len(columns["id"])) for f in schema],
                schema=schema,
            )
            for schema in (records.SCHEMA, keys.SCHEMA)
        )

    def _columns(self) -> dict[str, pa.Array]:
        import numpy as np
        import pyarrow as pa

        from omniloom.stages.data.records import SPLITS
        from omniloom.stages.ingest.splitting.splits import own_splits

        encoded = [text.encode() for text in self._texts]
        digests = b"".join([hashlib.sha256(text).digest() for text in encoded])
        count, ids = len(encoded), digests.hex()
        of_runs = dict(zip((*Facts._fields, "item", "source"), zip(*self._runs, strict=True), strict=True))
        groups = of_runs["group"]
        counts = np.array(self._counts)
        firsts = np.frombuffer(digests, np.uint8).reshape(-1, 32)[:, :8]
        if any(groups):
            named = np.array([group is not None for group in groups])
            own = b"".join(bytes.fromhex(group[:16]) if group else bytes(8) for group in groups)
            of_groups = np.repeat(np.frombuffer(own, np.uint8).reshape(-1, 8), counts, axis=0)
            firsts = np.where(np.repeat(named, counts)[:, None], of_groups, firsts)
        codes = own_splits(np.ascontiguousarray(firsts).view(">u8")[:, 0], self._fractions)
        kinds = {"synthetic": pa.bool_(), "item": pa.uint32()}
        held = {name: _repeated(pa.array(v, kinds.get(name, pa.string())), counts) for name, v in of_runs.items()}
        return held | {
            "id": _strings(ids.encode(), np.arange(count + 1) * 64),
            "kind": pa.repeat(pa.scalar("text"), count),
            "format": pa.repeat(pa.scalar("text"), count),
            "split": pa.array(np.array(SPLITS, object)[codes], pa.string()),
            "text": _strings(b"".join(encoded), np.cumsum([0, *map(len, encoded)])),
            "part": pa.array(self._parts, pa.int32()),
            "sketch": (sketches := _sketches(self._texts)),
            "sketched": sketches.is_valid(),
            "captioned": pa.array(np.zeros(count, np.uint32)),
            "multipage": pa.repeat(pa.scalar(False), count),
        }


def _repeated(values: pa.Array, counts: np.ndarray) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if len(values) == 1:
        return pa.repeat(values[0], int(counts[0]))
    return values if (counts == 1).all() else values.take(pa.array(np.repeat(np.arange(len(values)), counts)))


def _strings(data: bytes, offsets: np.ndarray) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


def _sketches(texts: list[str]) -> pa.Array:
    """binary: of each text long enough to have one, else null."""
    import numpy as np
    import pyarrow as pa

    from omniloom.stages.data.media.sketches import LEAST_RUNS, text_sketches

    sketches, runs = text_sketches(texts)
    there = runs >= LEAST_RUNS
    offsets = np.concatenate([[0], np.cumsum(there * sketches.shape[1] * sketches.itemsize)]).astype(np.int32)
    valid = pa.array(there).buffers()[1]
    values = sketches if there.all() else sketches[there]
    return pa.Array.from_buffers(
        pa.binary(), len(texts), [valid, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    )


def _lacking(column: Any, count: int) -> pa.Array:
    """A column that texts have nothing in: empty lists where it cannot be null, and of captions."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(column.type) and (not column.nullable or column.name == "captions"):
        return pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.nulls(0, column.type.value_type), column.type)
    return pa.nulls(count, column.type)
