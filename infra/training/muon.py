"""Muon (Keller Jordan, 2024, kellerjordan.github.io/posts/muon): the update of a matrix is its momentum with all
singular values brought near 1, by five Newton-Schulz steps in bf16. Scaled by 0.2 sqrt(max(rows, columns)) it is as
large as AdamW's (Moonlight, arXiv 2502.16982, section 2.2), so that the two share learning rate and weight decay.

It is for the matrices of blocks, each as it is stored; all else AdamW updates. A matrix must be seen whole: under ZeRO
stage 1, where the momentum is divided as AdamW's states are, `layout` says where matrices lie in the flat buffers of
gradients, which are gathered for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.exchange import gather_shards
from omniloom.infra.training.optimizers import AdamW

_COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic, as published
_STEPS = 5
_EPS = 1e-7
_RMS = 0.2  # the root of the mean square of AdamW's updates, as a rule


@dataclass(frozen=True)
class FlatMatrices:
    """The matrices of a group in `flat`, the buffer of its gradients. Of each that this rank steps some of: the
    matrix, a view of `flat`; which of its numbers they are; and where these lie in this rank's shard."""

    flat: Tensor
    places: Sequence[tuple[Tensor, slice, slice]]


class Muon(AdamW):
    """Groups with "momentum" are matrices for Muon, the others for AdamW. A step overwrites the gradients of the first.
    `layout` is by number of a group, under ZeRO 1, where every rank must step."""

    layout: Mapping[int, FlatMatrices] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = groups
        for number, group in enumerate(groups):
            if "momentum" in group:
                self._step_matrices(group, self.layout.get(number))

    def _step_matrices(self, group: dict[str, Any], flat: FlatMatrices | None) -> None:
        for weights in group["params"]:
            if weights.grad is not None:
                self._gather_momentum(weights, weights.grad, group["momentum"])
        for weights, matrix, within in _matrices(group, flat):
            weights.mul_(1 - group["lr"] * group["weight_decay"])
            update = orthogonal(matrix).reshape(-1)[within].view_as(weights)
            weights.add_(update, alpha=-group["lr"] * _RMS * math.sqrt(max(matrix.shape)))

    def _gather_momentum(self, weights: Tensor, gradient: Tensor, momentum: float) -> None:
        """Take the gradient into the momentum, and make it Nesterov's."""
        state = self.state[weights]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        gradient.lerp_(state["momentum_buffer"], momentum)


def _matrices(group: dict[str, Any], flat: FlatMatrices | None) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """(weights that this rank steps, the whole matrix of their gradient, which of its numbers they are)."""
    if flat is None:
        for weights in group["params"]:
            if weights.grad is not None:
                yield weights, weights.grad, slice(None)
        return
    if dist.is_initialized() and dist.get_world_size() > 1:
        gather_shards([flat.flat])
    (shard,) = group["params"]
    for matrix, within, own in flat.places:
        yield shard[own], matrix, within


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix -> bf16, of its singular vectors and with singular values of about 0.7 to 1.2."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    if is_tall := matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=_EPS)  # no singular value is above the Frobenius norm
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
