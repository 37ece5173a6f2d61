"""How documents are arranged: what of them is shown, what of them is learnt, and how many tokens that takes.

In: places in a stream (`stages.data.streams`), and lengths from the index; never tokens. Out: `Arranged`, columns of a
document each. What is drawn for a document is a function of the seed and its position in its stream alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from omniloom.models.unified.representations import OBJECTIVES, Objective
from omniloom.stages.data.index import Index, ragged
from omniloom.stages.data.order import hash_seed, uniform
from omniloom.stages.data.packing import TASKS, PackingConfig, Placed, Source

TEXT, DRAW, DESCRIBE, DOCUMENT = range(len(TASKS))
_BITS: dict[Source, int] = {"text": 1, "image": 2}
_ORDER, _TEXT, _IMAGE, _TARGET, _OBJECTIVE, _NOISE, _CAPTION = range(7)  # what is drawn apart
_CHANNELS: dict[Source, int] = {"text": _TEXT, "image": _IMAGE}


@dataclass(frozen=True)
class Arranged:
    """Columns, one value a document: those of `Placed` in integers, and where in which stream the document stands."""

    stream: np.ndarray
    position: np.ndarray  # in the stream, from its first epoch on
    index: np.ndarray
    view: np.ndarray  # place in TASKS
    length: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray
    caption: np.ndarray
    dropped: np.ndarray  # sum of _BITS
    objective: np.ndarray  # place among the objectives that have a share
    noisy: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def at(self, chosen: np.ndarray | slice) -> Arranged:
        return Arranged(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Arranged]) -> Arranged:
        return Arranged(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Arranged)))

    @staticmethod
    def of(count: int, **columns: np.ndarray | int) -> Arranged:
        """Columns of integers; what is not given is 0, and `target` -1."""
        given = {"target": -1, **columns}
        return Arranged(
            *(np.broadcast_to(np.asarray(given.get(f.name, 0), np.int64), (count,)) for f in fields(Arranged))
        )


@dataclass(frozen=True)
class Segments:
    """Of some documents: how many segments each has, and all of them one after the other: n of a text, -n of a
    picture. int64."""

    counts: np.ndarray
    values: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def at(self, chosen: np.ndarray) -> Segments:
        """Of these documents."""
        counts = self.counts[chosen]
        return Segments(counts, self.values[ragged((self.ends - self.counts)[chosen], counts)])

    def where(self, here: np.ndarray, other: Segments) -> Segments:
        """These of the documents that are `here` (bool), the `other` ones of the rest."""
        return Segments(self.counts, np.where(np.repeat(here, self.counts), self.values, other.values))

    @property
    def owners(self) -> np.ndarray:
        """Whose each segment is."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each in a row: a picture stands between two."""
        return np.where(self.values < 0, 2 - self.values, self.values)

    @property
    def reached(self) -> np.ndarray:
        """Tokens of the document up to the end of each segment, with <bos>."""
        sums = np.concatenate([[0], np.cumsum(self.sizes)])
        return 1 + sums[1:] - np.repeat(sums[self.ends - self.counts], self.counts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum of a value of each segment by document."""
        sums = np.concatenate([[0], np.cumsum(values)])
        return sums[self.ends] - sums[self.ends - self.counts]


class Arranger:
    """Documents of one split in one config; `objectives` are shares by name of what is trained on pictures."""

    def __init__(self, config: PackingConfig, objectives: Mapping[Objective, float]):
        self.config = config
        self.names = [row.name for row in OBJECTIVES.values() if row.name in objectives]
        shares = np.cumsum([objectives[name] for name in self.names])
        self._shares = shares / shares[-1] if len(shares) and shares[-1] else shares
        # One share is of captions alone.
        dropout = config.condition_dropout
        self._dropout, self._interleaved_dropout = (
            (dropout, dropout) if isinstance(dropout, dict) else ({"text": dropout}, {})
        )
        by_pixels = [OBJECTIVES[name].representation.name == "pixels" for name in self.names]
        self._by_pixels, self._causal = (
            np.array(values, bool) for values in (by_pixels, [OBJECTIVES[name].causal for name in self.names])
        )

    def longest(self, index: Index, kind: str, places: np.ndarray) -> Segments:
        """The segments of documents of a kind other than text, in the representation that each is longest in."""
        return self._longest(*self._represented(index, kind, places))

    def _represented(self, index: Index, kind: str, places: np.ndarray) -> tuple[Segments, Segments]:
        """By latents, which codes are as long as, and by pixels; one of them twice where the other is not trained."""
        pixels, latents = self._by_pixels.any(), not self._by_pixels.all() or not len(self._by_pixels)
        found = [
            Segments(*index.segments(kind, places, name))
            for name, trained in (("latents", latents), ("pixels", pixels))
            if trained
        ]
        return found[0], found[-1]

    def _longest(self, latents: Segments, pixels: Segments) -> Segments:
        if latents is pixels:
            return latents
        longer = latents.sums(np.abs(latents.values)) >= pixels.sums(np.abs(pixels.values))
        return latents.where(longer, pixels)

    def fits(self, kind: str, held: Segments) -> tuple[np.ndarray, np.ndarray]:
        """Whether anything of each document comes into a row, and how many tokens (float) it takes when nothing is left
        out; of a picture the mean over its captions that fit."""
        total = held.sums(held.sizes) + 2
        if kind == "document":
            begins = (held.counts == 0) | (first_of(held) >= 0) | (4 - first_of(held) <= self.config.length)
            return (total <= self.config.length) | begins, np.minimum(total, self.config.length).astype(float)
        picture = 2 + held.sums(np.where(held.values < 0, held.sizes, 0))
        alone = held.sums(held.values >= 0) == 0
        needed, fitting = self.captions(held)
        times = held.sums(fitting)
        means = held.sums(np.where(fitting, needed, 0)) / np.maximum(times, 1)
        fits = np.where(alone, (picture <= self.config.length) & (self.config.caption_first > 0), times > 0)
        return fits, np.where(alone, picture, means)

    def captions(self, held: Segments) -> tuple[np.ndarray, np.ndarray]:
        """Of each segment of pictures: its tokens with those of the picture, and whether it is a caption that fits."""
        picture = 2 + held.sums(np.where(held.values < 0, held.sizes, 0))
        needed = held.values + np.repeat(picture, held.counts)
        return needed, (held.values >= 0) & (needed <= self.config.length)

    def texts(self, documents: np.ndarray, start: np.ndarray, stop: np.ndarray, positions: np.ndarray) -> Arranged:
        return Arranged.of(
            len(documents),
            index=documents,
            position=positions,
            view=TEXT,
            length=stop - start,
            start=start,
            stop=stop,
        )

    def pictures(
        self,
        index: Index,
        kind: str,
        places: np.ndarray,
        epochs: np.ndarray,
        positions: np.ndarray,
        seed: int,
        source: str | None = None,
    ) -> tuple[np.ndarray, Arranged]:
        """Images, videos and interleaved documents: which of them can be placed, and those as they are arranged, but
        for their numbers. `places` are theirs in their kind, `positions` theirs in the stream of that seed and
        `source`, in its `epochs`."""
        latents, pixels = self._represented(index, kind, places)
        longest = self._longest(latents, pixels)
        chosen = np.flatnonzero(self.fits(kind, longest)[0])
        places, epochs, positions = places[chosen], epochs[chosen], positions[chosen]
        objective = np.searchsorted(self._shares, uniform(positions, hash_seed(seed, _OBJECTIVE)), side="right")
        objective = np.minimum(objective, len(self.names) - 1)
        noisy = uniform(positions, hash_seed(seed, _NOISE)) < self.config.noisy_context
        held = latents.at(chosen).where(~self._by_pixels[objective], pixels.at(chosen))
        if kind == "document":
            columns = self._interleaved(held, positions, seed)
        else:
            asked = self.config.source(source)
            if asked.caption_weights is None:
                caption = self._caption(longest.at(chosen), places, epochs, seed)
            else:
                caption = self._weighted(longest.at(chosen), positions, seed, asked.caption_weights)
            dropout = self._dropout.get("text", 0.0) if asked.caption_dropout is None else asked.caption_dropout
            columns = self._captioned(held, caption, positions, seed, dropout)
        return chosen, Arranged.of(
            len(places),
            position=positions,
            objective=objective,
            noisy=noisy & ~self._causal[objective],
            **columns,
        )

    def _caption(self, longest: Segments, places: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
        """Which of a picture's captions an epoch has: each once, in an order of their own, before any comes again."""
        _, fitting = self.captions(longest)
        times = np.maximum(longest.sums(fitting), 1)
        turn, place = np.divmod(epochs, times)
        held, owners = np.flatnonzero(fitting), longest.owners[fitting]
        number = (held - (longest.ends - longest.counts)[owners]).astype(np.int64)
        drawn = uniform((places[owners] << 20) + (turn[owners] << 10) + number, hash_seed(seed, _CAPTION))
        order = np.lexsort((drawn, owners))
        starts = np.searchsorted(owners[order], np.arange(len(places)))
        found = np.zeros(len(places), np.int64)
        some = np.flatnonzero(longest.sums(fitting))
        found[some] = number[order][(starts + place)[some]]
        return found

    def _weighted(self, longest: Segments, positions: np.ndarray, seed: int, weights: Sequence[float]) -> np.ndarray:
        """Which of a picture's captions that fit stands with it at its position, by the weights of their numbers; those
        that have none by these are as likely as each other."""
        _, fitting = self.captions(longest)
        starts, found = longest.ends - longest.counts, np.zeros(len(positions), np.int64)
        number = np.arange(len(longest.values)) - np.repeat(starts, longest.counts)
        is_caption = (longest.values >= 0).astype(np.int64)
        before_it = np.append(np.cumsum(is_caption) - is_caption, 0)  # captions, of all pictures
        place = before_it[:-1] - np.repeat(before_it[starts], longest.counts)
        weight = np.where(fitting, np.asarray(weights, float)[np.minimum(place, len(weights) - 1)], 0.0)
        none = longest.sums(weight > 0) == 0
        weight = np.where(np.repeat(none, longest.counts), fitting.astype(float), weight)
        reached = np.cumsum(weight)
        before = np.concatenate([[0.0], reached])[starts]
        total = np.concatenate([[0.0], reached])[longest.ends] - before
        some = np.flatnonzero(longest.sums(fitting))
        asked = before + uniform(positions, hash_seed(seed, _CAPTION)) * total
        at = np.searchsorted(reached, asked[some], side="right")
        # Rounding may lead to one beside those that have a weight.
        chosen = np.flatnonzero(weight > 0)
        first = np.searchsorted(chosen, starts[some])
        last = np.searchsorted(chosen, longest.ends[some]) - 1
        at = chosen[np.clip(np.searchsorted(chosen, at), first, last)]
        found[some] = number[at]
        return found

    def _captioned(
        self, held: Segments, caption: np.ndarray, positions: np.ndarray, seed: int, dropout: float
    ) -> dict[str, np.ndarray]:
        starts = held.ends - held.counts
        tokens = held.values[starts + caption]
        tokens = np.where(tokens < 0, 0, tokens)  # the picture itself, where there is no caption
        total = 2 + tokens + held.sums(np.where(held.values < 0, held.sizes, 0))
        describe = (tokens > 0) & (uniform(positions, hash_seed(seed, _ORDER)) >= self.config.caption_first)
        unsaid = (tokens == 0) | (uniform(positions, hash_seed(seed, _TEXT)) < dropout)
        unsaid &= ~describe
        return {
            "view": np.where(describe, DESCRIBE, DRAW),
            "length": np.where(unsaid, total - tokens, total),
            "dropped": np.where(unsaid, _BITS["text"], 0),
            "caption": caption,
        }

    def _interleaved(self, held: Segments, positions: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Draw one of its pictures, after what comes before it and is not dropped, or (as likely as one picture) only
        read."""
        starts, owners, sizes, ends = held.ends - held.counts, held.owners, held.sizes, held.reached
        fits = ends + 1 <= self.config.length
        picture = (held.values < 0) & fits
        pictures = held.sums(picture)
        choice = (uniform(positions, hash_seed(seed, _TARGET)) * (pictures + 1)).astype(np.int64)
        drawn = choice < pictures
        dropped = np.zeros(len(positions), np.int64)
        for source, channel in _CHANNELS.items():
            below = uniform(positions, hash_seed(seed, channel)) < self._interleaved_dropout.get(source, 0.0)
            dropped |= np.where(drawn & below, _BITS[source], 0)
        number, length = self._read(held, starts, fits, ends)
        target = np.full(len(positions), -1)
        if drawn.any():
            found = np.flatnonzero(picture)
            first = np.searchsorted(owners[found], np.arange(len(positions)))
            at = found[(first + choice)[drawn]]
            target[drawn] = at - starts[drawn]
            number[drawn] = target[drawn] + 1
            gone = np.zeros(drawn.sum(), np.int64)
            for source in _BITS:
                theirs = held.values >= 0 if source == "text" else held.values < 0
                tokens = np.cumsum(np.where(theirs, sizes, 0)) - np.where(theirs, sizes, 0)
                gone += np.where(dropped[drawn] & _BITS[source], tokens[at] - tokens[starts[drawn]], 0)
            length[drawn] = ends[at] - gone
        return {
            "view": np.full(len(positions), DOCUMENT),
            "length": length,
            "stop": number,
            "target": target,
            "dropped": dropped,
        }

    def _read(
        self, held: Segments, starts: np.ndarray, fits: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many segments of each document are read, and how many tokens: all of it with <eos>, or what a row
        holds, which may end inside a text."""
        number = held.sums(fits)
        used = np.ones(len(number), np.int64)
        some = np.flatnonzero(number)
        used[some] = ends[(starts + number - 1)[some]]
        length = used + 1
        cut = np.flatnonzero((number < held.counts) & (self.config.length - length > 0))
        cut = cut[held.values[(starts + number)[cut]] >= 0]
        length[cut] = self.config.length
        number[cut] += 1
        return number, length


def first_of(held: Segments) -> np.ndarray:
    """The first segment of each document; 0 of one without."""
    return np.append(held.values, 0)[np.where(held.counts > 0, held.ends - held.counts, len(held.values))]


def placed(arranged: Arranged, number: int, names: Sequence[str], config: PackingConfig) -> Placed:
    """One document of the columns as a value."""
    row = {field.name: int(getattr(arranged, field.name)[number]) for field in fields(Arranged)}
    view = TASKS[row["view"]]
    return Placed(
        row["index"],
        view,
        row["length"],
        frozenset(source for source, bit in _BITS.items() if row["dropped"] & bit),
        row["start"],
        row["stop"],
        row["target"],
        names[row["objective"]] if names and view != "text" else "latent_diffusion",
        config.context_max_time if row["noisy"] else 0.0,
        config.caption_loss if view == "draw" else True,
        row["caption"],
    )
