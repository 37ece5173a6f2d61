"""Keys and values of one layer for a batch of ragged requests, and attention over them. In: keys and values of what is
fed. Out: those of all that is held. Of a layer with a recurrence its state, `StateLayer`.

What one feed does is the same in every layer: where it writes, how far it reads, what each query sees. `Feed` says it
once for all layers, in the cheapest of three ways:

    runs    neighbouring rows of one length are written and read as they lie, without a mask
    mask    rows of many lengths, or queries that see no more than some of what is fed
    causal  prefixes of text alone, read into an empty cache
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.unified.attention import Attend, SquaredReluAttend
from omniloom.models.unified.config import RECURRENT_TAPS
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.recurrence import Chain

_GROWTH = 64
_QUERIES = 16  # of a run on a CPU, from which a kernel of its own costs less than a mask and keys beyond its own
_RUNS = 2  # on other devices


@dataclass(frozen=True)
class Run:
    """Rows first..stop of a state, whose own places are the first `length`."""

    first: int
    stop: int
    length: int


def runs(lengths: Sequence[int]) -> list[Run]:
    """Neighbouring rows of one length, in their order."""
    found, first = [], 0
    for length, rows in groupby(lengths):
        stop = first + len(list(rows))
        found.append(Run(first, stop, length))
        first = stop
    return found


class Feed:
    """What N places a row are fed behind the rows' own `lengths`. `write` puts their keys and values there, `reach` is
    how far the longest row then goes, `attend` is what they attend with.

    sees  how many of the places that are fed each one sees beside its row's own: int64 (B, N), or all of them; "causal"
          where that is 1..N and nothing is held yet
    kept  how many of them each row keeps; none by default
    squared  the length of squared ReLUs, which take a mask; None of a softmax
    """

    def __init__(
        self,
        lengths: Sequence[int],
        N: int,
        device: torch.device,
        sees: Tensor | str | None = None,
        kept: Sequence[int] = (),
        squared: int | None = None,
    ):
        B = len(lengths)
        self.kept = kept
        self.lengths, self.N, self.reach = lengths, N, max(lengths) + N
        self.runs = runs(lengths)
        most = B * N // _QUERIES if device.type == "cpu" else _RUNS
        self.places: Tensor | None = None  # by row, where there are too many runs
        if len(self.runs) > max(1, most):
            self.places = torch.tensor(lengths, device=device)[:, None] + torch.arange(N, device=device)
        self.attend: Attend = self._by_run
        if squared is not None:
            begins = torch.tensor(lengths, device=device)[:, None]
            causal = torch.arange(1, N + 1, device=device) if isinstance(sees, str) else sees
            end = (begins + (N if causal is None else causal)).expand(B, N)
            self.attend = SquaredReluAttend(dense_mask(torch.zeros_like(end), end, self.reach), squared)
        elif isinstance(sees, str):
            self.attend = _causal
        elif self.places is not None or sees is not None:
            begins = torch.tensor(lengths, device=device)[:, None]
            end = (begins + (N if sees is None else sees)).expand(B, N)
            self.attend = _Masked(dense_mask(torch.zeros_like(end), end, self.reach))

    def write(self, held: Tensor, new: Tensor) -> None:
        """held (B, kv_heads, K, head_dim), new (B, kv_heads, N, head_dim)."""
        if self.places is not None:
            held.scatter_(2, self.places[:, None, :, None].expand_as(new), new)
        elif len(self.runs) == 1:
            held[:, :, self.lengths[0] : self.reach] = new
        else:
            for run in self.runs:
                held[run.first : run.stop, :, run.length : run.length + self.N] = new[run.first : run.stop]

    def _by_run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(self.runs) == 1:
            return _attend(q, k, v)
        parts = []
        for run in self.runs:
            rows, keys = slice(run.first, run.stop), slice(0, run.length + self.N)
            parts.append(_attend(q[rows], k[rows, :, keys], v[rows, :, keys]))
        return torch.cat(parts)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """mask bool (B, 1, N, K). Query heads that share keys become queries of one head, so that no keys are copied."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    mask = None if mask is None else mask.repeat(1, 1, groups, 1)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(q.shape)


@dataclass(frozen=True)
class _Masked:
    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _attend(q, k, v, self.mask)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


class Layer:
    """One layer's keys and values, (B, kv_heads, capacity, head_dim) each."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values  # None until something is fed
        self.feed: Feed | None = None  # what is being fed; set before each pass

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.feed is None:
            raise RuntimeError("a layer is told what is fed before it is")
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], 0, keys.shape[3])
            self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)
        held_keys, held_values = self._grow(self.feed.reach)
        return self._written(self.feed, held_keys, keys), self._written(self.feed, held_values, values)

    def _written(self, feed: Feed, held: Tensor, new: Tensor) -> Tensor:
        held = held[:, :, : feed.reach]
        if torch.is_grad_enabled():
            held = held.clone()
        feed.write(held, new)
        return held

    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values; RuntimeError before the first feed, which says how many rows there are."""
        if self.keys is None or self.values is None:
            raise RuntimeError("a layer holds no keys before something is fed")
        return self.keys, self.values

    def _grow(self, capacity: int) -> tuple[Tensor, Tensor]:
        """What is held, with room for `capacity` places."""
        keys, values = self.held()
        missing = capacity - keys.shape[2]
        if missing > 0:
            # Half as much again, so that one token at a time does not copy the cache every time.
            missing = max(missing, _GROWTH, keys.shape[2] // 2)
            keys, values = (F.pad(a, (0, 0, 0, missing)) for a in (keys, values))
            self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor) -> Layer:
        keys, values = self.held()
        return Layer(keys.index_select(0, rows), values.index_select(0, rows))

    def put(self, rows: Tensor, other: Layer, used: int) -> None:
        for mine, theirs in zip(self._grow(used), other.held()):
            mine[rows, :, :used] = theirs[:, :, :used]

    def stack(self, other: Layer, size: int) -> Layer:
        """The first `size` places of both, this layer's rows first."""
        keys, values = (
            torch.cat((mine[:, :, :size], theirs[:, :, :size]))
            for mine, theirs in zip(self._grow(size), other._grow(size))
        )
        return Layer(keys, values)

    @classmethod
    def room(cls, like: Layer, rows: int, capacity: int) -> Layer:
        """Without content, for `rows` rows of `capacity` places."""
        keys, values = (a.new_zeros((rows, a.shape[1], capacity, a.shape[3])) for a in like.held())
        return cls(keys, values)


class StateLayer:
    """A recurrence's state behind each row's own places, float32 (B, D), and its last inputs of text, (B, taps - 1, D)
    (`models.unified.recurrence`). What a row does not keep of a feed leaves no trace."""

    def __init__(self, state: Tensor | None = None, inputs: Tensor | None = None) -> None:
        self.state, self.inputs = state, inputs
        self.feed: Feed | None = None  # as of `Layer`

    def held(self) -> tuple[Tensor, Tensor] | None:
        return None if self.state is None or self.inputs is None else (self.state, self.inputs)

    def keep(self, states: Tensor, inputs: Tensor, chain: Chain) -> None:
        if self.feed is None:
            raise RuntimeError("a layer is told what is fed before it is")
        if self.state is not None and not any(self.feed.kept):
            return
        kept, D = torch.tensor(self.feed.kept, device=states.device)[:, None], states.shape[2]
        before = torch.zeros_like(states[:, 0]) if self.state is None else self.state
        behind = states.gather(1, (kept - 1).clamp_min(0)[..., None].expand(-1, -1, D))[:, 0]
        self.state = torch.where(kept > 0, behind, before)
        newest = [chain.last.gather(1, kept)]
        while len(newest) < RECURRENT_TAPS - 1:
            newest.insert(0, chain.before.gather(1, newest[0]))
        self.inputs = inputs.gather(1, torch.cat(newest, 1)[..., None].expand(-1, -1, D))

    def _both(self) -> tuple[Tensor, Tensor]:
        if self.state is None or self.inputs is None:
            raise RuntimeError("a layer holds no state before something is fed")
        return self.state, self.inputs

    def select(self, rows: Tensor) -> StateLayer:
        return StateLayer(*(a.index_select(0, rows) for a in self._both()))

    def put(self, rows: Tensor, other: StateLayer, used: int) -> None:
        self.state, self.inputs = (a.index_copy(0, rows, b) for a, b in zip(self._both(), other._both()))

    def stack(self, other: StateLayer, size: int) -> StateLayer:
        return StateLayer(*(torch.cat(both) for both in zip(self._both(), other._both())))

    @classmethod
    def room(cls, like: StateLayer, rows: int, capacity: int) -> StateLayer:
        return cls(*(a.new_zeros((rows, *a.shape[1:])) for a in like._both()))
