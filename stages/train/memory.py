"""What a worker's pass of `train` takes, and whether its blocks are computed again in the backward pass to fit. In: the
stage's config and the model's. Out: as the formulas of `models.unified.memory` want it, and what they say. No torch but
to ask a GPU how large it is.
"""

from __future__ import annotations

import os

from omniloom.infra.training.memory import passing_memory, state_memory
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.memory import Pass, pass_memory, recomputes
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.parameters import num_parameters
from omniloom.stages.train.config import TrainConfig, parameters_of

DOCUMENT = 256  # positions of a document where it is not known: on CPUs attention keeps the scores within one
_FLOAT32 = 4
USABLE = 0.85  # of a device's memory: the rest is the allocator's, the driver's and what the formulas leave out


def one_pass(config: TrainConfig, model: UnifiedConfig, workers: int) -> Pass:
    """A worker's forward and backward pass at its largest: every place a text target, and one of a picture where there
    are any. `auto` keeps activations."""
    together = config.engine.sequence_parallel
    passes = config.workers.passes(config.batch_rows, workers, together)
    rows = -(-config.batch_rows // (workers // together * passes))
    positions = rows * -(-config.packing.length // together)
    on_cpu = not config.workers.gpus
    # DeepSpeed's own products under ZeRO-3 keep their inputs whatever is frozen.
    all_inputs = config.engine.zero_stage == 3
    adapted, dropped, spared = config.adapter.kept(model, all_inputs) if config.adapter else (0, 0, 0)
    return Pass(
        positions=positions,
        labels=positions,
        scores=positions * min(config.packing.length, DOCUMENT) // 2 if on_cpu else 0,
        bf16=config.engine.precision == "bf16",
        recompute=config.engine.activation_checkpointing is True,
        sequence_parallel=together,
        adapted=adapted,
        dropped=dropped,
        spared=spared,
        pictures=positions if config.trained else 0,
        pairs=positions * config.packing.length,
    )


def worker_memory(
    config: TrainConfig, model: UnifiedConfig, distillation: Distillation | None = None
) -> dict[str, int]:
    """Bytes of a worker at the moment of a step that takes most, by what takes them; where there may be several numbers
    of workers, on the most of them."""
    trained, frozen = parameters_of(config, model)
    workers = config.workers.most
    passes = config.workers.passes(config.batch_rows, workers, config.engine.sequence_parallel)
    taken = pass_memory(model, one_pass(config, model, workers))
    return {
        **state_memory(trained, config.engine, workers, frozen),
        **teacher_memory(model, distillation),
        **passing_memory(
            trained, config.engine, workers, passes, taken["activations"] + taken["casts"], taken["logits"]
        ),
    }


def teacher_memory(model: UnifiedConfig, distillation: Distillation | None) -> dict[str, int]:
    """What is distilled lies whole on every worker, in float32. What its passes take is gone before the backward pass
    begins."""
    return {"teacher": _FLOAT32 * num_parameters(model)} if distillation else {}


def needs_room(
    config: TrainConfig,
    model: UnifiedConfig,
    workers: int,
    memory: int,
    distillation: Distillation | None = None,
) -> bool:
    """Whether a worker with so many bytes has no room to keep what its blocks compute."""
    trained, frozen = parameters_of(config, model)
    state = sum(state_memory(trained, config.engine, workers, frozen).values())
    state += sum(teacher_memory(model, distillation).values())
    passes = config.workers.passes(config.batch_rows, workers, config.engine.sequence_parallel)
    beside = sum(passing_memory(trained, config.engine, workers, passes, 0, 0).values())
    return recomputes(model, one_pass(config, model, workers), USABLE * memory - state - beside)


def device_memory(gpu: bool) -> int:
    """Bytes of this worker's GPU, or of its share of the machine's memory."""
    if gpu:
        import torch

        return torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0))).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
