"""Manifests: rows that say of files what is on them, as JSON lines, a table (CSV, TSV, Parquet), a JSON array, or
annotations as COCO has them.

In: a manifest's bytes. Out: rows with their line numbers; a line that is no row is a `Reject`, and the others stay.
What the fields of a row mean, `stages.ingest.annotations.fields` says.

A manifest that was asked for and cannot be read is an `InputError`: what it says of the files was wanted.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fsspec.core import split_protocol

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding as encodings
from omniloom.stages.ingest.files.listing import SourceFile, list_files
from omniloom.stages.ingest.files.paths import hidden
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.formats import coco, delimited
from omniloom.stages.ingest.formats.json_rows import parse_row
from omniloom.stages.ingest.formats.json_stream import objects
from omniloom.stages.ingest.rejects import Reject

# Names that the datasets library gives a manifest.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_ROW_BYTES = 1 << 30  # of a manifest, which is read whole


@dataclass
class Manifest:
    """`name` as messages tell it; `field` of the config; `starts`: folders below the root that its names may be
    relative to."""

    name: str
    rows: list[tuple[int, dict | Reject]]
    field: str
    starts: tuple[str, ...] = ("",)
    keys: list[str] = dataclasses.field(default_factory=list)  # of all rows, in the order they come

    def __post_init__(self):
        self.keys = list(dict.fromkeys(key for _, row in self.rows if isinstance(row, dict) for key in row))

    def where(self, line: int) -> str:
        return f"{posixpath.basename(self.name)}:{line}"


class ManifestFile:
    """Where the `manifest` of a source lies: below its root, or elsewhere. `field` is the place in the config. To be
    asked once the root's files are listed."""

    def __init__(self, root: Root, manifest: str, field: str):
        self.root, self.manifest, self.field = root, manifest, field

    @cached_property
    def uri(self) -> str:
        if "://" in self.manifest or self.manifest.startswith(("/", "~")):
            return storage.absolute(self.manifest)
        folder = posixpath.dirname(self.root.place) if self.root.is_file else self.root.place
        protocol, path = split_protocol(storage.join(folder, self.manifest))
        path = posixpath.normpath(path)
        return f"{protocol}://{path}" if protocol else path

    @cached_property
    def below(self) -> str | None:
        """Its path below the root where it lies among the files there."""
        below = None if self.root.is_file else self.root.relative(self.uri)
        return None if below is None or hidden(below) else below

    def check(self, files: Iterable[SourceFile]) -> None:
        """InputError where it should be among the `files` below the root and is not."""
        if self.below is not None and self.below not in {file.path for file in files}:
            raise InputError(f"no such file: {self.uri}", field=self.field)

    def outside(self) -> SourceFile:
        """What is known of a manifest that does not lie below the root."""
        elsewhere = Root(self.root.source, self.root.index, self.uri, self.field.removeprefix(f"{self.root.field}."))
        files = list_files(elsewhere)
        if not elsewhere.is_file:
            raise InputError(f"is a folder, expected a file: {self.uri}", field=elsewhere.uri_field)
        return files[0]

    def size(self, files: Iterable[SourceFile]) -> int:
        below = self.below
        return next((file.size for file in files if file.path == below), 0) if below else self.outside().size

    def read(self, starts: tuple[str, ...] = ("",)) -> Manifest:
        return read_manifest(self.root, self.uri, self.below, self.field, starts)


def read_manifest(root: Root, uri: str, below: str | None, field: str, starts: tuple[str, ...] = ("",)) -> Manifest:
    """The manifest at `uri`, which is at the path `below` the root, if it is there."""
    try:
        if below is not None:
            data = root.read(below)
        else:
            elsewhere = Root(root.source, root.index, uri)
            elsewhere.is_file = True
            data = elsewhere.read(posixpath.basename(uri))
        rows = parse(data, uri, root.source.encoding)
    except MediaError as error:
        if error.code == "missing_file":
            raise InputError(f"no such file: {uri}", field=field) from None
        raise InputError(f"{uri} cannot be read: {error.message}", field=field) from None
    return Manifest(uri, rows, field, starts)


# ---- parsing ----


def parse(data: bytes, name: str, encoding: str) -> list[tuple[int, dict | Reject]]:
    """(line, row) of a manifest, by the suffix of its `name`; what is no row comes as `Reject`. Rows of JSON and
    of Parquet have numbers for lines. MediaError where nothing can be read."""
    ending = suffix(name)
    if delimiters := delimited.DELIMITERS.get(ending):
        return list(delimited.table(delimited.Lines(iter([data]), encoding, len(data) + 1), delimiters))
    if ending == ".parquet":
        from omniloom.stages.ingest.formats import parquet

        return list(parquet.all_rows(data))
    if ending == ".json":
        if (annotations := coco.parse(data, encoding)) is not None:
            return list(enumerate(coco.rows(annotations), 1))
        return list(objects(iter([data]), _ROW_BYTES, encoding))
    rows: list[tuple[int, dict | Reject]] = []
    for number, (line, line_encoding) in enumerate(encodings.lines(iter([data]), _ROW_BYTES, encoding), 1):
        if line and line.strip():
            try:
                rows.append((number, parse_row(line, line_encoding)))
            except MediaError as error:
                rows.append((number, Reject(error.code, error.message)))
    return rows
