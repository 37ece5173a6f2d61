"""What a token of a training costs, to compare one size with another. In: the stage's config, the model's and how it
is distilled where it is. Out: on GPUs operations, on CPUs seconds of a core, which small models spend on other things
too. No torch.

A pass without gradients is taken for a third of a step's, without the text head, which it does not ask; those behind no
condition have fewer places than the rows, and count as if they had as many.
"""

from __future__ import annotations

from dataclasses import replace

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flops import dense_flops, token_flops
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.seconds import pass_seconds, update_seconds
from omniloom.stages.train.config import TrainConfig, parameters_of
from omniloom.stages.train.memory import one_pass

_FORWARD = 1 / 3  # of a forward and backward pass


def token_cost(config: TrainConfig, model: UnifiedConfig, distillation: Distillation | None = None) -> float:
    workers, together, length = config.workers, config.engine.sequence_parallel, config.packing.length
    more = _FORWARD * distillation.forward_passes if distillation else 0
    if workers.gpus:
        return flops(config, model, distillation)
    one = one_pass(config, model, workers.most)
    passes = workers.passes(config.batch_rows, workers.most, together)
    asked = pass_seconds(model, one, config.adapter)
    asked += more * pass_seconds(model, replace(one, labels=0, recompute=False)) if more else 0
    step = passes * asked + update_seconds(parameters_of(config, model)[0])
    return step * workers.most / (config.batch_rows * length)


def flops(config: TrainConfig, model: UnifiedConfig, distillation: Distillation | None = None) -> float:
    """Operations of a token."""
    length = config.packing.length
    more = _FORWARD * distillation.forward_passes if distillation else 0
    return token_flops(model, length, config.adapter) + more * dense_flops(model, 1, length / 2, 0)


def step_cost(config: TrainConfig, model: UnifiedConfig, distillation: Distillation | None = None) -> float:
    """Of a worker's step."""
    tokens = config.batch_rows * config.packing.length
    return token_cost(config, model, distillation) * tokens / config.workers.most
