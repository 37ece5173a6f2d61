"""JSON files of many objects: each is a record. The files are read as streams, whatever their size."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from omniloom.stages.ingest.formats.json_array import JsonArray
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.row_mapping import RowsConfig


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
    usual_options = {"text_field": "text"}

    @cached_property
    def formats(self) -> tuple[JsonArray]:
        return (JsonArray(self.config.rows_field),)
