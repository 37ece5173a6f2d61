"""Documents of the web as rows: texts and pictures in order, of which some pictures are gone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from omniloom.stages.base import LATER, PATH, PLACEMENT
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import cells
from omniloom.stages.ingest.annotations.references import References
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.files.suffixes import IMAGES, suffix
from omniloom.stages.ingest.formats.arrow import Arrow
from omniloom.stages.ingest.formats.json_array import JsonArray
from omniloom.stages.ingest.formats.json_lines import JsonLines
from omniloom.stages.ingest.formats.parquet import Parquet
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look import row_recognition
from omniloom.stages.ingest.look.glimpse import BY_DOCUMENT, Glimpse, Recognition
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.rejects import Reject

_PEEKED = 3  # files that are looked into to recognize the kind


class WebDocumentsConfig(SourceConfig):
    media_root: str | None = Field(default=None, min_length=1, json_schema_extra=PATH | PLACEMENT)
    """A folder beside or above `uri` in which rows may name images, relative to the file that holds the row or to this
    folder. By default nothing outside `uri` is read."""
    remote: bool | None = Field(default=None, json_schema_extra=LATER)
    """Fetch images that rows name by a URI (http, https, s3, ...). By default they are left out."""


class WebDocuments(RowFiles):
    """A picture that cannot be used is left out of its document, with a reject of its own: pages outlive their
    pictures. A document none of whose pictures is left is a reject."""

    suffixes = (*Parquet.suffixes, *JsonLines.suffixes, *JsonArray.suffixes, ".arrow")
    known = (Parquet(), JsonLines(), JsonArray(), Arrow())
    names_files = True
    fields: ClassVar[tuple[str, ...]]  # of a row, that make the document

    @classmethod
    def makes(cls, config: Any) -> str:
        return "document"

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Rows with the fields; the pictures beside them are theirs."""
        for path in (paths := glimpse.having(cls.suffixes))[:_PEEKED]:
            known = next(known for known in cls.known if suffix(path) in known.suffixes)
            rows = row_recognition.first_rows(glimpse, path, known)
            if rows and all(isinstance(row.get(name), list) for row in rows for name in cls.fields):
                return Recognition(frozenset(paths) | frozenset(glimpse.having(IMAGES)), {}, BY_DOCUMENT)
        return None

    @cached_property
    def references(self) -> References:
        return References(self)

    def named_fields(self) -> Iterable[tuple[str, str]]:
        return [("uri", field) for field in self.fields]

    def wanted(self, columns: Sequence[str]) -> list[str]:
        return [column for column in columns if column in self.fields]

    @abstractmethod
    def parts(self, row: dict) -> Iterator[tuple[str, Any]]:
        """("text", text) and ("image", cell) in order; MediaError where the row is no document."""

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        from omniloom.stages.ingest import rows

        segments: list[dict] = []
        rejects: list[Reject] = []
        for kind, value in self.parts(row):
            if kind == "text":
                if not encodable(value):
                    raise MediaError("invalid_utf8", "a lone surrogate")
                segments.append(rows.text_segment(encoding.no_nul(value)))
                continue
            try:
                data, _ = cells.media(value, "image", self.references, path)
                segments.append(rows.image_segment(data, "", self.limits))
            except MediaError as error:
                rejects.append(Reject(error.code, error.message))
        if rejects and not any(segment["type"] == "image" for segment in segments):
            first = rejects[0]
            raise MediaError(first.code, f"none of {len(rejects)} pictures can be used; the first: {first.message}")
        return rows.document_row(segments, {}), rejects
