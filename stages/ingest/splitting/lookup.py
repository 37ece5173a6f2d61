"""Lookup: rows that share a hash are paired, those alone that may have changed since an earlier run. In: hashes of
rows. Out: pairs of rows to be laid side by side. What is looked up, and how two rows are compared, say
`stages.ingest.splitting.twins` of pictures and `stages.ingest.splitting.text_twins` of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_NEIGHBOURS = 8  # rows that a row is paired with in one table, at most

Fine = Callable[[np.ndarray], np.ndarray]  # of these rows


class Values(Protocol):
    """An array of two axes, or what gives its rows as one does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Since:
    """What of the rows was compared before: only what may have changed is compared again.

    `asked`, bool (n,): rows that are new, or had a near twin. `gone`: the shapes of rows that are no more (of texts
    their bands, band by band). Rows that share no hash with any of these are compared with the same rows as before, of
    which none was a near twin.
    """

    asked: np.ndarray
    gone: np.ndarray


def neighbours(keys: np.ndarray, fine: Fine, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Rows with equal keys in pairs: each with the next few in the order of `fine`. `rows`: of these alone, which are
    all that have their keys."""
    rows = np.arange(len(keys)) if rows is None else rows
    own = keys[rows]
    order = np.lexsort((fine(rows), own))
    sorted_keys, found = own[order], rows[order]
    for step in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
        same = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
        if not len(same):
            break
        yield np.stack([found[same], found[same + step]], axis=1)
