"""JSON lines: each line is a record, a text or a reference to a picture or a video."""

from __future__ import annotations

from typing import Literal

from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.formats.json_lines import JsonLines
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.options import FORMER_FIELDS


class JsonlConfig(RowsConfig):
    """JSON lines, each a record. One of text_field, template, image_field, video_field and conversations_field says
    what a line is."""

    CANONICAL = FORMER_FIELDS

    kind: Literal["jsonl"]
    """JSON lines, each a record."""


class Jsonl(RowFiles):
    Config = JsonlConfig
    suffixes = JsonLines.suffixes
    known = (JsonLines(),)
