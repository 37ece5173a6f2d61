"""The plan of training: which documents lie in which row, in an order that only the seed decides.

    window     so many tokens of documents of each stream as its share of `window_rows` rows, packed best-fit into rows
    row        documents side by side, at most `length` tokens

A stream that was given more than its share, by the last document, gets as much less in the next window. One that may
be seen for so many epochs ends after them, and the others take its share from the next window on. Planning touches
lengths alone; only the rows that a rank trains on are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from omniloom.infra.errors import InputError
from omniloom.models.unified.representations import Objective
from omniloom.stages.data.arrange import TEXT, Arranged, Arranger, placed
from omniloom.stages.data.bestfit import pack
from omniloom.stages.data.index import KINDS, Index, ragged
from omniloom.stages.data.packing import Kind, PackingConfig, Placed
from omniloom.stages.data.parts import Part
from omniloom.stages.data.shares import Shares, most, shares_at, stages
from omniloom.stages.data.streams import Stream

_EPOCHS = "packing.sources"  # the field whose `epochs` end

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
            name: stream
            for number, part in enumerate(parts)
            for kind in kinds
            for name, stream in self._of(part, kind, number)
        }
        sizes = {name: stream.tokens(self.arranger) for name, stream in streams.items()}
        self.streams = {name: stream for name, stream in streams.items() if sizes[name]}
        self._sizes = {name: sizes[name] for name in self.streams}
        self.shares = self.shares_at(0)
        if not empty and not all(map(self._shares, stages(config.mixture))):
            raise ValueError("packing.mixture: leaves nothing to train on")

    def _of(self, part: Part, kind: Kind, number: int) -> Iterator[tuple[str, Stream]]:
        """The streams of a part's kind, by names that no other corpus of the training gives to another."""
        later = f"+{number}" if number else ""
        if not self.config.by_source:
            if part.index.count(kind):
                yield kind + later, Stream(part, kind, self.config.length, self.seed, number)
            return
        if len(part.index) and not part.index.sources:
            raise InputError(
                "the tokens do not say of which source a document is, as those of an older version; make them again "
                "(--force pretokenize)",
                field="packing.sources" if self.config.sources else "packing.temperature",
            )
        for source in part.index.sources:
            if part.index.of_source(kind, source):
                epochs = self.config.source(source).epochs or math.inf
                stream = Stream(part, kind, self.config.length, self.seed, number, source, epochs)
                yield f"{kind}/{source}{later}", stream

    def _arranger(self, step: int) -> Arranger:
        ever, now = most(self._objectives), shares_at(self._objectives, step)
        return Arranger(self.config, {name: now[name] for name, share in ever.items() if share})

    def shares_at(self, step: int, before: Cursors | None = None) -> dict[str, float]:
        """The share of the tokens of each stream that has one at a step; they sum to 1. What has given all that it may
        where the streams stand `before` has none."""
        used_up = {
            name for name, (at, _) in (before or {}).items() if name in self.streams and at >= self.streams[name].limit
        }
        return self._shares(shares_at(self.config.mixture, step), used_up)

    @property
    def trained(self) -> set[str]:
        """The streams that ever have a share."""
        return {name for mixture in stages(self.config.mixture) for name in self._shares(mixture)}

    @property
    def kinds(self) -> set[Kind]:
        """Those of which something can be placed."""
        return {stream.kind for stream in self.streams.values()}

    @property
    def tokens(self) -> float:
        """Tokens that there are until all that is trained on is used up; infinite where it may be seen without end."""
        epochs = ((self.streams[name], self._sizes[name]) for name in self.trained)
        return sum(stream.limit / stream.count * size for stream, size in epochs)

    def _shares(self, mixture: Mapping[Kind, float], used_up: Collection[str] = ()) -> dict[str, float]:
        streams = {name: stream for name, stream in self.streams.items() if name not in used_up}
        sizes: dict[tuple[Kind, str | None], float] = {}  # of the parts of a kind and source together
        for name, stream in streams.items():
            group = stream.kind, stream.source
            sizes[group] = sizes.get(group, 0.0) + self._sizes[name]
        weights = {group: self._weight(group[1], size) for group, size in sizes.items()}
        kinds: dict[Kind, float] = {}
        for (kind, _), weight in weights.items():
            kinds[kind] = kinds.get(kind, 0.0) + weight
        natural = sum(size for kind, size in kinds.items() if kind not in mixture)
        rest = max(0.0, 1 - sum(mixture[kind] for kind, size in kinds.items() if size and kind in mixture))
        shares = {
            kind: (mixture[kind] if kind in mixture else rest * size / natural) if size else 0.0
            for kind, size in kinds.items()
        }
        total = sum(shares.values()) or 1.0
        found = {}
        for name, stream in streams.items():
            group = stream.kind, stream.source
            if shares[stream.kind] > 0 and weights[group] > 0:
                of_kind = weights[group] / kinds[stream.kind]
                found[name] = shares[stream.kind] / total * self._sizes[name] / sizes[group] * of_kind
        return found

    def _weight(self, source: str | None, size: float) -> float:
        """What a kind and source of so many tokens has beside the others."""
        return self.config.source(source).weight * size ** (1 / (self.config.temperature or 1.0))

    def start(self) -> Cursors:
        """Where the streams stand before the first window."""
        return dict.fromkeys(self.streams, (0, 0.0))

    def window(self, number: int, before: Cursors, step: int = 0) -> Window:
        """A window by its number, where the streams stand before it, and the step that it begins at; the same for every
        rank and every run of this seed."""
        budget, arranger = self.config.window_rows * self.config.length, self._arranger(step)
        parts, after = [Arranged.of(0)], dict(before)
        if not (shares := self.shares_at(step, before)):
            raise InputError("every source has been seen for its epochs; raise some, or lower steps", field=_EPOCHS)
        for name, share in shares.items():
            position, owed = before.get(name, (0, 0.0))
            drawn, position = self._draw(name, position, owed + share * budget, arranger)
            after[name] = position, owed + share * budget - int(drawn.length.sum())
            parts.append(drawn)
        return self._packed(Arranged.joined(parts), number, after)

    def _draw(self, name: str, position: int, tokens: float, arranger: Arranger) -> tuple[Arranged, int]:
        """From a position on, the documents of a stream that it takes to reach so many tokens, as far as it goes, and
        the position behind them."""
        stream, parts = self.streams[name], [Arranged.of(0)]
        mean, at = self._sizes[name] / stream.count, position
        while tokens > 0 and at < stream.limit:
            count = int(min(int(1.1 * tokens / mean) + 16, 1 << 18, stream.limit - at))
            found = stream.arranged(np.arange(at, at + count), arranger)
            at += count
            reached = np.cumsum(found.length)
            enough = int(np.searchsorted(reached, tokens)) + 1
            parts.append(found.at(slice(0, enough)))
            tokens -= int(parts[-1].length.sum())
        drawn = Arranged.joined(parts)
        if at >= stream.limit and tokens > 0:
            position = at  # what is left cannot be placed
        elif len(drawn):
            position = int(drawn.position[-1]) + 1
        return replace(drawn, stream=np.full(len(drawn), list(self.streams).index(name))), position

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
