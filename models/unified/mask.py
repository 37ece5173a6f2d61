"""The packed attention mask, defined once: one interval per row. In: where documents and visual segments lie
in a row. Out: (start, end), which a backend turns into what it needs; SDPA takes `dense_mask`.

Position i sees [start_i, end_i): start_i is its document's first position, end_i the larger of i + 1 and the
end of its visual segment. So text is causal, a visual segment sees itself in full, and documents never see
each other. Padding sees itself alone, which keeps its softmax finite and its content out of everything else.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def intervals(
    length: int, documents: Iterable[tuple[int, int]], visuals: Iterable[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of one row from half-open spans. Returns (start, end), int64 (length,) each.

    documents  spans [begin, stop) of whole documents; what they leave out is padding
    visuals    spans [begin, stop) of visual positions, each inside a document
    """
    end = np.arange(1, length + 1, dtype=np.int64)
    start = end - 1
    for begin, stop in documents:
        start[begin:stop] = begin
    for begin, stop in visuals:
        end[begin:stop] = stop
    return start, end


def dense_mask(start: Tensor, end: Tensor, keys: int | None = None) -> Tensor:
    """Boolean mask (B, 1, Q, K), True where query i sees key j, from start and end, int64 (B, Q).

    keys  K, the number of key positions; Q by default. A cache has more keys than queries.
    """
    j = torch.arange(start.shape[1] if keys is None else keys, device=start.device)
    return ((j >= start[..., None]) & (j < end[..., None]))[:, None]
