"""The mean over tokens of a distribution over codes whose channels are independent within a token.

In: for each channel, log-probabilities (n, levels) of its levels. Out: the mean over the n tokens of the
probability of every code, (product of levels,), the first channel's digit counting ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_joint(log_p: Sequence[Tensor]) -> Tensor:
    """E[p], exactly, without ever holding tokens x codes numbers.

    With the channels in two parts, p of a token is the outer product of two vectors of about sqrt(codes)
    numbers, and the sum of such products over tokens is one product of matrices.
    """
    sizes = [part.shape[-1] for part in log_p]
    cut = min(range(len(sizes)), key=lambda i: math.prod(sizes[:i]) + math.prod(sizes[i:]))
    if not cut:  # one channel
        return _outer(log_p).mean(0)
    low, high = _outer(log_p[:cut]), _outer(log_p[cut:])
    return (high.T @ low).flatten() / len(low)


def _outer(log_p: Sequence[Tensor]) -> Tensor:
    """Probability of every pattern of some channels' levels, of one channel at least: (n, product of levels)."""
    joint, *others = log_p
    for part in others:
        joint = (part.unsqueeze(-1) + joint.unsqueeze(-2)).flatten(-2)
    return torch.exp(joint)
