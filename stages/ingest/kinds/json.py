"""JSON files of many objects: each is a record. The files are read as streams, whatever their size."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Literal

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.formats import json_stream
from omniloom.stages.ingest.formats.json_array import JsonArray
from omniloom.stages.ingest.kinds.base import Contents
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look import row_recognition
from omniloom.stages.ingest.look.glimpse import HEAD_BYTES, Glimpse, Recognition


class JsonConfig(RowsConfig):
    """JSON files, each an array of objects, an object that holds such an array, or objects one after another. Each
    object is a record."""

    kind: Literal["json"]
    """JSON files of many objects, each a record."""
    rows_field: str | None = None
    """The key of the array of rows where a file is one object, such as `data`."""


class Json(RowFiles):
    Config = JsonConfig
    suffixes = JsonArray.suffixes
    known = (JsonArray(),)

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """By what the first rows hold, of the array that an object at the top holds where it does."""
        paths = glimpse.having(cls.suffixes)
        field = next(iter(json_stream.array_fields(iter([glimpse.head(paths[0])]))), None) if paths else None
        if field is None:
            return super().recognize(glimpse)
        found = row_recognition.recognize(glimpse, paths, (JsonArray(field),), cls.usual_options)
        return replace(found, options={"rows_field": field, **found.options}) if found else None

    def check(self, contents: Contents) -> None:
        """As of all rows; where a file is one object that holds arrays, the error says so."""
        try:
            super().check(contents)
        except InputError as error:
            arrays = [] if self.config.rows_field else self._arrays(next(iter(contents.of_kind)).path)
            hint = f"; the file is one object: rows_field: {arrays[0]} reads the array in it" if arrays else ""
            raise InputError(error.message + hint, field=error.field) from None

    def _arrays(self, path: str) -> list[str]:
        return json_stream.array_fields(self.root.blocks(path, 0, HEAD_BYTES), self.config.encoding)

    @cached_property
    def formats(self) -> tuple[JsonArray]:
        return (JsonArray(self.config.rows_field),)
