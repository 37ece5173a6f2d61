"""What a token of a training costs, to compare one size with another. In: the stage's config and the model's. Out: on
GPUs operations, on CPUs seconds of a core, which small models spend on other things too. No torch.
"""

from __future__ import annotations

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flops import token_flops
from omniloom.models.unified.seconds import pass_seconds, update_seconds
from omniloom.stages.train.config import TrainConfig, parameters_of
from omniloom.stages.train.memory import one_pass


def token_cost(config: TrainConfig, model: UnifiedConfig) -> float:
    workers, together = config.workers, config.engine.sequence_parallel
    if workers.gpus:
        return token_flops(model, config.packing.length, config.adapter)
    one = one_pass(config, model, workers.most)
    passes = workers.passes(config.batch_rows, workers.most, together)
    step = passes * pass_seconds(model, one, config.adapter) + update_seconds(parameters_of(config, model)[0])
    return step * workers.most / (config.batch_rows * config.packing.length)


def step_cost(config: TrainConfig, model: UnifiedConfig) -> float:
    """Of a worker's step."""
    return token_cost(config, model) * config.batch_rows * config.packing.length / config.workers.most
