"""A rank of `train` as `stages.replay` trains it again. In: a training's job. Out: its parts."""

from __future__ import annotations

from omniloom.stages.replay import Parts
from omniloom.stages.train.blame import measure
from omniloom.stages.train.job import Job
from omniloom.stages.train.worker import assemble


def parts(job: Job) -> Parts:
    engine, trainer, loader = assemble(job)
    return Parts(trainer, loader, lambda step, batch: measure(engine, loader, step))
