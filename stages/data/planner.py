"""The plan of training: which documents lie in which row, in an order that only the seed decides.

    window     so many tokens of documents of each stream as its share of `window_rows` rows, packed best-fit into rows
    row        documents side by side, at most `length` tokens

A stream that was given more than its share, by the last document, gets as much less in the next window. Planning
touches lengths alone; only the rows that a rank trains on are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from omniloom.models.unified.representations import Objective
from omniloom.stages.data.arrange import TEXT, Arranged, Arranger, placed
from omniloom.stages.data.bestfit import pack
from omniloom.stages.data.index import KINDS, Index, ragged
from omniloom.stages.data.packing import Kind, PackingConfig, Placed
from omniloom.stages.data.parts import Part
from omniloom.stages.data.shares import Shares, most, shares_at, stages
from omniloom.stages.data.streams import Stream

Cursors = dict[str, tuple[int, float]]  # by stream: its next position, and the tokens that it is owed


class Window:
    """Rows that were planned together. `after` is where the streams stand behind it."""

    def __init__(self, pieces: Arranged, ends: np.ndarray, after: Cursors, planner: Planner):
        self.pieces, self.after, self.planner = pieces, after, planner
        self._ends = ends  # of each row, in `pieces`

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, first: int = 0, last: int | None = None) -> list[list[Placed]]:
        return [self.row(number) for number in range(len(self))[first:last]]

    def row(self, number: int) -> list[Placed]:
        return [self.placed(piece) for piece in self.span(number)]

    def placed(self, piece: int) -> Placed:
        """One of `pieces` as a value."""
        return placed(self.pieces, piece, self.planner.arranger.names, self.planner.config)

    def row_of(self, piece: int) -> int:
        """The row that one of `pieces` lies in."""
        return int(np.searchsorted(self._ends, piece, side="right"))

    def documents(self, number: int) -> np.ndarray:
        """The documents of a row."""
        span = self.span(number)
        return self.pieces.index[span.start : span.stop]

    def span(self, number: int) -> range:
        """Where a row lies in `pieces`."""
        return range(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))


class Planner:
    """Windows over one split. `corpus` is its `stages.data.index.Index`, or the parts that it came in; `objectives`
    maps what is trained on pictures to its share of the documents: latent_diffusion by default; {} leaves everything
    out that has pictures.

    ValueError where nothing is left to train on, unless it may be `empty`.
    """

    def __init__(
        self,
        corpus: Index | Sequence[Part],
        config: PackingConfig,
        seed: int,
        objectives: Shares[Objective] | None = None,
        empty: bool = False,
    ):
        parts = [Part(corpus)] if isinstance(corpus, Index) else corpus
        self.index, self.config, self.seed = parts[-1].index, config, seed
        self._objectives = {"latent_diffusion": 1.0} if objectives is None else objectives
        self.arranger = self._arranger(0)
        kinds: tuple[Kind, ...] = KINDS if self.arranger.names else ("text",)
        streams = {
            f"{kind}+{number}" if number else kind: Stream(part, kind, config.length, seed, number)
            for number, part in enumerate(parts)
            for kind in kinds
            if part.index.count(kind)
        }
        sizes = {name: stream.tokens(self.arranger) for name, stream in streams.items()}
        self.streams = {name: stream for name, stream in streams.items() if sizes[name]}
        self._sizes = {name: sizes[name] for name in self.streams}
        self.shares = self.shares_at(0)
        if not empty and not all(map(self._shares, stages(config.mixture))):
            raise ValueError("packing.mixture: leaves nothing to train on")

    def _arranger(self, step: int) -> Arranger:
        ever, now = most(self._objectives), shares_at(self._objectives, step)
        return Arranger(self.config, {name: now[name] for name, share in ever.items() if share})

    def shares_at(self, step: int) -> dict[str, float]:
        """The share of the tokens of each stream that has one at a step; they sum to 1."""
        return self._shares(shares_at(self.config.mixture, step))

    @property
    def trained(self) -> set[str]:
        """The streams that ever have a share."""
        return {name for mixture in stages(self.config.mixture) for name in self._shares(mixture)}

    def _shares(self, mixture: Mapping[Kind, float]) -> dict[str, float]:
        kinds: dict[Kind, float] = {}
        for name, stream in self.streams.items():
            kinds[stream.kind] = kinds.get(stream.kind, 0.0) + self._sizes[name]
        natural = sum(size for kind, size in kinds.items() if kind not in mixture)
        rest = max(0.0, 1 - sum(mixture[kind] for kind in kinds if kind in mixture))
        shares = {kind: mixture[kind] if kind in mixture else rest * size / natural for kind, size in kinds.items()}
        total = sum(shares.values()) or 1.0
        return {
            name: shares[stream.kind] / total * self._sizes[name] / kinds[stream.kind]
            for name, stream in self.streams.items()
            if shares[stream.kind] > 0
        }

    def start(self) -> Cursors:
        """Where the streams stand before the first window."""
        return dict.fromkeys(self.streams, (0, 0.0))

    def window(self, number: int, before: Cursors, step: int = 0) -> Window:
        """A window by its number, where the streams stand before it, and the step that it begins at; the same for every
        rank and every run of this seed."""
        budget, arranger = self.config.window_rows * self.config.length, self._arranger(step)
        parts, after = [Arranged.of(0)], dict(before)
        for name, share in self.shares_at(step).items():
            position, owed = before.get(name, (0, 0.0))
            drawn = self._draw(name, position, owed + share * budget, arranger)
            if len(drawn):
                position = int(drawn.position[-1]) + 1
            after[name] = position, owed + share * budget - int(drawn.length.sum())
            parts.append(drawn)
        return self._packed(Arranged.joined(parts), number, after)

    def _draw(self, name: str, position: int, tokens: float, arranger: Arranger) -> Arranged:
        """From a position on, the documents of a stream that it takes to reach so many tokens."""
        stream, parts = self.streams[name], [Arranged.of(0)]
        mean = self._sizes[name] / stream.count
        while tokens > 0:
            count = min(int(1.1 * tokens / mean) + 16, 1 << 18)
            found = stream.arranged(np.arange(position, position + count), arranger)
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
