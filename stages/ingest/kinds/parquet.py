"""Parquet: each row is a record, a text or a picture or a video with captions, by columns that are named."""

from __future__ import annotations

from typing import Literal

from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.formats import parquet
from omniloom.stages.ingest.kinds.row_files import RowFiles


class ParquetConfig(RowsConfig):
    """Parquet files, each row a record. A column of media has bytes, `{bytes, path}` structs or names of files."""

    kind: Literal["parquet"]
    """Parquet files, each row a record."""


class Parquet(RowFiles):
    Config = ParquetConfig
    suffixes = parquet.Parquet.suffixes
    known = (parquet.Parquet(),)
