"""Pairs of pictures and captions: what a step of `train_scorer` trains on, and what it is validated on.

A step's pairs are a function of (seed, step) alone; a rank takes its slice of them. Each fold has an order of its own,
of the captioned train pictures outside it. Pictures are moved, zoomed and coloured at random, by the step and the place
in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.infra.artifacts import Artifact
from omniloom.stages.checkpoints.dual_encoder import DualEncoder
from omniloom.stages.checkpoints.scorer import fold_of
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import ClipStore
from omniloom.stages.data.order import BucketOrder, hash_seed
from omniloom.stages.scorer.config import Config


@dataclass(frozen=True)
class Pairs:
    """This rank's pairs of a step: pixels in [0, 1], float32 (b, 3, S, S), and their captions. `same`, bool (B, B),
    says which captions of the whole step are alike, and `counts` how many pairs each rank has."""

    pixels: Tensor
    captions: list[str]
    same: Tensor
    counts: tuple[int, ...]


class PairBatches:
    """`at(step)`: of each fold this rank's `Pairs`. ValueError where a fold leaves nothing to train on."""

    def __init__(self, corpus: Artifact, config: Config, side: int, rank: int, ranks: int):
        self.config, self.rank, self.ranks = config, rank, ranks
        self.store = captioned_store(corpus, "train", side, config.cache_bytes)
        self._captions = self.store.table["captions"].to_pylist()
        captioned = np.array([i for i, own in enumerate(self._captions) if own], np.int64)
        ids = self.store.table["id"].to_pylist()
        folds = np.array([fold_of(ids[i], config.folds) for i in captioned], np.int64)
        self._orders = []
        for fold in range(config.folds):
            members = captioned[folds != fold] if config.folds > 1 else captioned
            if not len(members):
                raise ValueError("folds: the records hold too few captioned images in their train split")
            self._orders.append(BucketOrder([members], config.batch, hash_seed(config.seed, 41, fold)))
        self._ahead: tuple[int, Future] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pairs")

    @property
    def position(self) -> dict[str, Any]:
        return {}  # a step's pairs are those of its number

    def seek(self, position: dict[str, Any]) -> None:
        pass

    def at(self, step: int) -> list[Pairs]:
        pairs = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._load(step)
        self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return pairs

    def _load(self, step: int) -> list[Pairs]:
        return [self._of_fold(fold, step) for fold in range(len(self._orders))]

    def _of_fold(self, fold: int, step: int) -> Pairs:
        config, indices = self.config, self._orders[fold].at(step)[1]
        seed = hash_seed(config.seed, 42, fold, step)
        drawn = np.random.default_rng(seed).random(len(indices))
        captions = [_one(self._captions[i], share) for i, share in zip(indices, drawn, strict=True)]
        parts = np.array_split(np.arange(len(indices)), self.ranks)
        mine = parts[self.rank]
        clips = np.stack([self.store[int(indices[place])][0] for place in mine])
        pixels = torch.from_numpy(clips).permute(0, 3, 1, 2).float() / 255
        numbers = torch.tensor([captions.index(caption) for caption in captions])
        return Pairs(
            changed(pixels, mine, len(indices), seed, config),
            [captions[place] for place in mine],
            numbers[:, None] == numbers[None],
            tuple(map(len, parts)),
        )

    def origins(self, step: int, fold: int) -> list[dict[str, Any]]:
        """Where each pair of a fold's step, of all ranks, comes from: the record's id, its source and file."""
        return [self.store.origin(int(index)) for index in self._orders[fold].at(step)[1]]

    def describe(self, step: int) -> str:
        indices = self._orders[0].at(step)[1]
        ids = [self.store.record(int(i))["id"][:12] for i in indices[:8]]
        return f"{len(indices)} pairs, ids {', '.join(ids)}" + (", ..." if len(indices) > 8 else "")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def captioned_store(corpus: Artifact, split: str, side: int, cache_bytes: int = 0) -> ClipStore:
    """Images of a split as squares of `side` pixels."""
    return ClipStore(corpus, "image", split, Aspects(), side, 1, cache_bytes)


def _one(captions: Sequence[str], share: float) -> str:
    return captions[int(share * len(captions))]


def changed(pixels: Tensor, places: np.ndarray, total: int, seed: int, config: Config) -> Tensor:
    """Pictures moved, zoomed, mirrored and coloured as the config asks, by numbers drawn for all `total` of the step,
    of which these are at `places`: pixels in [0, 1] -> same."""
    drawn = torch.from_numpy(np.random.default_rng((seed, 1)).random((total, 8))[places]).float() * 2 - 1
    turned = torch.zeros(len(pixels), 2, 3)
    zoom = 1 + config.jitter * drawn[:, 0]
    turned[:, 1, 1] = zoom
    turned[:, 0, 0] = torch.where(drawn[:, 3] < 0, -zoom, zoom) if config.flip else zoom
    turned[:, :, 2] = 2 * config.jitter * drawn[:, 1:3]  # a grid's side is 2 long
    grid = F.affine_grid(turned, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    contrast = 1 + config.colour * drawn[:, 4, None, None, None]
    return ((moved - 0.5) * contrast + 0.5 + config.colour / 2 * drawn[:, 5:8, None, None]).clamp(0, 1)


@dataclass(frozen=True)
class HeldOut:
    """Captioned pictures of a split: ids, all captions of each, and the pictures, uint8 (S, S, 3)."""

    ids: list[str]
    captions: list[list[str]]
    store: ClipStore
    indices: np.ndarray

    @classmethod
    def of(cls, corpus: Artifact, split: str, side: int, seed: int, most: int) -> HeldOut:
        """As many as `most`, drawn by the seed evenly over sources and labels."""
        store = captioned_store(corpus, split, side, 1 << 28)
        captions = store.table["captions"].to_pylist()
        captioned = np.array([i for i, own in enumerate(captions) if own], np.int64)
        chosen = store.spread(seed, among=captioned)[:most] if len(captioned) else captioned
        ids = store.table["id"].to_pylist()
        return cls([ids[i] for i in chosen], [captions[i] for i in chosen], store, chosen)

    def pictures(self) -> list[np.ndarray]:
        return [self.store[int(i)][0] for i in self.indices]


def embedded(encoder: DualEncoder, held: HeldOut, distinct: Sequence[str], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1 on the CPU: (N, dim) of the pictures, (M, dim) of the distinct captions."""
    found, pictures = [], held.pictures()
    for at in range(0, len(pictures), batch):
        found.append(F.normalize(encoder.pictures(pictures[at : at + batch]).float(), dim=-1).cpu())
    return torch.cat(found), F.normalize(encoder.texts(distinct).float(), dim=-1).cpu()
