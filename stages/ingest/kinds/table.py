"""The table of kinds: ours, and those of entry points of the group `omniloom.sources`.

An entry point's name is the kind's name, its value a `SourceKind`:

    [project.entry-points."omniloom.sources"]
    csv_urls = "csv_urls_source:CsvUrls"
"""

from __future__ import annotations

from typing import Any

from omniloom.models import extensions
from omniloom.stages import by_kind
from omniloom.stages.data.media.limits import DEFAULT_LIMITS, Limits
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.kinds.coco import Coco
from omniloom.stages.ingest.kinds.csv import Csv
from omniloom.stages.ingest.kinds.energon import Energon
from omniloom.stages.ingest.kinds.hf_dataset import HfDataset
from omniloom.stages.ingest.kinds.image_folder import ImageFolder
from omniloom.stages.ingest.kinds.interleaved import Interleaved
from omniloom.stages.ingest.kinds.json import Json
from omniloom.stages.ingest.kinds.jsonl import Jsonl
from omniloom.stages.ingest.kinds.lance import Lance
from omniloom.stages.ingest.kinds.mds import MdsShards
from omniloom.stages.ingest.kinds.mmc4 import Mmc4
from omniloom.stages.ingest.kinds.obelics import Obelics
from omniloom.stages.ingest.kinds.parquet import Parquet
from omniloom.stages.ingest.kinds.text import Text
from omniloom.stages.ingest.kinds.url_list import UrlList
from omniloom.stages.ingest.kinds.video_folder import VideoFolder
from omniloom.stages.ingest.kinds.webdataset import WebDataset
from omniloom.stages.ingest.options import SourceConfig

GROUP = "omniloom.sources"


def _problem(name: str, part: Any) -> str | None:
    """The reason why an entry point cannot be a kind of source."""
    base = "omniloom.stages.ingest.kinds"
    return by_kind.problem(
        name,
        part,
        {f"{base}.SourceKind": SourceKind},
        (f"{base}.SourceConfig", SourceConfig),
        has="suffixes, those of the files that it reads",
    )


_OURS: tuple[type[SourceKind], ...] = (
    *(ImageFolder, VideoFolder, Text, Interleaved),
    *(Jsonl, Json, Csv, Parquet, WebDataset),
    *(HfDataset, Coco, Obelics, Mmc4, Lance, MdsShards, Energon, UrlList),
)
_OTHERS, UNUSABLE = extensions.load(GROUP, [kind.name() for kind in _OURS], _problem)
KINDS: dict[str, type[SourceKind]] = {**{kind.name(): kind for kind in _OURS}, **_OTHERS}


def open_source(
    config: SourceConfig, index: int, limits: Limits = DEFAULT_LIMITS, chunk_chars: int = 2000
) -> SourceKind:
    """The source with these options, which is the number `index` of its config."""
    return KINDS[config.kind](config, index, limits, chunk_chars)
