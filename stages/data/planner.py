"""The plan of training: which documents lie in which row, in an order that only the seed decides.

    window     so many tokens of documents of each stream as its share of `window_rows` rows, packed best-fit into rows
    row        documents side by side, at most `length` tokens
    position   of a `RowStream`: which row of which window comes next, and where each stream stood before that window;
               it knows no rank, so that training goes on from it on any number of ranks

A stream that was given more than its share, by the last document, gets as much less in the next window. Planning
touches lengths alone; only the rows that a rank trains on are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from omniloom.models.unified.representations import Objective
from omniloom.stages.data.arrange import TEXT, Arranged, Arranger, placed
from omniloom.stages.data.bestfit import pack
from omniloom.stages.data.index import KINDS, Index, ragged
from omniloom.stages.data.packing import Kind, PackingConfig, Placed
from omniloom.stages.data.streams import Stream

Cursors = dict[str, tuple[int, float]]  # by stream: its next position, and the tokens that it is owed


class Window:
    """Rows that were planned together. `after` is where the streams stand behind it."""

    def __init__(self, pieces: Arranged, ends: np.ndarray, after: Cursors, planner: Planner):
        self.pieces, self.after, self._planner = pieces, after, planner
        self._ends = ends  # of each row, in `pieces`

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, first: int = 0, last: int | None = None) -> list[list[Placed]]:
        return [self.row(number) for number in range(len(self))[first:last]]

    def row(self, number: int) -> list[Placed]:
        planner = self._planner
        return [placed(self.pieces, i, planner.arranger.names, planner.config) for i in self._span(number)]

    def documents(self, number: int) -> np.ndarray:
        """The documents of a row."""
        span = self._span(number)
        return self.pieces.index[span.start : span.stop]

    def _span(self, number: int) -> range:
        return range(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))


class Planner:
    """Windows over one split. `index` is a `stages.data.index.Index`; `objectives` maps what is trained on pictures to
    its share of the documents: latent_diffusion by default; {} leaves everything out that has pictures.

    ValueError where nothing is left to train on, unless it may be `empty`.
    """

    def __init__(
        self,
        index: Index,
        config: PackingConfig,
        seed: int,
        objectives: Mapping[Objective, float] | None = None,
        empty: bool = False,
    ):
        self.index, self.config, self.seed = index, config, seed
        objectives = {"latent_diffusion": 1.0} if objectives is None else objectives
        self.arranger = Arranger(config, {name: share for name, share in objectives.items() if share}, seed)
        kinds: tuple[Kind, ...] = KINDS if self.arranger.names else ("text",)
        streams = {kind: Stream(index, kind, config.length, seed) for kind in kinds if index.count(kind)}
        sizes = {name: stream.tokens(self.arranger) for name, stream in streams.items()}
        self.streams = {name: stream for name, stream in streams.items() if sizes[name]}
        self.shares = self._shares({name: sizes[name] for name in self.streams})
        if not self.shares and not empty:
            raise ValueError("packing.mixture: leaves nothing to train on")
        self._means = {name: sizes[name] / self.streams[name].count for name in self.shares}

    def _shares(self, sizes: dict[str, float]) -> dict[str, float]:
        """The share of the tokens of each stream that has one; they sum to 1."""
        given = {name: self.config.mixture.get(self.streams[name].kind) for name in sizes}
        natural = sum(size for name, size in sizes.items() if given[name] is None)
        rest = max(0.0, 1 - sum(share for share in given.values() if share is not None))
        shares = {name: rest * sizes[name] / natural if share is None else share for name, share in given.items()}
        total = sum(shares.values())
        return {name: share / total for name, share in shares.items() if share > 0}

    def start(self) -> Cursors:
        """Where the streams stand before the first window."""
        return dict.fromkeys(self.shares, (0, 0.0))

    def window(self, number: int, before: Cursors) -> Window:
        """A window by its number and where the streams stand before it; the same for every rank and every run of this
        seed."""
        budget = self.config.window_rows * self.config.length
        parts, after = [], dict(before)
        for name, share in self.shares.items():
            position, owed = before.get(name, (0, 0.0))
            drawn = self._draw(name, position, owed + share * budget)
            if len(drawn):
                position = int(drawn.position[-1]) + 1
            after[name] = position, owed + share * budget - int(drawn.length.sum())
            parts.append(drawn)
        return self._packed(Arranged.joined(parts), number, after)

    def _draw(self, name: str, position: int, tokens: float) -> Arranged:
        """From a position on, the documents of a stream that it takes to reach so many tokens."""
        stream, parts = self.streams[name], [Arranged.of(0)]
        while tokens > 0:
            count = min(int(1.1 * tokens / self._means[name]) + 16, 1 << 18)
            found = stream.arranged(np.arange(position, position + count), self.arranger)
            position += count
            reached = np.cumsum(found.length)
            enough = int(np.searchsorted(reached, tokens)) + 1
            parts.append(found.at(slice(0, enough)))
            tokens -= int(parts[-1].length.sum())
        drawn = Arranged.joined(parts)
        return replace(drawn, stream=np.full(len(drawn), list(self.streams).index(name)))

    def _packed(self, documents: Arranged, number: int, after: Cursors) -> Window:
        rng = np.random.default_rng((self.seed, 3, number))
        documents = documents.at(rng.permutation(len(documents)))
        pieces = pack(documents.length, documents.view == TEXT, self.config.length)
        counts = np.bincount(pieces.row)
        order = rng.permutation(len(counts))
        starts = np.cumsum(counts) - counts
        chosen = ragged(starts[order], counts[order])
        size = pieces.size[chosen]
        found, text = documents.at(pieces.item[chosen]), documents.view[pieces.item[chosen]] == TEXT
        start = found.start + pieces.begin[chosen]
        cut = replace(found, length=size, start=start * text, stop=np.where(text, start + size, found.stop))
        return Window(cut, np.cumsum(counts[order]), after, self)


class RowStream:
    """`take(count)`: the next rows; `position`, as JSON: where it goes on."""

    def __init__(self, planner: Planner, position: dict[str, Any] | None = None):
        self.planner = planner
        position = position or {"window": 0, "row": 0, "streams": {}}
        self._number, self._row = position["window"], position["row"]
        self._before: Cursors = planner.start() | {name: (at[0], at[1]) for name, at in position["streams"].items()}
        self._planned: dict[int, Window] = {}

    @property
    def position(self) -> dict[str, Any]:
        streams = {name: list(at) for name, at in self._before.items()}
        return {"window": self._number, "row": self._row, "streams": streams}

    def take(self, count: int) -> list[list[Placed]]:
        taken = [window.row(row) for window, row in self._next(count)]
        self._planned = {number: window for number, window in self._planned.items() if number >= self._number}
        return taken

    def coming(self, count: int) -> list[np.ndarray]:
        """The documents of each of the next rows, which are not taken."""
        number, row, before = self._number, self._row, self._before
        found = [window.documents(row) for window, row in self._next(count)]
        self._number, self._row, self._before = number, row, before
        return found

    def _next(self, count: int) -> list[tuple[Window, int]]:
        found: list[tuple[Window, int]] = []
        while len(found) < count:
            window = self._window()
            rows = range(self._row, min(self._row + count - len(found), len(window)))
            found += [(window, row) for row in rows]
            self._row += len(rows)
            if self._row >= len(window):
                self._number, self._row, self._before = self._number + 1, 0, window.after
        return found

    def _window(self) -> Window:
        if self._number not in self._planned:
            self._planned[self._number] = self.planner.window(self._number, self._before)
        return self._planned[self._number]
