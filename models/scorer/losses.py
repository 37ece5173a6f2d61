"""What a dual encoder is trained to: the embeddings of a picture and of its caption near to one another, and far from
those of the rest of the batch.

In: embeddings (B, D) of pictures and of their captions, row i of both of one pair, of length 1. `same_BB`, bool, says
which captions are the same: without it none are. A pair of a picture and another picture's equal caption is right too,
and is taken for such: under the softmax the targets are shared evenly by all that are right (UniCL, arXiv 2204.03610,
equation 2), under the sigmoid each is 1. With captions that all differ both are the published losses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(pictures_BD: Tensor, texts_BD: Tensor, scale: Tensor, same_BB: Tensor | None = None) -> Tensor:
    """The mean of the cross entropies of captions given pictures and of pictures given captions (arXiv 2103.00020,
    figure 3); `scale` is the inverse of the temperature."""
    logits_BB, target_BB = _softmax(pictures_BD, texts_BD, scale, same_BB)
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def clip_losses(pictures_BD: Tensor, texts_BD: Tensor, scale: Tensor, same_BB: Tensor | None = None) -> Tensor:
    """(B,): the share of `clip_loss`, their mean, that each pair has."""
    logits_BB, target_BB = _softmax(pictures_BD, texts_BD, scale, same_BB)
    rows_B, columns_B = (F.cross_entropy(x, target_BB, reduction="none") for x in (logits_BB, logits_BB.T))
    return (rows_B + columns_B) / 2


def _softmax(pictures_BD: Tensor, texts_BD: Tensor, scale: Tensor, same_BB: Tensor | None) -> tuple[Tensor, Tensor]:
    logits_BB = scale * pictures_BD @ texts_BD.T
    target_BB = _right(logits_BB, same_BB)
    return logits_BB, target_BB / target_BB.sum(1, keepdim=True)  # rows and columns are alike: same is mutual


def siglip_loss(
    pictures_BD: Tensor, texts_BD: Tensor, scale: Tensor, bias: Tensor, same_BB: Tensor | None = None
) -> Tensor:
    """-mean_i sum_j log sigmoid(y_ij (scale x_i . z_j + bias)), y 1 of what is right and -1 of all else (arXiv
    2303.15343, equation 1)."""
    return siglip_losses(pictures_BD, texts_BD, scale, bias, same_BB).mean()


def siglip_losses(
    pictures_BD: Tensor, texts_BD: Tensor, scale: Tensor, bias: Tensor, same_BB: Tensor | None = None
) -> Tensor:
    """(B,): the share of `siglip_loss`, their mean, that each picture has."""
    logits_BB = scale * pictures_BD @ texts_BD.T + bias
    return -F.logsigmoid((2 * _right(logits_BB, same_BB) - 1) * logits_BB).sum(1)


def _right(logits_BB: Tensor, same_BB: Tensor | None) -> Tensor:
    own = torch.eye(len(logits_BB), device=logits_BB.device)
    return own if same_BB is None else same_BB.to(own.dtype)


class AtMost(torch.autograd.Function):
    """min(x, most), through which a gradient passes unless it would bring x further above: what clipping x after each
    update does, where the optimizer's own copy is out of reach."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.most = most
        return x.clamp(max=most)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x > ctx.most) & (grad < 0), torch.zeros_like(grad), grad), None
