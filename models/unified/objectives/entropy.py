"""Cross entropy of logits, and the square of their log-partition that keeps them from drifting (z-loss, arXiv
2204.02311, section 5.1), without a float32 copy of the logits. In: logits of any float type, labels, weights. Out:
sums, float32 scalars.

The logits are the largest tensor of a step of a language model. Written in plain operators, float32 copies of them are
made for log-probabilities, for their gradient and once more for the z-loss. Here a few rows are widened at a time, and
the gradient is computed along with the loss, in the logits' own type: that is all that is kept. A compiler fuses the
plain formula to the same, and gets it.

Shapes: A rows of logits, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from omniloom.models.unified.memory import AT_ONCE, AT_ONCE_ON_GPU


def entropy_sums(
    logits_AV: Tensor, labels_A: Tensor, weights_A: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum, entropy, squares) over rows, times their weights where there are any: the cross entropy, the squares of
    the log-partition, and entropy + z_loss * squares, which alone can be differentiated. Without a z_loss squares are
    0. Gradients of gradients are refused, and the graph cannot be kept for a second backward pass."""
    if torch.compiler.is_compiling():
        return _plain(logits_AV, labels_A, weights_A, z_loss)
    return _EntropySums.apply(logits_AV, labels_A, weights_A, z_loss)


def _plain(logits: Tensor, labels: Tensor, weights: Tensor | None, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    wide = logits.float()
    entropy = F.cross_entropy(wide, labels, reduction="none")
    entropy = (entropy if weights is None else entropy * weights).sum()
    if not z_loss:
        return entropy, entropy.detach(), torch.zeros_like(entropy.detach())
    squares = wide.logsumexp(dim=-1).square()
    squares = (squares if weights is None else squares * weights).sum()
    return entropy + z_loss * squares, entropy.detach(), squares.detach()


class _EntropySums(torch.autograd.Function):
    """With p = softmax(logits) and z = logsumexp(logits), a row's gradient is p - onehot(label) + 2 z_loss z p."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        partition = torch.empty_like(entropy)
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, (AT_ONCE if logits.device.type == "cpu" else AT_ONCE_ON_GPU) // logits.shape[1])
        for first in range(0, len(logits), rows):
            some = slice(first, first + rows)
            wide, label = logits[some].float(), labels[some, None]
            log_p = F.log_softmax(wide, dim=-1)
            of_label = log_p.gather(1, label)
            entropy[some] = -of_label[:, 0]
            partition[some] = (wide.gather(1, label) - of_label)[:, 0]
            if ctx.gradient is not None:
                gradient = log_p.exp_()
                if z_loss:
                    gradient.mul_(1 + 2 * z_loss * partition[some, None])
                gradient.scatter_add_(1, label, gradient.new_full(label.shape, -1.0))
                if weights is not None:
                    gradient.mul_(weights[some, None])
                ctx.gradient[some] = gradient
        squares = partition.square_() if z_loss else partition.zero_()
        if weights is not None:
            entropy, squares = entropy * weights, squares * weights
        total, total_squares = entropy.sum(), squares.sum()
        ctx.mark_non_differentiable(total, total_squares)
        ctx.set_materialize_grads(False)
        return total + z_loss * total_squares, total, total_squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("entropy_sums: a second backward pass needs a second forward pass")
        return gradient.mul_(grad), None, None, None
