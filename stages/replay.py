"""A step of a training once more: what it gave, and what each of its documents or clips gives by itself.

In: a training's job and checkpoints, which are read and never changed. Out: a dictionary, as JSON. The steps from the
nearest checkpoint at or before it (from step 0 where none was kept) are trained again by as many ranks as then, on this
machine: on CPUs bit for bit, which is seen by the row of the curves that holds the step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from omniloom.infra import storage
from omniloom.infra.training import checkpoint
from omniloom.infra.training.bad_steps import SIGMAS, to_blame
from omniloom.infra.training.engine import reduce_mean
from omniloom.infra.training.launch import single_process
from omniloom.infra.training.loop import Loader, Trainer
from omniloom.infra.training.ranks import run_on_ranks


@dataclass(frozen=True)
class Parts:
    """What a rank trains with. `items(step, batch)` measures what the step is made of, over all ranks, before it is
    trained, and changes nothing: dictionaries with "id", "source", "path", "task", "loss", "grad_norm" and more. Empty
    where no rank can measure by itself (ZeRO-3 on several). Every rank calls it."""

    trainer: Trainer
    loader: Loader
    items: Callable[[int, Any], list[dict[str, Any]]]


@dataclass(frozen=True)
class Replay:
    """`assemble` makes a rank's parts of the `job`, the training's (its `output` and `state` are scratch folders);
    `state` has its checkpoints; `curve` are the logged
    rows that have a loss; `bad` are the bad steps that the training has found, `ranks` how many trained. No checkpoint
    after `at_most` steps is gone on from."""

    assemble: Callable[[Any], Parts]
    job: Any
    state: str
    step: int
    curve: list[dict[str, Any]]
    bad: list[dict[str, Any]]
    ranks: int
    at_most: int


def replay(asked: Replay) -> dict[str, Any]:
    """ "from" and "ranks"; "loss" of the row of the curves ("row": its step and that loss) that holds the step, None
    where the training logged none or the checkpoint lies within it; "equal", whether they are the same number; and
    "documents" (or clips) of the step, those that stand out most first, with "blamed"."""
    with tempfile.TemporaryDirectory() as folder:
        job = replace(asked.job, output=storage.join(folder, "output"), state=storage.join(folder, "state"))
        asked = replace(asked, job=job)
        if asked.ranks == 1:
            with single_process():
                _on_rank(asked, folder)
        else:
            run_on_ranks(_on_rank, asked.ranks, asked, folder)
        return storage.load_json(storage.join(folder, "replay.json"))


def _on_rank(asked: Replay, folder: str) -> None:
    """One rank; the first writes what was found."""
    job, step = asked.job, asked.step
    parts = asked.assemble(job)
    trainer, loader = parts.trainer, parts.loader
    start = 0
    try:
        if found := checkpoint.latest(asked.state, at_most=asked.at_most):
            checkpoint.load(found, trainer.engines)
            start = found["step"]
        position = found["position"] if found else loader.position
        loader.seek({**position, "left_out": _left_out(asked)})
        row = next((row for row in asked.curve if row["step"] > step), None)
        first = max((row["step"] for row in asked.curve if row["step"] <= step), default=0)
        last = row["step"] if row and start <= first else step + 1
        skipped = {bad["step"] for bad in asked.bad if bad["action"] != "reload" and not bad["documents"]} - {step}
        losses, documents = [], []
        for at in range(start, last):
            batch = loader.at(at)
            if at in skipped:
                continue
            if at == step:
                documents = parts.items(step, batch)
            logs, _ = trainer.train_step(at, batch)
            if at >= first:
                losses.append(float(logs["loss"]))
        loss = reduce_mean({"loss": sum(losses) / len(losses)})["loss"] if row and start <= first else None
    finally:
        loader.close()
    if dist.get_rank() == 0:
        blamed = {document["id"] for document in to_blame(documents, job.config.engine.spike_sigmas or SIGMAS)}
        storage.write_json(
            storage.join(folder, "replay.json"),
            {
                "step": step,
                "from": start,
                "ranks": dist.get_world_size(),
                "row": row and {"step": row["step"], "loss": row["loss"]},
                "loss": loss,
                "equal": None if loss is None or row is None else loss == row["loss"],
                "documents": _ranked(documents, blamed),
            },
        )


def _left_out(asked: Replay) -> list[str]:
    """The documents that the training had left out when it trained the step for the last time; those of the step itself
    are there, so that it shows why they went."""
    every = asked.job.config.workers.checkpoint_every
    return [
        document["id"]
        for bad in asked.bad
        if bad["step"] != asked.step and bad["step"] // every * every <= asked.step
        for document in bad["documents"]
    ]


def _ranked(documents: list[dict[str, Any]], blamed: set[str]) -> list[dict[str, Any]]:
    from omniloom.infra.figures import finite
    from omniloom.infra.training.bad_steps import stands_out

    ranked = [{**d, "deviations": stands_out(d, documents), "blamed": d["id"] in blamed} for d in documents]
    return finite(sorted(ranked, key=lambda d: (not d["blamed"], -d["deviations"], -d["grad_norm"])))
