"""Counts and statistics of pretokenizing, shard by shard and of all shards."""

from __future__ import annotations

from typing import Any

import numpy as np


class Stats:
    """Counts of one shard, and the sums that give the latents' mean and standard deviation over the train split."""

    def __init__(self, channels: int):
        self.counts: dict[str, int] = {}
        self.number, self.sum, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add_latents(self, latents: np.ndarray) -> None:
        """Of one picture: (places, channels)."""
        latents = latents.astype("float64")
        self.number += len(latents)
        self.sum += latents.sum(0)
        self.squares += (latents**2).sum(0)

    def add(self, name: str, value: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + value

    def count(self, row: dict, split: str) -> None:
        for name in ("documents", f"documents_{row['kind']}", f"documents_{split}"):
            self.add(name)
        for segment in row["segments"]:
            name = "text_tokens" if segment["kind"] == "text" else "visual_tokens"
            count = (
                len(segment["ids"])
                if segment["kind"] == "text"
                else int(segment["grid"][0] * segment["grid"][1] * segment["grid"][2])
            )
            self.add(name, count)

    def to_dict(self) -> dict:
        return {
            "counts": self.counts,
            "number": self.number,
            "sum": self.sum.tolist(),
            "squares": self.squares.tolist(),
        }


def combine(stats: list[dict]) -> dict[str, Any]:
    """The counts of all shards, and `latent_mean` and `latent_std` by channel, from each shard's `to_dict`."""
    total: dict[str, Any] = {}
    for shard in stats:
        for name, value in shard["counts"].items():
            total[name] = total.get(name, 0) + value
    number = max(1, sum(shard["number"] for shard in stats))
    mean = sum(np.array(shard["sum"]) for shard in stats) / number
    variance = sum(np.array(shard["squares"]) for shard in stats) / number - mean**2
    total["latent_mean"] = mean.tolist()
    # A channel that never moves must not be divided by zero.
    total["latent_std"] = np.sqrt(np.maximum(variance, 1e-8)).tolist()
    return total
