"""What ingest and pretokenize take on this machine, measured on a sample of each source; kept as `pipelines.measuring`
keeps its figures, where `plan` finds it. In: the config of a pipeline. Out: seconds, items, bytes and records.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from omniloom.infra import cluster, storage
from omniloom.infra.errors import InputError, within
from omniloom.infra.fields import marks
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.measuring import write
from omniloom.stages.ingest.config import IngestConfig
from omniloom.stages.pretokenize.config import PretokenizeConfig

_SECONDS = 1.0  # of reading, all sources of a stage together


@dataclass(frozen=True)
class Sample:
    """Of so many items and bytes of a source, as many records; the seconds of one CPU, or of one actor; how long a
    process took to start; and the day."""

    seconds: float
    items: int
    bytes: int
    records: int
    start: float
    on: str


def known_source(config: IngestConfig, index: int) -> Sample | None:
    """What was measured of a source; None where nothing was."""
    return _read(_of_source(config, index))


def known_tokens(config: IngestConfig, index: int, tokens: PretokenizeConfig, model: Any) -> Sample | None:
    """What was measured of pretokenizing a source's records by a tokenizer of this architecture."""
    return _read(_of_tokens(config, index, tokens, model))


def measure(config: PipelineConfig) -> dict[str, dict[str, float]]:
    """By stage: seconds a CPU needs for 1,000 records of each source. Empty where another machine would run them."""
    found: dict[str, dict[str, float]] = {}
    if not cluster.starts_here(config.cluster):
        return found
    stages = list(with_upstream(config))
    for stage, own, _ in stages:
        if not isinstance(own, IngestConfig):
            continue
        readers = [
            (name.name, tokens, upstream["tokenizer"].model if upstream.get("tokenizer") else None)
            for name, tokens, upstream in stages
            if isinstance(tokens, PretokenizeConfig) and ("tokenizer" not in upstream or upstream["tokenizer"])
        ]
        for index in range(len(own.sources)):
            source = own.source_name(index)
            with within(f"stages.{stage.name}"):
                taken = _measure(own, index, readers)
            for name, sample in taken.items():
                if sample.records:
                    found.setdefault(name or stage.name, {})[f"{source}_seconds_per_1000_records"] = (
                        1000 * sample.seconds / sample.records
                    )
    return found


def _measure(own: IngestConfig, index: int, readers: list[tuple[str, PretokenizeConfig, Any]]) -> dict[str, Sample]:
    """Of the source by the stage that reads it, "" for ingest; all is kept."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            found = pool.submit(_in_a_process, own, index, readers, time.time()).result()
        except BrokenProcessPool:
            raise InputError(
                f"the process that read a sample of {own.source_name(index)} was killed, by lack of memory as it seems",
                field="sources",
            ) from None
    write(_of_source(own, index), found[""])
    for name, tokens, model in readers:
        write(_of_tokens(own, index, tokens, model), found[name])
    return found


def _in_a_process(
    own: IngestConfig, index: int, readers: list[tuple[str, PretokenizeConfig, Any]], submitted: float
) -> dict[str, Sample]:
    from omniloom.stages.ingest.measured import read_some

    start, today = time.time() - submitted, f"{datetime.now(UTC):%Y-%m-%d}"
    with tempfile.TemporaryDirectory() as folder:
        read = read_some(own, index, folder, _SECONDS / len(own.sources))
        found = {"": Sample(read.seconds, read.items, read.bytes, read.records, start, today)}
        for name, tokens, model in readers:
            began = time.time()
            from omniloom.stages.pretokenize.measured import seconds_of

            loaded = time.time() - began
            seconds, records = seconds_of(tokens, model, folder)
            found[name] = Sample(seconds, 0, 0, records, start + loaded, today)
    return found


def _of_source(config: IngestConfig, index: int) -> Path:
    told = {"source": config.sources[index], "limits": config.limits, "chunk_chars": config.chunk_chars}
    return _file("ingest", told)


def _of_tokens(config: IngestConfig, index: int, tokens: PretokenizeConfig, model: Any) -> Path:
    told = {"source": config.sources[index], "limits": config.limits, "chunk_chars": config.chunk_chars}
    return _file("pretokenize", {**told, "tokens": tokens, "model": model})


def _file(kind: str, told: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=_plain).encode()).hexdigest()[:16]
    return storage.cache_folder() / "measured" / f"{kind}-{digest}.json"


def _plain(value: Any) -> Any:
    if not isinstance(value, BaseModel):
        return repr(value)
    free = {name for name, mark in marks(value).items() if mark.get("placement")} - {"cpus", "gpus", "batch_size"}
    return value.model_dump(mode="json", by_alias=True, exclude={"name", *free})


def _read(file: Path) -> Sample | None:
    with suppress(OSError, ValueError, TypeError):
        return Sample(**json.loads(file.read_text()))
    return None
