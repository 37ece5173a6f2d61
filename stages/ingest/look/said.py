"""What is said of media files: captions by file, and which column of rows holds them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.stages.ingest.annotations.fields import captions_of
from omniloom.stages.ingest.look.media_names import MediaNames

MOST = 0.5  # of the rows have to say something


@dataclass(frozen=True)
class Pairing:
    """`captions` by the path of a media file; `files` that they are in; `how` in words."""

    captions: dict[str, list[str]]
    files: frozenset[str]
    how: str


def worth(captions: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """How many have a caption, and of as many how many different ones there are: albums say the same of many."""
    return len(captions), len({text for texts in captions.values() for text in texts})


def caption_column(rows: Sequence[Mapping[str, Any]], names: MediaNames) -> str | None:
    """The column of captions: of those that hold texts the one that is called so, else the one with the longest, those
    behind that say the same of most rows, such as albums."""
    lengths: dict[str, tuple[bool, float]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [text for row in rows for text in texts_of(row.get(column))]
        if len(values) >= MOST * len(rows) and not _refer(values[:50], names):
            own = len(set(values)) > 0.5 * len(values)
            lengths[column] = own, statistics.fmean(len(text) for text in values)
    for column in lengths:
        if captions_of([column.rsplit(".", 1)[-1].lower()]):
            return column
    return max(lengths, key=lambda column: lengths[column], default=None)


def _refer(values: Sequence[str], names: MediaNames) -> bool:
    """Whether texts name files, places or contents, and say nothing."""
    what = re.compile(r"[a-z]+://\S+|[0-9a-f]{16,}|[\d\W]+", re.IGNORECASE)
    return sum(bool(names.find(text) or what.fullmatch(text)) for text in values) > 0.5 * len(values)


def texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for item in values if isinstance(item, str) and (text := " ".join(item.split()))]
