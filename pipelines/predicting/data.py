"""What ingest and pretokenize take before they ever ran: by a sample of each source that was read on this machine
(`pipelines.measuring_data`), and by the listing, which says how much more there is. What is done once over all records
(splits, text tokens that are learnt, indices, the card) is not in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from omniloom.pipelines import measuring_data
from omniloom.pipelines.measuring_data import Sample
from omniloom.pipelines.predicting import figures
from omniloom.pipelines.predicting.figures import Takes
from omniloom.stages.ingest.config import IngestConfig
from omniloom.stages.pretokenize.config import PretokenizeConfig

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan
    from omniloom.pipelines.planned import PlannedStage


def of_ingest(planned: PlannedStage, plan: Plan) -> Takes:
    """Nothing where a source was not sampled."""
    config: IngestConfig = planned.config
    if (samples := _sampled(planned)) is None:
        return Takes()
    work = sum(sample.seconds * times for sample, times in samples)
    at_once = min(_cpus(plan), config.num_workers or _cpus(plan))
    return _takes(planned, work / at_once, _records(samples), [sample for sample, _ in samples])


def of_pretokenize(planned: PlannedStage, plan: Plan, upstream: Mapping[str, Any]) -> Takes:
    """As `of_ingest`; of the records that ingest has made, where it has, else of those that it is expected to."""
    config: PretokenizeConfig = planned.config
    if config.gpus and not config.workers:  # as many as there are GPUs, which only Ray counts
        return Takes()
    read = next((p for p in plan.stages if isinstance(p.config, IngestConfig)), None)
    if read is None or (samples := _sampled(read)) is None:
        return Takes()
    if "tokenizer" in upstream and not upstream["tokenizer"]:  # pinned: its sizes are not known
        return Takes()
    tokenizer = upstream["tokenizer"].model if "tokenizer" in upstream else None
    expected, found, work = _records(samples), [], 0.0
    for index, (sample, times) in enumerate(samples):
        own = measuring_data.known_tokens(read.config, index, config, tokenizer)
        if own is None:
            return Takes()
        found.append(own)
        work += own.seconds / own.records * sample.records * times if own.records else 0.0
    artifact = plan[planned.inputs["records"]].artifact
    count = artifact.metrics.get("records") if artifact else None
    actors = config.workers or max(1, int(_cpus(plan) // config.cpus))
    share = count / expected if count and expected else 1.0
    return _takes(planned, work * share / actors, count or expected, found)


def _takes(planned: PlannedStage, seconds: float, records: float, samples: list[Sample]) -> Takes:
    start, needs = max(sample.start for sample in samples), planned.stage.needs(planned.config)
    spent = figures.hours(start + seconds, needs.cpus + needs.worker_cpus, needs.gpus + needs.worker_gpus)
    rate = records / seconds if seconds else None
    basis = f"a sample of each source, measured here on {max(sample.on for sample in samples)}"
    return Takes(start + seconds, "records", rate, basis=basis, **spent)


def _sampled(planned: PlannedStage) -> list[tuple[Sample, float]] | None:
    """Of each source its sample, and how often what there is is as much; by bytes, or by files where none has any. None
    where a source was not sampled, or nothing of it is known."""
    found = []
    for index, sample in enumerate(_samples(planned.config)):
        files, size = planned.offered.get(index, (0, 0))
        times = size / sample.bytes if sample and sample.bytes and size else None
        if sample and times is None and sample.items:
            times = files / sample.items
        if sample is None or times is None:
            return None
        found.append((sample, times))
    return found


def _samples(config: IngestConfig) -> Iterator[Sample | None]:
    for index in range(len(config.sources)):
        yield measuring_data.known_source(config, index)


def _records(samples: list[tuple[Sample, float]]) -> float:
    return sum(sample.records * times for sample, times in samples)


def _cpus(plan: Plan) -> int:
    return int(plan.config.cluster.num_cpus or os.cpu_count() or 1)
