"""An engine goes on from a checkpoint: each rank reads the ranges that it holds now, whichever ranks wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omniloom.infra.errors import OmniLoomError
from omniloom.infra.training.shards import Part, kept_tensors, optimizer_state, parts
from omniloom.infra.training.tensors import Tensors

if TYPE_CHECKING:
    from omniloom.infra.training.weights import EngineWeights

_OWN = {"weight", "ema", "fixed", "buffer"}  # what else a checkpoint holds is of the optimizer


@torch.no_grad()
def restore(engine: EngineWeights, tensors: Tensors) -> None:
    """Weights, optimizer states, EMA, buffers and frozen parameters. Every rank must call it; OmniLoomError where the
    checkpoint is another model's."""
    engine.released()
    kinds = [kind for kind in tensors.all_kinds() if kind not in _OWN]
    state = optimizer_state(engine)
    on_device = _counts_on_device(engine)
    for part in parts(engine):
        _read(tensors, f"weight/{part.name}", part.shape, part.start, part.weights)
        if engine.average is not None:
            _read(tensors, f"ema/{part.name}", part.shape, part.start, part.of(engine.average.of(part.flat)))
        known = tensors.kinds(part.name, kinds)
        for kind in known:
            _restore_state(tensors, kind, part, state[part.flat], on_device)
        _forget_others(state.get(part.flat, {}), known)
    for key, shape, start, values, _ in kept_tensors(engine):
        _read(tensors, key, shape, start, values)
    if hasattr(engine.engine.optimizer, "_hp_optimizer_states_linked"):
        engine.engine.optimizer._hp_optimizer_states_linked = False
        engine.engine.optimizer._lazy_init_hp_params_optimizer_state()
    engine.spread()


def _counts_on_device(engine: EngineWeights) -> bool:
    """Whether torch's optimizer keeps its scalars where the weights are, and not on the CPU."""
    optimizer = engine.engine.optimizer
    groups = getattr(optimizer, "optimizer", optimizer).param_groups
    return any(group.get("fused") or group.get("capturable") for group in groups)


def _restore_state(tensors: Tensors, kind: str, part: Part, state: dict[str, Any], on_device: bool) -> None:
    """The optimizer's states of the part's numbers; empty for a fresh optimizer, which has none yet."""
    key = f"{kind}/{part.name}"
    if tensors.shape(key) == () and (kind == "step" or part.shape != ()):
        number = tensors.number(key)
        if number.dtype in (torch.int64, torch.float64):  # of an optimizer that keeps Python's
            state[kind] = number.item()
        else:
            state[kind] = number[0].to(part.flat.device if on_device else "cpu")
        return
    if kind not in state:
        state[kind] = torch.zeros_like(part.flat)
    _read(tensors, key, part.shape, part.start, part.of(state[kind]))


def _forget_others(state: dict[str, Any], known: Iterable[str]) -> None:
    """What a checkpoint of before the first update lacks is 0, as in a new optimizer."""
    for kind in state.keys() - set(known):
        if torch.is_tensor(state[kind]):
            state[kind].zero_()
        elif isinstance(state[kind], int | float):
            state[kind] = 0


def _read(tensors: Tensors, key: str, shape: tuple[int, ...], start: int, into: Tensor) -> None:
    if 0 in shape:  # nothing is kept of what has no numbers
        return
    if key not in tensors or tensors.shape(key) != shape:
        found = f"found of the shape {tensors.shape(key)}" if key in tensors else "which is not there"
        raise OmniLoomError(
            f"{tensors.uri}: the training needs {key} of the shape {shape}, {found}; the checkpoint is another model's"
        )
    tensors.read(key, start, into)
