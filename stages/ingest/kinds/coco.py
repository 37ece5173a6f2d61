"""Pictures with captions as COCO has them: folders of pictures, and annotations that name them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Literal

from pydantic import Field

from omniloom.infra.errors import InputError
from omniloom.stages.base import path_to
from omniloom.stages.ingest.annotations import fields
from omniloom.stages.ingest.annotations.manifests import Manifest, ManifestFile, read_manifest
from omniloom.stages.ingest.annotations.names import Names
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.suffixes import IMAGES, suffix
from omniloom.stages.ingest.formats import json_stream
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.look.glimpse import BY_DOCUMENT, Glimpse, Recognition
from omniloom.stages.ingest.options import UNNAMED, SourceConfig
from omniloom.stages.ingest.rejects import Reject

_CHECKED_BYTES = 4 << 20  # of annotations that are read on every plan; larger ones when they are ingested


class CocoConfig(SourceConfig):
    """Pictures with captions as COCO has them. Pictures that no annotation names are not read."""

    kind: Literal["coco"]
    """Pictures with captions as COCO has them."""
    annotations: str | None = Field(None, json_schema_extra=path_to("source"))
    """The file of annotations: a path below `uri` (or starting there), or a URI. By default every JSON file below `uri`
    that holds captions."""


class Coco(SourceKind):
    Config = CocoConfig
    suffixes = IMAGES

    @classmethod
    def makes(cls, config: CocoConfig) -> str:
        return "image"

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """JSON whose top is an object with images and annotations, or with images and their sentences."""
        pictures, tables = glimpse.having(IMAGES), glimpse.having((".json",))
        found = [path for path in tables if pictures and _is_annotations(glimpse, path)]
        if not found:
            return None
        folders = {posixpath.dirname(path) for path in found}
        others = [path for path in tables if posixpath.dirname(path) in folders]
        options = {"annotations": found[0]} if len(found) == 1 else {}
        return Recognition(frozenset(pictures).union(others), options, BY_DOCUMENT)

    # ---- planning ----

    @cached_property
    def manifest(self) -> ManifestFile | None:
        if self.config.annotations is None:
            return None
        return ManifestFile(self.root, self.config.annotations, f"{self.field}.annotations")

    def matters(self, path: str) -> bool:
        return super().matters(path) or (self.manifest is None and suffix(path) == ".json")

    def check(self, contents: Contents) -> None:
        files = [file for file in contents.files if suffix(file.path) == ".json"]
        size = self.manifest.size(contents.files) if self.manifest else sum(file.size for file in files)
        if size <= _CHECKED_BYTES:
            self.items(contents, Counter())

    def items(self, contents: Contents, notes: Counter) -> list[dict]:
        """One per annotated picture, with its "captions" and "license", in the order of the paths; then what the
        annotations say that cannot be used."""
        names = _Pictures(self, contents.of_kind)
        found: dict[str, dict] = {}
        rejected: list[dict] = []
        for table in self._tables(contents.files):
            matched = 0
            for number, row in table.rows:
                path = None if isinstance(row, Reject) else names.find(row["file_name"], table)
                if isinstance(row, Reject):
                    rejected.append(self.rejected(table.where(number), row))
                elif path is None:
                    missing = Reject("missing_file", f"named in {table.where(number)}")
                    rejected.append(self.rejected(row["file_name"], missing))
                else:
                    matched += 1
                    rejected += self._add(found.setdefault(path, {}), row, table.where(number))
            if not matched:
                raise InputError(
                    f"{table.name}: none of its {len(table.rows)} images is a picture below {self.root.place}; set uri "
                    f"to the folder that holds the pictures",
                    field=table.field,
                )
        items = [{**self.item(file), **found[file.path]} for file in contents.of_kind if file.path in found]
        return items + rejected

    def _tables(self, files: Iterable[SourceFile]) -> Iterator[Manifest]:
        if self.manifest:
            yield self.manifest.read()
            return
        paths = [file.path for file in files if suffix(file.path) == ".json" and not file.reject]
        usual = [path for path in paths if "captions" in path or "annotations" in path or "dataset" in path]
        some = False
        for path in usual or paths:
            table = read_manifest(self.root, self.root.uri(path), path, self.root.uri_field)
            if any(isinstance(row, dict) and row.get("captions") and "file_name" in row for _, row in table.rows):
                some = True
                yield table
        if not some:
            raise InputError(
                f"{self.root.place}: no JSON file below it holds captions as COCO has them; set annotations",
                field=self.root.uri_field,
            )

    def _add(self, known: dict, row: dict, where: str) -> list[dict]:
        """Add what a row says of a picture."""
        facts, bad = fields.facts(row, UNNAMED, ["captions"])
        captions = [*known.get("captions", ()), *facts.pop("captions", ())]
        known |= facts | ({"captions": list(dict.fromkeys(captions))} if captions else {})
        return [self.rejected(where, problem) for problem in bad]

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict | Reject]:
        from omniloom.stages.ingest import rows

        row = rows.media_row("image", self.content(item["path"], item["size"]), self.limits)
        yield {**row, **rows.captioned(item.get("captions", []))}


def _is_annotations(glimpse: Glimpse, path: str) -> bool:
    """Whether the beginning of a JSON file is that of captions; of a long one the annotations come late."""
    arrays, text = json_stream.array_fields(iter([glimpse.head(path)])), glimpse.text(path)
    later = '"annotations"' not in text and "caption" in posixpath.basename(path)
    return "images" in arrays and ('"caption"' in text or '"sentences"' in text or later)


class _Pictures:
    """Pictures by what annotations call them: a path from the root or the annotations' folder, else the bare name that
    one picture has, or that one has in a folder whose name the annotations' own name ends with (train2017)."""

    def __init__(self, kind: SourceKind, files: Iterable[SourceFile]):
        self._names = Names(kind.root, (file.path for file in files))
        self._bare: dict[str, list[str]] = {}
        for file in files:
            self._bare.setdefault(posixpath.basename(file.path), []).append(file.path)

    def find(self, name: str, table: Manifest) -> str | None:
        folder = posixpath.dirname(table.name)
        if path := self._names.find(name, ("", folder)):
            return path
        candidates = self._bare.get(posixpath.basename(name), [])
        if len(candidates) > 1:
            stem = posixpath.splitext(posixpath.basename(table.name))[0]
            candidates = [path for path in candidates if stem.endswith(posixpath.basename(posixpath.dirname(path)))]
        return candidates[0] if len(candidates) == 1 else None
