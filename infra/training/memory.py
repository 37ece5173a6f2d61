"""How much memory a training's state takes on one worker, in closed form: under DeepSpeed's ZeRO (arXiv 1910.02054,
section 3) as `infra.training.engine` sets it up. Standard library only, so that a plan can ask.

    stage 0   weights, two moments; gradients live from the backward pass to the step
    stage 1   gradients in flat buffers that stay
    stage 2   besides this worker's share of the weights as the optimizer steps it; gradients pass through a bucket, and
              of their sum this worker keeps its share until the step
    stage 3   weights too are shares; what a pass gathers of them stays within it up to a billion numbers
"""

from __future__ import annotations

from omniloom.infra.training.config import EngineConfig

BUCKET = 500_000_000  # numbers of gradients that are reduced together at most
_LIVE = 1_000_000_000  # numbers that DeepSpeed keeps gathered under stage 3 (stage3_max_live_parameters)
_NUMBER = 4  # bytes of a float32


def state_memory(parameters: int, engine: EngineConfig, workers: int, frozen: int = 0) -> dict[str, int]:
    """Bytes that stay between steps: weights (with the optimizer's own copy of its share), gradients, optimizer, ema,
    buckets of gradients. `parameters` are trained; `frozen` ones are weights alone. With offload the optimizer's are
    the host's."""
    stage, share = engine.zero_stage, -(-parameters // workers)
    offload = engine.offload and stage > 0
    weights = share if stage == 3 else parameters
    frozen = -(-frozen // workers) if stage == 3 else frozen
    own = share if stage > 1 and not offload else 0
    gradients = {1: parameters, 3: share}.get(stage, 0)
    return {
        "weights": _NUMBER * (weights + frozen + own),
        "gradients": _NUMBER * gradients,
        "optimizer": 0 if offload else _NUMBER * 2 * (share if stage else parameters),
        "ema": _NUMBER * (share if stage else parameters) if engine.ema_decay else 0,
        "buckets": _NUMBER * min(BUCKET, parameters) if stage == 3 else 0,
    }


def passing_memory(
    parameters: int, engine: EngineConfig, workers: int, accumulate: int, activations: int, logits: int
) -> dict[str, int]:
    """Bytes at the moment of a step that takes most, beside what stays. That is where a backward pass begins, with all
    `activations` and with the loss's `logits` or, behind it, the first bucket of gradients; or else the step itself."""
    stage, share = engine.zero_stage, -(-parameters // workers)
    # Between the passes of a step their sum of gradients is kept.
    kept = {0: parameters, 2: share}.get(stage, 0) if accumulate > 1 else 0
    bucket = _NUMBER * min(BUCKET, parameters) if stage == 2 else 0
    gathered = _NUMBER * min(_LIVE, parameters) if stage == 3 and workers > 1 else 0
    begins = {
        "activations": activations,
        "logits": logits if logits > bucket else 0,
        "communication": gathered + (bucket if bucket >= logits else 0),
        "passing_gradients": _NUMBER * kept,
    }
    # Under stage 2 the shares that were added up are flattened into a copy.
    steps = {
        "activations": 0,
        "logits": 0,
        "communication": _NUMBER * parameters if stage == 1 and workers > 1 else 0,  # what other workers sent
        "passing_gradients": _NUMBER * {0: parameters, 2: 2 * share}.get(stage, 0),
    }
    return max(begins, steps, key=lambda parts: sum(parts.values()))
