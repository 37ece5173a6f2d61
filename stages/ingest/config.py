"""The config of ingest: which sources there are, what may be read of them, and how they are split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from omniloom.stages.base import PLACEMENT
from omniloom.stages.by_kind import any_of
from omniloom.stages.data.media.limits import Limits
from omniloom.stages.ingest.kinds.table import KINDS, UNUSABLE
from omniloom.stages.ingest.options import SourceConfig, Strict

if TYPE_CHECKING:
    Source = SourceConfig
else:
    Source = any_of(KINDS, UNUSABLE)


class Splits(Strict):
    """Shares of the records; they sum to 1. Each falls by its content or its group, and with its near twins."""

    train: float = Field(default=0.9, ge=0, le=1)
    """The share that models learn from."""
    validation: float = Field(default=0.05, ge=0, le=1)
    """The share that training is watched with."""
    test: float = Field(default=0.05, ge=0, le=1)
    """The share that the finished model is judged by."""

    @model_validator(mode="after")
    def _sum(self) -> Splits:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"expected train + validation + test = 1, got {total:g}")
        return self


class IngestConfig(Strict):
    """Which sources there are, what may be read of them, and how they are split."""

    sources: list[Source] = Field(min_length=1)
    """Folders or files of raw input, each of one kind. Records come in the order of the sources."""
    splits: Splits = Field(default_factory=Splits)
    """Shares of the records that are trained on and held out."""
    limits: Limits = Field(default_factory=Limits)
    """Limits of a single file."""
    chunk_chars: int = Field(default=2000, ge=1)
    """About how many characters of a text file make one record."""
    max_synthetic_fraction: float = Field(default=0.0, ge=0, le=1)
    """The largest share of the records that may have been made by a model of this project; more is an error."""
    shard_items: int = Field(default=8192, ge=1)
    """The most records in one shard."""
    shard_bytes: int = Field(default=64 << 20, ge=1)
    """About how many bytes the file of one shard has: up to 15% more, unless a single record has more. Work is divided
    by it, too."""
    num_workers: int | None = Field(default=None, ge=1, json_schema_extra=PLACEMENT)
    """How many shards are worked on at once; by default as many as there are CPUs."""

    @model_validator(mode="after")
    def _names(self) -> IngestConfig:
        names = [self.source_name(i) for i in range(len(self.sources))]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"sources.{i}.name: {name!r} is taken by sources.{names.index(name)}")
        return self

    def source_name(self, index: int) -> str:
        return self.sources[index].name or f"{self.sources[index].kind}_{index}"

    @property
    def kinds(self) -> set[str]:
        """The kinds of records (image, video, text, document) that the sources give, whatever they hold."""
        return {KINDS[source.kind].makes(source) for source in self.sources}


Config = IngestConfig
