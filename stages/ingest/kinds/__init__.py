"""Kinds of sources, one module each: the options, which files are items, and how one item is read.

A kind is a `SourceKind` (see `base`): planning lists its `items`, a worker `read`s each of them into records and
rejects. `table.KINDS` has ours and those that other distributions offer as entry points of the group
`omniloom.sources`; docs/extending.md shows how to add one.

    base          SourceKind, Contents
    media_folder  what image_folder and video_folder have in common
    text, jsonl, interleaved
    table         KINDS
"""

from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.rejects import Reject

__all__ = ["Contents", "Reject", "SourceConfig", "SourceKind"]
