"""What the figures are means of: a value for each item that was measured, kept so that two evaluations can be paired.

Every figure is a weighted mean over items, sum(weight * value) / sum(weight):
    a mean            all weights are 1
    a mean of labels  an item weighs 1 / (items of its label), so that each label weighs as much
    a ratio           of bits and bytes an item's value is its own ratio and its weight the denominator
    a distance        of two sets an item's value is the distance and its own part in it (`metrics.frechet_parts`)
An item is a record of the held-out split, named by its id; one that was drawn several times has several rows.

`items.parquet` of an evaluation has a row an item and measure: measure, item (text), value, weight (float64).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omniloom.infra import storage

FILE = "items.parquet"


@dataclass(frozen=True)
class Values:
    """Of one figure: ids, values and weights of its items, (N,) each."""

    ids: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray

    @property
    def mean(self) -> float:
        """The figure. NaN where a value is no number."""
        return float((self.values * self.weights).sum() / self.weights.sum())

    def by_item(self) -> Values:
        """One row an item, in the order of ids: its mean, and the sum of its weights."""
        ids, place = np.unique(np.array(self.ids), return_inverse=True)
        weights = np.bincount(place, self.weights)
        values = np.bincount(place, self.weights * self.values) / weights
        return Values(tuple(ids.tolist()), values, weights)


def values_of(ids: Sequence[str], values: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> Values:
    held = np.asarray(values, np.float64)
    found = np.ones(len(held)) if weights is None else np.asarray(weights, np.float64)
    if not len(ids) == len(held) == len(found):
        raise ValueError(f"items: {len(ids)} ids, {len(held)} values, {len(found)} weights")
    return Values(tuple(ids), held, found)


def label_weights(labels: Sequence[str]) -> np.ndarray:
    """Weights, (N,), under which each label weighs as much, however many items it has."""
    counts = Counter(labels)
    return np.array([1 / counts[label] for label in labels])


def write(folder: str, items: Mapping[str, Values]) -> None:
    """`items.parquet` of the folder, in the order of measures and of items within each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(name, held) for name, held in sorted(items.items())]
    table = pa.table(
        {
            "measure": pa.array([name for name, held in rows for _ in held.ids], pa.string()).dictionary_encode(),
            "item": pa.array([item for _, held in rows for item in held.ids], pa.string()),
            "value": np.concatenate([np.zeros(0), *(held.values for _, held in rows)]),
            "weight": np.concatenate([np.zeros(0), *(held.weights for _, held in rows)]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.join(folder, FILE), sink.getvalue().to_pybytes())


def read(folder: str) -> dict[str, Values] | None:
    """By measure; None where the folder has no such file."""
    from omniloom.stages.data.arrow import read_parquet

    if not storage.exists(uri := storage.join(folder, FILE)):
        return None
    table = read_parquet(uri)
    names = np.array(table["measure"].to_pylist(), dtype=object)
    ids = np.array(table["item"].to_pylist(), dtype=object)
    values, weights = table["value"].to_numpy(), table["weight"].to_numpy()
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        found[name] = Values(tuple(ids[rows].tolist()), values[rows], weights[rows])
    return found
