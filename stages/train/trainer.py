"""A step, a validation and a logged row of the unified model's training, for `infra.training.loop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.training.engine import Engine, reduce_sum
from omniloom.infra.training.peak import peak_tflops
from omniloom.infra.training.sharing import shared
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.flops import step_flops
from omniloom.models.unified.objectives.objective import UnifiedObjective, loss_name
from omniloom.stages.data.index import Index
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.reporting.history import History, keep_picture
from omniloom.stages.train.blame import measure
from omniloom.stages.train.job import Job
from omniloom.stages.train.rows import MicroBatches, RowLoader, validation_rows
from omniloom.stages.train.samples import draw, held_out_captions, with_tokenizers


class UnifiedTrainer:
    """`engine` holds a `UnifiedObjective`. A step consumes tokens, and FLOPs are added up beside them."""

    unit = "tokens"
    amounts: tuple[str, ...] = ("flops",)

    def __init__(
        self,
        job: Job,
        engine: Engine,
        text: TextTokenizer,
        held_out: TokenSet,
        rank: int,
        ranks: int,
        earlier: Sequence[Index] = (),
    ):
        self.job, self.config, self.engine, self.engines = job, job.config, engine, {"model": engine}
        self.text, self.facts, self.ranks = text, held_out.facts, ranks
        self.together = self.config.engine.sequence_parallel  # ranks that have the same rows
        self.model_config = engine.module.model.config
        self.loss_names = {"text": "text_loss", **{n: loss_name(n, self.config.trained) for n in self.config.trained}}
        self.step_names = self.loss_names | ({"alignment": "alignment_loss"} if self.config.alignment else {})
        self.rows = validation_rows(held_out, self.config, self.model_config, engine.device.type, earlier)
        self.captions = held_out_captions(held_out, text, self.config) if self.config.trained else []
        self.first = rank == 0
        self.history = History(job.state, job.tracker)  # the first rank's is used
        self.peak = self.config.workers.peak_tflops or peak_tflops(self.config.engine.precision)

    def train_step(self, step: int, batch: MicroBatches) -> tuple[dict[str, float | torch.Tensor], float]:
        passes = len(batch)
        totals = reduce_sum(*(sum(micro.targets[name] for micro, _ in batch) for name in self.step_names))
        # The engine averages gradients over ranks and passes, so totals are divided by that many. Ranks that share rows
        # out have counted the same targets.
        parts = self.ranks * passes * self.together
        counts = {n: total / parts for n, total in zip(self.step_names, totals, strict=True)}
        part_norms = self.config.workers.logs(step + 1, self.config.steps)
        sums: dict[str, float | torch.Tensor] = {f"{n}_targets": total for n, total in zip(self.step_names, totals)}
        for micro, seeds in batch:
            loss, logs = self.engine(micro.to(self.engine.device, non_blocking=True), seeds, counts)
            self.engine.backward(loss)
            gradient = self.engine.step(step, part_norms=part_norms)
            # A part with few targets weighs little, so that the mean over ranks and passes is the mean over targets.
            # What has no targets in this step has no loss to log.
            shares = ((logged, micro.targets[n] / counts[n]) for n, logged in self.step_names.items() if counts[n])
            for name, weight in (("loss", 1.0), *shares):
                sums[name] = sums.get(name, 0.0) + logs[name] * (weight / passes)
            sums |= gradient
        useful = sum(micro.tokens["text"] + micro.tokens["visual"] for micro, _ in batch)
        places = useful + sum(micro.tokens["padding"] for micro, _ in batch)
        flops = sum(step_flops(self.model_config, micro, self.config.adapter) for micro, _ in batch) / self.together
        return sums | {"padding": 1 - useful / places, "flops": float(flops)}, useful / self.together

    def kind(self, batch: MicroBatches) -> str:
        return ""

    def measure(self, step: int, loader: RowLoader) -> list[dict[str, Any]]:
        return measure(self.engine, loader, step)

    def validate(self, step: int) -> None:
        with self.engine.evaluated() as module:
            was_training = module.training
            module.eval()
            metrics = mean_losses(module, self.rows, self.engine, self.loss_names, self.together)
            if self.first:
                self.history.add(metrics, step)
                if metrics:  # the corpus may have no validation split
                    self.job.progress.measured(step, metrics)
                told = finite({**metrics, "validation_rows": self.config.validation_rows})
                storage.write_json(storage.join(self.job.state, "validation.json"), told)
            if self.captions and (self.first or self.engine.collective):
                self._draw(module, step)
            module.train(was_training)

    def _draw(self, module: UnifiedObjective, step: int) -> None:
        """The captions' pictures. Where weights are gathered as they are used all ranks draw; the first keeps them."""
        model = with_tokenizers(module.model, self.job, self.text, self.facts)
        for number, objective in enumerate(self.config.trained):
            label = f"samples_{objective}" if number else "samples"
            picture = draw(model, self.captions, self.config.samples, objective)
            if not self.first:
                continue
            self.job.tracker.log_image(picture, label, step)
            keep_picture(self.job.output, label, step, picture)

    def log(self, metrics: dict[str, float], step: int, units: float) -> None:
        if self.peak:
            metrics["model_flops_utilization"] = metrics["flops_per_second"] / (self.peak * 1e12 * self.ranks)
        self.history.add(metrics, step, units)

    def keep(self) -> None:
        self.history.keep()

    def rewind(self, step: int) -> None:
        self.history.rewind(step)


@torch.no_grad()
def mean_losses(
    objective: UnifiedObjective, batches: MicroBatches, engine: Any, loss_names: dict[str, str], together: int = 1
) -> dict[str, float]:
    """Mean losses over targets as `validation_NAME`; `loss_names` maps what is counted to what its loss is called. The
    ranks share the batches out, so many `together` each batch's rows; every rank must call it."""

    def measure(number: int) -> dict[str, float]:
        batch, seeds = batches[number]
        _, logs = objective(batch.to(engine.device), seeds)
        return {name: float(logs[logged]) * batch.targets[name] for name, logged in loss_names.items()}

    with engine.autocast():
        found = shared(range(len(batches)), measure, engine.collective, together)
    sums = {name: sum((row[name] for row in found), 0.0) for name in loss_names}
    counts = {name: sum(batch.targets[name] for batch, _ in batches) for name in loss_names}
    return {f"validation_{logged}": sums[name] / counts[name] for name, logged in loss_names.items() if counts[name]}
