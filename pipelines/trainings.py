"""The trainings of a pipeline that formulas know: what a step of one takes, and how much memory a worker. In: a stage's
config and, by role, those of the stages before it. Out: a `Training`. No torch.

    UnifiedTraining   `train`; and `distill`, which is one with a teacher
    ScorerTraining    `train_scorer`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from omniloom.infra.training.memory import state_memory
from omniloom.models.features.clip_config import ClipConfig
from omniloom.models.scorer.sizes import num_parameters, pair_flops
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.stages.distill.config import DistillConfig
from omniloom.stages.scorer import cost as scorer_cost
from omniloom.stages.scorer.config import TrainScorerConfig
from omniloom.stages.train import cost as train_cost
from omniloom.stages.train import memory as train_memory
from omniloom.stages.train.config import TrainConfig, expected_config, parameters_of


@dataclass(frozen=True)
class UnifiedTraining:
    """`config`: of `distill` the training that it is."""

    kind: ClassVar = "train"
    unit: ClassVar = "tokens"
    config: TrainConfig
    model: UnifiedConfig
    distillation: Distillation | None = None

    @property
    def units(self) -> int:
        """Of a step of all workers."""
        return self.config.batch_rows * self.config.packing.length

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers that are trained, and numbers that stay as they are."""
        return parameters_of(self.config, self.model)

    @property
    def cost(self) -> float:
        """Of a unit: operations on GPUs, a core's seconds on CPUs."""
        return train_cost.token_cost(self.config, self.model, self.distillation)

    @property
    def flops(self) -> float:
        """Of a unit."""
        return train_cost.flops(self.config, self.model, self.distillation)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of a worker at the moment of a step that takes most, by what takes them."""
        return train_memory.worker_memory(self.config, self.model, self.distillation)

    @property
    def least(self) -> dict[str, int]:
        """Of `memory` what is sure to be needed."""
        trained, frozen = self.parameters
        state = state_memory(trained, self.config.engine, self.config.workers.most, frozen)
        return state | train_memory.teacher_memory(self.model, self.distillation)

    @property
    def measurable(self) -> bool:
        """Whether one process can do its steps, of data that are made up."""
        return self.config.engine.sequence_parallel == 1 and self.config.alignment is None

    def on(self, memory: int | None) -> UnifiedTraining:
        """As it is on a GPU of so much memory, which decides where `activation_checkpointing` is auto."""
        if self.config.engine.activation_checkpointing != "auto":
            return self
        workers = self.config.workers.most
        again = memory is not None and train_memory.needs_room(
            self.config, self.model, workers, memory, self.distillation
        )
        engine = type(self.config.engine).model_validate(
            self.config.engine.model_dump() | {"activation_checkpointing": again}
        )
        return replace(self, config=self.config.model_copy(update={"engine": engine}))


@dataclass(frozen=True)
class ScorerTraining:
    kind: ClassVar = "scorer"
    unit: ClassVar = "pairs"
    config: TrainScorerConfig
    model: ClipConfig

    @property
    def units(self) -> int:
        """Of a step of all workers: the pairs of all folds."""
        return self.config.batch * self.config.folds

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers that are trained, of all folds, and numbers that stay as they are."""
        count = num_parameters(self.model, self.config.loss)
        return (self.config.folds * count, 0) if self.config.steps else (0, count)

    @property
    def cost(self) -> float:
        """As `UnifiedTraining.cost`."""
        return scorer_cost.pair_cost(self.config, self.model)

    @property
    def flops(self) -> float:
        return pair_flops(self.model)

    @property
    def memory(self) -> dict[str, int]:
        return scorer_cost.worker_memory(self.config, self.model)

    @property
    def least(self) -> dict[str, int]:
        return scorer_cost.state(self.config, self.model)

    @property
    def measurable(self) -> bool:
        return self.config.steps > 0

    def on(self, memory: int | None) -> ScorerTraining:
        return self


Training = UnifiedTraining | ScorerTraining


def step_cost(training: Training) -> float:
    """Of a worker's step."""
    return training.cost * training.units / training.config.workers.most


def is_training(own: Any) -> bool:
    """Whether the stage of this config is such a training, whatever it reads."""
    return isinstance(own, TrainConfig | DistillConfig | TrainScorerConfig)


def training_of(own: Any, upstream: Mapping[str, Any]) -> Training | None:
    """None where the stage is no such training, or where what it reads does not tell its sizes."""
    if isinstance(own, TrainScorerConfig):
        return ScorerTraining(own, scorer_cost.expected_clip(own))
    tokens, tokenizer, distillation = upstream.get("tokens"), upstream.get("tokenizer"), None
    if isinstance(own, DistillConfig):
        if (teacher := upstream.get("model")) is None:
            return None
        own, distillation = own.training(teacher), own.distillation
    if not isinstance(own, TrainConfig) or tokens is None:
        return None
    model = expected_config(own, tokens, tokenizer and tokenizer.model)
    if distillation and distillation.tells_steps:
        model = replace(model, step_sizes=True)
    return UnifiedTraining(own, model, distillation)
