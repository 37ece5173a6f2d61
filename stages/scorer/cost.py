"""What a step of `train_scorer` takes a worker, to compare one size with another, and how much memory. In: the stage's
config and the shape of what is trained. Out: on GPUs operations, on CPUs seconds of a core; bytes by what takes them.
No torch.
"""

from __future__ import annotations

from omniloom.infra.training.memory import passing_memory, state_memory
from omniloom.models.features.clip_config import ClipConfig
from omniloom.models.scorer.sizes import num_parameters, pair_flops, pass_memory, step_seconds
from omniloom.stages.checkpoints.clip_folder import read_clip_config
from omniloom.stages.scorer.config import TrainScorerConfig


def expected_clip(config: TrainScorerConfig) -> ClipConfig:
    """What is trained, with as many words as may be learnt and the end of a text."""
    if config.pretrained:
        return read_clip_config(config.pretrained, "pretrained")
    return config.model.clip(config.vocab_size + 1, config.vocab_size)


def pair_cost(config: TrainScorerConfig, clip: ClipConfig) -> float:
    """Of a pair of a fold's training."""
    if config.workers.gpus:
        return pair_flops(clip)
    mine = -(-config.batch // config.workers.most)
    return step_seconds(clip, mine, config.loss) * config.workers.most / config.batch


def state(config: TrainScorerConfig, clip: ClipConfig) -> dict[str, int]:
    """Bytes of a worker that stay between steps: of all folds; of a model that is taken as it is its weights."""
    parameters, workers = num_parameters(clip, config.loss), config.workers.most
    if not config.steps:
        return state_memory(0, config.engine, workers, frozen=parameters)
    kept = state_memory(parameters, config.engine, workers)
    return {name: config.folds * size for name, size in kept.items()}


def worker_memory(config: TrainScorerConfig, clip: ClipConfig) -> dict[str, int]:
    """Bytes of a worker at the moment of a step that takes most: what stays, and the pass of one fold."""
    if not config.steps:
        return state(config, clip)
    parameters, workers = num_parameters(clip, config.loss), config.workers.most
    mine, bf16 = -(-config.batch // workers), config.engine.precision == "bf16"
    taken = pass_memory(clip, mine, config.batch, bf16, config.loss)
    passing = passing_memory(
        parameters, config.engine, workers, 1, taken["activations"] + taken["casts"], taken["logits"]
    )
    return state(config, clip) | passing
