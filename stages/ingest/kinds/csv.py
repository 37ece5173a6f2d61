"""CSV and TSV tables: each row is a record, by columns that are named."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.formats.delimited import Delimited
from omniloom.stages.ingest.kinds.row_files import RowFiles


class CsvConfig(RowsConfig):
    """Tables of cells parted by a comma, a semicolon, a tab or a bar, each row a record."""

    kind: Literal["csv"]
    """CSV and TSV tables, each row a record."""
    columns: list[str] = Field(default_factory=list)
    """The names of the columns where the tables have no line of names at their top."""


class Csv(RowFiles):
    Config = CsvConfig
    suffixes = Delimited.suffixes
    known = (Delimited(),)

    @cached_property
    def formats(self) -> tuple[Delimited]:
        return (Delimited(self.config.columns),)
