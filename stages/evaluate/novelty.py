"""Measures what a model has from its train pictures: whether it draws them again, and whether held-out pictures are
among them. In: an `Evaluation`, which gets the figures. What each figure means stands in `stages.evaluate.measures`.

A picture that is drawn again lies much nearer to one train picture than to the next ones. How near a picture does by
chance the held-out pictures tell: of them a twentieth (`_BY_CHANCE`) counts as drawn again. Against the next train
pictures, and not by itself, as a model that draws plainer pictures than there are is near to all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniloom.stages.data.clips import ClipStore
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.evaluation import Evaluation

_BY_CHANCE = 0.05
_NEXT = 5  # train pictures behind the nearest one
_SAME_SIDE, _SAME_ERROR = 16, 4 / 255  # of shrunken pictures, and their root mean square difference, that are the same
_BLOCK = 512  # rows of distances at a time


def copies(
    evaluation: Evaluation, asked: Sequence[int], drawn: np.ndarray, real: np.ndarray, train: np.ndarray, suffix: str
) -> None:
    """`image_memorised` of drawn pictures, for the captions of those `asked`, by their features and those of held-out
    and train pictures, (N, D) each."""
    if len(train) <= _NEXT or not len(drawn):
        return
    least = np.quantile(nearness(real, train), _BY_CHANCE)
    evaluation.add(f"image_memorised{suffix}", evaluation.ids(asked), nearness(drawn, train) < least)


def nearness(points: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The distance of each point to its nearest train point over the mean one to the next five, (N,), from 0 to 1."""
    found = []
    for at in range(0, len(points), _BLOCK):
        near = np.partition(metrics.distances(points[at : at + _BLOCK], train), range(_NEXT + 1), axis=1)
        found.append(near[:, 0] / np.maximum(near[:, 1 : _NEXT + 1].mean(axis=1), 1e-12))
    return np.concatenate(found)


def leaked(evaluation: Evaluation) -> None:
    """`leaked_images`: of the held-out pictures that are measured, those that the train split has too: under the same
    id, or as pictures that differ by no more than their encoding."""
    held_out, train = evaluation.images, evaluation.train_images
    if not len(held_out) or not len(train):
        return
    chosen = held_out.spread(evaluation.config.seed)[: max(evaluation.config.drawings, evaluation.config.captions)]
    if not len(chosen):
        return
    known = set(train.table["id"].to_pylist())
    looks, rows = _looks(train, evaluation.trained_on.tolist()), _looks(held_out, chosen.tolist())
    same = []
    for at in range(0, len(rows), _BLOCK):
        nearest = metrics.distances(rows[at : at + _BLOCK], looks).min(axis=1)
        same.append(nearest < _SAME_ERROR * rows.shape[1] ** 0.5)
    ids = evaluation.ids(chosen.tolist())
    by_id = np.array([item in known for item in ids])
    evaluation.add("leaked_images", ids, np.concatenate(same) | by_id)


def _looks(clips: ClipStore, indices: Sequence[int]) -> np.ndarray:
    """(N, 768) of pictures, one of which at a time is whole in memory."""
    return np.concatenate([metrics.shrink([clips[i][0]], _SAME_SIDE) for i in indices])
