"""A step, a validation and a logged row of a scorer's training, for `infra.training.loop`.

Every fold has an engine of its own, which takes its step in every step. Of a fold's validations the weights of the best
are kept in the state: a small corpus is learnt by heart long before the last step. A training that goes on from a
checkpoint keeps what it had found, and comes to the same weights again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from omniloom.infra import storage
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.rows import all_rows
from omniloom.infra.training.shards import gathered
from omniloom.models.scorer.objective import ScorerObjective
from omniloom.stages.checkpoints.dual_encoder import DualEncoder
from omniloom.stages.reporting.history import History
from omniloom.stages.scorer.config import Config
from omniloom.stages.scorer.job import Job
from omniloom.stages.scorer.pairs import HeldOut, PairBatches, Pairs, embedded
from omniloom.stages.scorer.retrieval import distinct_captions, recall_at_1

BEST = "best.json"


def fold_name(fold: int) -> str:
    return f"fold{fold}"


def best_weights(state: str, fold: int) -> str:
    """Where the weights of the fold's best validation are."""
    return storage.join(state, f"best-{fold_name(fold)}.safetensors")


class ScorerTrainer:
    """`engines` by the folds' names, `encoders` their models with the words, by fold."""

    unit = "pairs"
    amounts: tuple[str, ...] = ()

    def __init__(self, job: Job, engines: dict[str, Engine], encoders: list[DualEncoder], held_out: HeldOut, rank: int):
        self.job, self.engines, self.encoders, self.held_out, self.rank = job, engines, encoders, held_out, rank
        self.distinct = distinct_captions(held_out.captions)
        self.history = History(job.state, job.tracker)  # the first rank's is used

    def train_step(self, step: int, batch: list[Pairs]) -> tuple[dict[str, float | Tensor], float]:
        logs: dict[str, float | Tensor] = {}
        losses = []
        for (name, engine), encoder, pairs in zip(self.engines.items(), self.encoders, batch, strict=True):
            loss, own = engine(
                encoder.normalised(pairs.pixels.to(engine.device, non_blocking=True)),
                encoder.ids(pairs.captions),
                pairs.same.to(engine.device),
                lambda rows, counts=pairs.counts: all_rows(rows, counts),
            )
            engine.backward(loss)
            own |= engine.step(step)
            losses.append(own["loss"])
            logs |= {key if len(batch) == 1 else f"{name}_{key}": value for key, value in own.items() if key != "lr"}
            logs["lr"] = own["lr"]
        logs["loss"] = sum(losses[1:], losses[0]) / len(losses)
        return logs, sum(len(pairs.pixels) for pairs in batch)

    def kind(self, batch: list[Pairs]) -> str:
        return ""

    def measure(self, step: int, loader: PairBatches) -> list[dict[str, Any]]:
        return []  # every pair is in the loss of every other: going back leaves out the step

    def validate(self, step: int) -> None:
        """Own caption among others on the validation split; the weights are kept where none before were better: of
        equals the last, which have learnt more."""
        metrics: dict[str, float] = {}
        best = storage.read_json(storage.join(self.job.state, BEST)) or {}
        for fold, (name, engine) in enumerate(self.engines.items()):
            value = self._recall(fold, engine)
            before = best.get(name, {}).get("recall_at_1")
            if gathered(value is None or before is None or value >= before)[0]:
                self._keep(fold, engine)
                best[name] = {"step": step, "recall_at_1": value}
            if value is not None:
                metrics["recall_at_1" if len(self.engines) == 1 else f"{name}_recall_at_1"] = value
        if self.rank:
            return
        storage.write_json(storage.join(self.job.state, BEST), best)
        if metrics:
            metrics = {f"validation_{key}": value for key, value in metrics.items()}
            self.history.add(metrics, step)
            self.job.progress.measured(step, metrics)

    def _recall(self, fold: int, engine: Engine) -> float | None:
        """Of the fold's model; None where the split holds too few captions to tell."""
        if len(self.distinct) < 2:
            return None
        with engine.evaluated(), engine.autocast():
            pictures, texts = embedded(self.encoders[fold], self.held_out, self.distinct)
        count = self.job.config.retrieval_captions
        found, _ = recall_at_1((pictures @ texts.T).numpy(), self.held_out.captions, self.distinct, count)
        return float(np.mean(found))

    def _keep(self, fold: int, engine: Engine) -> None:
        from safetensors.torch import save

        weights = engine.state_dict()  # on every rank
        if self.rank == 0:
            storage.write_bytes(best_weights(self.job.state, fold), save(weights))

    def log(self, metrics: dict[str, float], step: int, units: float) -> None:
        self.history.add(metrics, step, units)

    def keep(self) -> None:
        self.history.keep()

    def rewind(self, step: int) -> None:
        self.history.rewind(step)


def engine_for(config: Config, objective: ScorerObjective, ranks: int) -> Engine:
    return Engine(objective, config.optimizer, config.engine, config.steps, -(-config.batch // ranks))
