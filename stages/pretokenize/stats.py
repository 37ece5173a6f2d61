"""Counts and statistics of pretokenizing, shard by shard and of all shards.

Sums are taken in the order of the records, so that they are the same to the last bit however often a run was killed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np

GROUP = ("split", "source", "kind", "language")  # what documents are counted by; a language may be unknown: ""
_COUNTED_TOGETHER = 1024  # documents
_TOGETHER = 64  # pictures that are held before they are counted: as they stand in the shard, so always the same ones


def weight(shard: int) -> int:
    """How many shards the one of this number stands for where codes are counted: of the first 256 each for itself, of
    those up to 512 every second for two, up to 1,024 every fourth for four, and so on; 0 for those between."""
    stands = 1 << max(0, shard.bit_length() - 8)
    return 0 if shard % stands else stands


class Stats:
    """Of one shard: counts, counts by `GROUP`, of pictures by kind the places and pixels and how often each code
    occurs, and the sums that give the latents' mean and standard deviation over the train split."""

    def __init__(self, channels: int, stands_for: int = 1):
        self.stands_for = stands_for  # shards, where codes are counted
        self.counts: Counter[str] = Counter()
        self.groups: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self.pictures: dict[str, Counter[str]] = defaultdict(Counter)
        self.codes: dict[str, Counter[int]] = defaultdict(Counter)
        self.number, self.sum, self.squares = 0, np.zeros(channels), np.zeros(channels)
        self.variance = np.zeros(channels)  # sum of the posteriors' variances
        self.least, self.greatest = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.errors: dict[str, tuple[float, int]] = {}  # by kind, of some pictures: squared errors in all, and values
        self._codes: dict[str, list[np.ndarray]] = defaultdict(list)  # that are not counted yet
        self._train: list[dict] = []  # segments whose latents are not summed yet
        self._documents: list[tuple[tuple[str, ...], int, int, int]] = []  # that are not counted yet

    def add(self, name: str, value: int = 1) -> None:
        self.counts[name] += value

    def count(self, row: dict, split: str, language: str = "") -> None:
        """A document as it is written."""
        words = places = 0
        for segment in row["segments"]:
            if segment["kind"] == "text":
                words += len(segment["ids"])
            else:
                places += self._picture(segment, "video" if row["kind"] == "video" else "image", split)
        self._documents.append(((split, row["source"] or "", row["kind"], language), words, places, row["bytes"]))
        if len(self._documents) == _COUNTED_TOGETHER:
            self._count()

    def _count(self) -> None:
        """The documents that are held, group by group."""
        some, self._documents = self._documents, []
        held: dict[tuple[str, ...], list[int]] = {}
        for group, *numbers in some:
            sums = held.setdefault(group, [0, 0, 0, 0])
            sums[:] = map(int.__add__, sums, (1, *numbers))
        for group, (documents, words, places, size) in held.items():
            split, _, kind, _ = group
            for counts in (self.counts, self.groups[group]):
                counts["documents"] += documents
                counts["text_tokens"] += words
                counts["visual_tokens"] += places
            self.counts[f"documents_{kind}"] += documents
            self.counts[f"documents_{split}"] += documents
            self.groups[group]["bytes"] += size

    def _picture(self, segment: dict, kind: str, split: str) -> int:
        """A picture's places in its grid."""
        places, found = math.prod(segment["grid"]), self.pictures[kind]
        found["pictures"] += 1
        found["places"] += places
        found["pixels"] += segment["decoded"]
        if self.stands_for and "codes" in segment:
            self._codes[kind].append(segment["codes"])
            if len(self._codes[kind]) == _TOGETHER:
                self._fold(kind)
        if "error" in segment:
            (error, values), sums = segment["error"], self.errors.get(kind, (0.0, 0))
            self.errors[kind] = sums[0] + error, sums[1] + values
        if split == "train":
            self._train.append(segment)
            if len(self._train) == _TOGETHER:
                self._sum()
        return places

    def _sum(self) -> None:
        some, self._train = self._train, []
        if not some:
            return
        latents = np.concatenate([s["latents"] for s in some]).reshape(-1, len(self.sum)).astype("float64")
        self.number += len(latents)
        self.sum += latents.sum(0)
        self.squares += (latents**2).sum(0)
        self.least, self.greatest = np.minimum(self.least, latents.min(0)), np.maximum(self.greatest, latents.max(0))
        if "log_variances" in some[0]:
            held = np.concatenate([s["log_variances"] for s in some]).reshape(latents.shape).astype("float64")
            self.variance += np.exp(held).sum(0)

    def _fold(self, kind: str) -> None:
        values, times = np.unique(np.concatenate(self._codes.pop(kind)), return_counts=True)
        self.codes[kind].update(dict(zip(values.tolist(), times.tolist(), strict=True)))

    def to_dict(self) -> dict:
        self._sum()
        self._count()
        for kind in list(self._codes):
            self._fold(kind)
        return {
            "counts": dict(self.counts),
            "groups": [[*group, dict(found)] for group, found in sorted(self.groups.items())],
            "pictures": {kind: dict(found) for kind, found in self.pictures.items()},
            "codes": {
                kind: [sorted(found), [found[code] for code in sorted(found)]] for kind, found in self.codes.items()
            },
            "errors": self.errors,
            "stands_for": self.stands_for,
            "number": self.number,
            **{name: getattr(self, name).tolist() for name in ("sum", "squares", "variance")},
            "least": self.least.tolist() if self.number else None,
            "greatest": self.greatest.tolist() if self.number else None,
        }


def combine(stats: list[dict]) -> dict[str, Any]:
    """The counts of all shards, and `latent_mean` and `latent_std` by channel, from each shard's `to_dict`. The
    deviation is that of latents as training takes them: drawn, where their log-variances are kept."""
    total: dict[str, Any] = {}
    for shard in stats:
        for name, value in shard["counts"].items():
            total[name] = total.get(name, 0) + value
    number = max(1, sum(shard["number"] for shard in stats))
    mean = sum(np.array(shard["sum"]) for shard in stats) / number
    variance = sum(np.array(shard["squares"]) for shard in stats) / number - mean**2
    variance = variance + sum(np.array(shard.get("variance", 0)) for shard in stats) / number
    total["latent_mean"] = mean.tolist()
    # A channel that never moves must not be divided by zero.
    total["latent_std"] = np.sqrt(np.maximum(variance, 1e-8)).tolist()
    return total
