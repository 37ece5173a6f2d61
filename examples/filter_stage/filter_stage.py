"""Stage `filter_records`: leaves out pictures that are too small, and captions that match a pattern.

In: records. Out: the records that are left, in shards of the same names, and `left_out.jsonl` with the reason of each
other. It reads and makes `records`, so it stands between `ingest` and what follows, which reads what it leaves.
"""

from __future__ import annotations

import json
import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.base import Stage, StageContext

STAGE = Stage("filter_records", "filter_stage", reads=("records",), makes="records")
VERSION = 1


class Config(BaseModel):
    """What a record must have to stay."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    min_side: int = Field(0, ge=0)
    """Pixels: pictures and videos with a shorter side are left out."""
    drop_captions: str | None = None
    """A regular expression: captions in which it is found are removed."""

    @field_validator("drop_captions")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from None
        return pattern


def run(context: StageContext) -> dict:
    """The counts of the records that are left, and of those that are left out."""
    from omniloom.stages.data import records  # pyarrow is heavy: not where the plan imports this module

    shards, left_out = records.shards(context.records.uri), []
    for number, shard in enumerate(shards):
        rows = []
        for row in records.iterate_shard(shard):
            if reason := _reason(row, context.config):
                left_out.append({"source": row["source"], "path": row["path"], "part": row["part"], "reason": reason})
            else:
                rows.append(_without_captions(row, context.config))
        records.write_shard(storage.join(context.output, records.shard_name(number)), rows)
        context.progress(number + 1, len(shards), "shards")
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in left_out)
    storage.write_bytes(storage.join(context.output, "left_out.jsonl"), lines.encode())
    counts = records.counts(context.output)
    if not counts["records"]:
        raise InputError(f"leaves none of the {len(left_out)} records", field="min_side")
    return {**counts, "left_out": len(left_out)}


def summary(metrics: dict) -> str:
    return f"records {metrics['records']:,}, left out {metrics['left_out']:,}"


def _reason(row: dict, config: Config) -> str | None:
    """Why a record is left out, if it is."""
    if row["kind"] in ("image", "video") and min(row["width"], row["height"]) < config.min_side:
        return f"{row['width']}x{row['height']} pixels"
    return None


def _without_captions(row: dict, config: Config) -> dict:
    """The record without the captions that match the pattern."""
    if not config.drop_captions or not row["captions"]:
        return row
    captions = [caption for caption in row["captions"] if not re.search(config.drop_captions, caption)]
    return {**row, "captions": captions, "caption": captions[0] if captions else None}
