"""Alignment of hidden states with a frozen encoder's features of the clean picture (REPA, arXiv 2410.06940).

In: hidden states of visual positions, and the features of their segments on a grid of their own. Out: a loss a
position. The loss (eq. 8 there) is the mean over positions of minus the cosine similarity of a position's feature and
the projected hidden state; here of 1 minus it, which is 0 where they agree. The paper takes hidden states of the 8th
of 28 layers, of positions with noise, and a weight of 0.5 beside the diffusion's loss. The sum over a `Batch` is of
the targets of diffusions that have features, each by its segment's weight.
Errors: ValueError naming what does not fit.

Shapes: K positions, D width, F features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.unified.batch import Batch
from omniloom.models.unified.positions import Grid
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.models.unified.sequence import RowShare


class FeatureAlignment(nn.Module):
    """The trained projection, an MLP of three layers, and the loss.

    width  of the hidden states; dim: of the features; inner: of the MLP, as published; factor: of the hidden states, as
           muP has it for what reads them (`models.unified.mup`)
    """

    def __init__(self, width: int, dim: int, inner: int = 2048, factor: float = 1.0):
        super().__init__()
        self.factor = factor
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, dim)
        )
        for layer in self.mlp:
            if not isinstance(layer, nn.Linear):
                continue
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_KD: Tensor, features_KF: Tensor) -> Tensor:
        """Hidden states and features of the same positions -> 1 - cosine similarity, float32 (K,) in [0, 2].

        K may be 0: all parameters take part then too, as ZeRO-3 needs.
        """
        if len(hidden_KD) != len(features_KF):
            raise ValueError(f"features: expected those of {len(hidden_KD)} positions, got {len(features_KF)}")
        hidden_KD = hidden_KD if self.factor == 1 else hidden_KD * self.factor
        return 1 - F.cosine_similarity(self.mlp(hidden_KD).float(), features_KF.float(), dim=-1)


def alignment_error(module: FeatureAlignment, hidden: Tensor, batch: Batch, share: RowShare | None = None) -> Tensor:
    """The sum, float32 scalar, over the batch's targets; hidden (B*L, D), of all its places; where ranks share rows
    out, over this rank's, of whose places hidden is. `module` runs also where no target has features."""
    places, features, weights = [], [], []
    for name, task in batch.tasks.items():
        if task.features is None or task.has_features is None:
            continue
        places.append(batch.parts[OBJECTIVES[name].representation.name].index[task.rows[task.targets]])
        features.append(task.features)
        has = task.has_features
        weights.append(has.float() if task.weights is None else has * task.weights[task.targets])
    if not features:
        raise ValueError("batch: expected features to align with; collate lays them out for a feature_dim")
    places_K, features_KF, weights_K = (torch.cat(several) for several in (places, features, weights))
    if share:
        which, places_K = share.mine(places_K)
        features_KF, weights_K = (a.index_select(0, which) for a in (features_KF, weights_K))
    error_K = module(hidden.index_select(0, places_K), features_KF) * weights_K
    # Summed by place, so that rounding does not depend on what else the batch holds.
    return error_K.new_zeros(len(hidden)).index_copy(0, places_K, error_K).view(batch.ids.shape).sum()


def features_on_grid(features: Tensor, feature_grid: Grid, grid: Grid) -> Tensor:
    """Features (n, C) of a picture on `feature_grid` -> float32 (t*h*w, C) on the `grid` of its segment.

    Both in the order time, row, column. Space: the mean over the area of a position where the grid is coarser, linear
    between features where it is finer. Time: see `on_frames`.
    """
    t, h, w = grid
    fh, fw = feature_grid[1:]
    if features.ndim != 2 or len(features) != feature_grid[0] * fh * fw:
        raise ValueError(f"features: grid {feature_grid} does not fit {tuple(features.shape)}")
    frames = on_frames(features.float().unflatten(0, feature_grid), t).movedim(-1, 1)
    frames = F.interpolate(frames, size=(min(h, fh), min(w, fw)), mode="area")
    frames = F.interpolate(frames, size=(h, w), mode="bilinear", align_corners=False)
    return frames.movedim(1, -1).flatten(0, 2)


def on_frames(features: Tensor, t: int) -> Tensor:
    """Features (f, ...) of f frames -> (t, ...). As in the visual tokenizer, the first frame stands for itself, and
    later ones are gathered in equal groups: their mean where t is less than f, repeated where it is more."""
    f = len(features)
    if f == t:
        return features
    if 1 < t < f and (f - 1) % (t - 1) == 0:
        return torch.cat((features[:1], features[1:].unflatten(0, (t - 1, -1)).mean(1)))
    if 1 < f < t and (t - 1) % (f - 1) == 0:
        return torch.cat((features[:1], features[1:].repeat_interleave((t - 1) // (f - 1), dim=0)))
    raise ValueError(f"features: {f} frames do not gather into {t}, a first one and equal groups")
