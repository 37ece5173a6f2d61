"""Records: the schema of what ingest and other stages that make records write, and every later stage reads.

In: rows as dictionaries. Out: Parquet shards `records/shard-000000-0000.parquet`, one row per item, in the order of
the sources. A row holds the media as the bytes that the source had (never re-encoded) with the facts found by
decoding. What holds of records otherwise than their shards say lies beside these (`stages.data.changes`).

| kind     | media        | text    | segments | caption, captions, label |
| image    | image bytes  | null    | null     | may be null or empty     |
| video    | video bytes  | null    | null     | may be null or empty     |
| text     | null         | text    | null     | null                     |
| document | null         | null    | in order | null                     |
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.infra.artifacts import names_below
from omniloom.stages.data import changes

SCHEMA_VERSION = 2
KINDS = ("image", "video", "text", "document")
SPLITS = ("train", "validation", "test")

SEGMENT = pa.struct(
    [
        pa.field("type", pa.string(), nullable=False),  # "text" or "image"
        pa.field("text", pa.string()),  # the text, or the image's alt text
        pa.field("media", pa.binary()),  # the image's encoded bytes
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)

SCHEMA = pa.schema(
    [
        pa.field(
            "id", pa.string(), nullable=False
        ),  # 64 hex digits: what it holds, decoded: `stages.data.media.identity`
        pa.field("kind", pa.string(), nullable=False),  # one of KINDS
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS, as `stages.ingest.splitting.splits` has it
        pa.field("media", pa.binary()),  # encoded bytes as in the source
        pa.field("format", pa.string()),  # what the bytes are: png, jpeg, mp4, ... not the file's suffix
        pa.field("caption", pa.string()),  # the first of `captions`
        pa.field("captions", pa.list_(pa.string())),  # all that the sources say, each once; empty or null without one
        pa.field("label", pa.string()),
        pa.field("text", pa.string()),
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("width", pa.int32()),  # pixels as displayed: EXIF and display rotation applied
        pa.field("height", pa.int32()),
        pa.field("frames", pa.int32()),  # 1 for an image; decoded frames of a video
        pa.field("fps", pa.float64()),  # mean frames per second
        pa.field("duration", pa.float64()),  # seconds
        pa.field("source", pa.string(), nullable=False),  # the source's name
        pa.field("path", pa.string(), nullable=False),  # relative to the source's root
        pa.field("part", pa.int32(), nullable=False),  # which item of that file: text chunk, JSONL line; else 0
        pa.field("license", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),  # made by a model of this project
        pa.field("meta", pa.string(), nullable=False),  # a JSON object
    ],
    metadata={"omniloom.records": str(SCHEMA_VERSION)},
)

_DICTIONARY = ["kind", "split", "format", "label", "source", "license"]
_LEAVES = [name for name in SCHEMA.names if name not in ("captions", "segments")]
_LEAVES += ["captions.list.element", *(f"segments.list.element.{field.name}" for field in SEGMENT)]
# Media are compressed already: as they are they cost no time, neither here nor where they are read.
_TEXTS = {"text", "captions.list.element", "segments.list.element.text"}
WRITER = {
    "compression": {name: "none" if name.endswith("media") else "zstd" for name in _LEAVES},
    "use_dictionary": _DICTIONARY,
}
_ROW_GROUP_BYTES = 16 << 20


def split_of(record_id: str, fractions: Mapping[str, float]) -> str:
    """The split that an id or a group's key falls in: its first 64 bits as a number in [0, 1) cut by `fractions`.

    `fractions` maps each of SPLITS to a share; they sum to 1. `stages.ingest.splitting.splits` says what a
    record's split is.
    The held-out splits lie at the low end: growing the test share never moves a record from test elsewhere.
    """
    total = sum(fractions.get(split, 0.0) for split in SPLITS)
    if abs(total - 1.0) > 1e-6:
        raise ValueError(f"splits: the fractions sum to {total:g}, expected 1")
    position = int(record_id[:16], 16) / 2**64
    if position < fractions.get("test", 0.0):
        return "test"
    if position < fractions.get("test", 0.0) + fractions.get("validation", 0.0):
        return "validation"
    # A train share of zero must hold in spite of rounding in the sum.
    return "train" if fractions.get("train", 0.0) > 0 else "validation" if fractions.get("validation") else "test"


def shard_name(index: int, part: int = 0) -> str:
    """Where a shard lies: the number `part` of those that come from what is number `index` of the work."""
    return f"records/shard-{index:06d}-{part:04d}.parquet"


def group_of(name: str) -> int:
    """The number of the work that a shard comes from, by its name, shard-000012-0000.parquet."""
    return int(name.split("-")[1])


def shards(artifact_uri: str) -> list[str]:
    """URIs of the record shards below an artifact of records, in the order of the sources."""
    names = names_below(artifact_uri, "records")
    return [storage.join(artifact_uri, "records", name) for name in names if name.endswith(".parquet")]


def row_bytes(row: Mapping) -> int:
    """What a row holds: bytes of its media and characters of its texts, those of its segments included."""
    size = len(row.get("media") or b"") + len(row.get("text") or "")
    return size + sum(len(s.get("media") or b"") + len(s.get("text") or "") for s in row.get("segments") or ())


@contextlib.contextmanager
def shard_writer(uri: str) -> Iterator[ShardWriter]:
    """What takes the rows of a shard, which is there, whole, once the block is left without an error."""
    with (
        storage.writing(uri) as target,
        contextlib.closing(pq.ParquetWriter(file := storage.Digest(target), SCHEMA, **WRITER)) as parquet,
    ):
        writer = ShardWriter(parquet, file)
        yield writer
        writer.flush()
        parquet.close()
        writer.facts = file.facts()


class ShardWriter:
    """Holds a row group at a time (about 16 MiB of rows), so that readers can stream and nobody holds a shard.

    `refused` are the rejects {source, path, part, code, message} of rows that do not fit the schema. `facts` are the
    {bytes, sha256} of the shard once it is written.
    """

    def __init__(self, parquet: pq.ParquetWriter, file: storage.Digest):
        self.refused: list[dict] = []
        self.facts: dict = {}
        self._parquet, self._file, self._size = parquet, file, 0
        self._written = 0  # bytes of rows
        self._rows: list[dict] = []
        self._tables: list[pa.Table] = []  # before the rows

    def add(self, row: dict) -> None:
        """A row; missing keys are null."""
        self._rows.append(_with_captions(row))
        self._size += row_bytes(row)
        if self._size >= _ROW_GROUP_BYTES:
            self.flush()

    def add_table(self, table: pa.Table, size: int) -> None:
        """Rows of `SCHEMA` that hold `size` bytes in all, as `row_bytes` counts them."""
        self._close_rows()
        self._tables.append(table)
        self._size += size
        if self._size >= _ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        self._close_rows()
        tables, self._tables = self._tables, []
        self._written, self._size = self._written + self._size, 0
        if tables:
            table = pa.concat_tables(tables)
            self._parquet.write_table(table, max(1, len(table)))

    def packed(self, expected: float) -> float:
        """How many bytes of the file a byte of rows takes, by what is written; `expected` as long as that is too little
        to tell."""
        return self._file.tell() / self._written if self._written >= _ROW_GROUP_BYTES else expected

    def _close_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._tables.append(self._table(rows))

    def _table(self, rows: list[dict]) -> pa.Table:
        try:
            return pa.Table.from_pylist(rows, schema=SCHEMA)
        except Exception:  # one of them: which, and why
            good = [row for row in rows if self._fits(row)]
            return pa.Table.from_pylist(good, schema=SCHEMA)

    def _fits(self, row: dict) -> bool:
        try:
            pa.Table.from_pylist([row], schema=SCHEMA)
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.refused.append(
                {
                    **{name: row[name] for name in ("source", "path", "part")},
                    "code": "failed",
                    "message": message.encode("utf-8", "backslashreplace").decode(),
                }
            )
            return False
        return True


def _with_captions(row: dict) -> dict:
    """A row that names its one caption has it among its captions."""
    return row if row.get("captions") or not row.get("caption") else {**row, "captions": [row["caption"]]}


def packed_bytes(rows: Iterable[dict]) -> int:
    """What these rows take in a shard."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, **WRITER) as writer:
        writer.write_table(pa.Table.from_pylist([_with_captions(row) for row in rows], schema=SCHEMA))
    return sink.tell()


def write_shard(uri: str, rows: Iterable[dict]) -> None:
    """A shard of these rows. ValueError for one that does not fit the schema."""
    with shard_writer(uri) as writer:
        for row in rows:
            writer.add(row)
        writer.flush()
        if writer.refused:
            raise ValueError(f"{uri}: {len(writer.refused)} rows do not fit: {writer.refused[0]}")


Key = tuple[str, str, int]  # (source, path, part), which no two records of an artifact share


def key_of(row: Mapping) -> Key:
    return row["source"], row["path"], row["part"]


def rewrite_without(source: str, target: str, rows: set[int]) -> None:
    """A shard without these of its rows, at another place. A row group at a time is in memory."""
    fs, path = storage.filesystem(source)
    at = 0
    with (
        fs.open(path, "rb") as file,
        storage.writing(target) as sink,
        pq.ParquetWriter(sink, SCHEMA, **WRITER) as writer,
    ):
        reader = pq.ParquetFile(file)
        for group in range(reader.num_row_groups):
            table = reader.read_row_group(group)
            writer.write_table(table.filter(pa.array([row not in rows for row in range(at, at + len(table))])))
            at += len(table)


def iterate(
    artifact_uri: str,
    *,
    kinds: Iterable[str] | None = None,
    split: str | None = None,
    columns: Iterable[str] | None = None,
    batch_size: int = 64,
) -> Iterator[dict]:
    """Every record below an artifact of records as a dictionary, in order; at most `batch_size` rows in memory
    at once.
    """
    for shard in shards(artifact_uri):
        yield from iterate_shard(shard, kinds=kinds, split=split, columns=columns, batch_size=batch_size)


def iterate_shard(
    uri: str,
    *,
    kinds: Iterable[str] | None = None,
    split: str | None = None,
    columns: Iterable[str] | None = None,
    batch_size: int = 64,
) -> Iterator[dict]:
    """The records of one shard, as `stages.data.changes` has them. Raises ValueError for a file of another schema
    version.

    No more of the file is read than the columns, of which `segments.text` is a part of one: the segments have that
    field alone; and no row group that by its own words holds none of the kinds, or nothing of the split.
    """
    wanted = list(columns) if columns is not None else list(SCHEMA.names)
    names = list(dict.fromkeys(name.partition(".")[0] for name in wanted))
    kinds = list(kinds) if kinds is not None else None
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as file:
        reader = pq.ParquetFile(file)
        version = (reader.schema_arrow.metadata or {}).get(b"omniloom.records", b"none").decode()
        if version != str(SCHEMA_VERSION):
            raise ValueError(f"{uri}: records of schema version {version}, expected {SCHEMA_VERSION}")
        read = list(dict.fromkeys([*(name.replace(".", ".list.element.") for name in wanted), "kind", "split"]))
        changed, at = changes.of_shard(uri), 0
        asked = {"kind": kinds, "split": [split] if split and not (changed and changed.splits) else None}
        for number, group in enumerate(map(reader.metadata.row_group, range(reader.num_row_groups))):
            if not all(may_hold(group, name, values) for name, values in asked.items() if values is not None):
                at += group.num_rows
                continue
            for batch in reader.iter_batches(batch_size=batch_size, row_groups=[number], columns=read):
                count = len(batch)
                batch, at = changed.apply(batch, at) if changed else batch, at + count
                if kinds is not None:
                    batch = batch.filter(pc.is_in(batch.column("kind"), pa.array(kinds, pa.string())))
                if split is not None:
                    batch = batch.filter(pc.equal(batch.column("split"), split))
                yield from _rows(batch.select(names))


def may_hold(group: pq.RowGroupMetaData, name: str, values: Iterable[str]) -> bool:
    """Whether one of the values lies between the least and the greatest of the column."""
    leaf = next(number for number in range(group.num_columns) if group.column(number).path_in_schema == name)
    found = group.column(leaf).statistics
    return not (found and found.has_min_max) or any(found.min <= value <= found.max for value in values)


def _rows(batch: pa.RecordBatch) -> Iterator[dict]:
    """As `to_pylist` gives them; most kinds leave most columns empty, which cost nothing here."""
    nothing = [None] * len(batch)
    columns = [nothing if column.null_count == len(batch) else column.to_pylist() for column in batch.columns]
    names = batch.schema.names
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def text_bytes(artifact_uri: str) -> int:
    """How many bytes of texts and captions there are, by the shards' own words."""
    size = 0
    for shard in shards(artifact_uri):
        fs, path = storage.filesystem(shard)
        with fs.open(path, "rb") as file:
            metadata = pq.ParquetFile(file).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            size += sum(column.total_uncompressed_size for column in columns if column.path_in_schema in _TEXTS)
    return size


def counts(artifact_uri: str) -> dict[str, int | float]:
    """Metrics of every stage that makes records, which later stages read: how many there are,
    of each kind (in all, and to train on) and in each split, how many a model of this project made, and the captions of
    images and videos."""
    numbers = dict.fromkeys(("records", "synthetic", "synthetic_fraction", "uncaptioned", "captions", "multipage"), 0)
    names = (*(name for kind in KINDS for name in (kind, f"train_{kind}")), *SPLITS)
    numbers |= dict.fromkeys((f"records_{name}" for name in names), 0)
    for row in iterate(artifact_uri, columns=("kind", "split", "synthetic", "captions", "meta"), batch_size=4096):
        for name in ("records", f"records_{row['kind']}", f"records_{row['split']}"):
            numbers[name] += 1
        numbers[f"records_train_{row['kind']}"] += row["split"] == "train"
        numbers["synthetic"] += row["synthetic"]
        if row["kind"] in ("image", "video"):
            numbers["captions"] += len(row["captions"] or ())
            numbers["uncaptioned"] += not row["captions"]
            numbers["multipage"] += "pages" in json.loads(row["meta"])
    return numbers | {"synthetic_fraction": numbers["synthetic"] / max(1, numbers["records"])}
