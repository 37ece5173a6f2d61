"""Packing: documents of the token set into rows of a fixed length, in an order that only the seed decides.

    window w   a quota of documents per kind, from that kind's endless stream of permuted epochs, arranged anew each
               time (caption first or picture first, condition dropped), and packed best-fit into rows; texts are
               cut where that fills rows; a picture's captions take turns, an epoch each
    row        documents side by side, at most `length` tokens
    position   {"window", "row"}: a global cursor that knows no rank; training goes on from it on any number of ranks

Planning touches lengths alone; only the rows that a rank trains on are read.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.order import draw

Kind = Literal["image", "video", "text", "document"]
Task = Literal["text", "draw", "describe", "document"]  # what a document is arranged as
Source = Literal["text", "image"]  # of a drawn picture's condition: what words say, and earlier pictures
Share = Annotated[float, Field(ge=0, le=1)]


def _shares(value: Any) -> Any:
    """A union's own errors name its types, not what was expected."""
    shares = value if isinstance(value, dict) else {"text": value}
    if (
        not shares
        or set(shares) - set(get_args(Source))
        or not all(
            isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
            for share in shares.values()
        )
    ):
        raise ValueError(f"expected a share from 0 to 1, or shares of {' and '.join(get_args(Source))}, got {value!r}")
    return value


class PackingConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    length: int = Field(4096, ge=16)
    """Tokens of a packed row."""
    mixture: dict[Kind, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Share of tokens per kind (image, video, text, document); what is not named keeps its natural share, 0 leaves a
    kind out."""
    caption_first: float = Field(0.5, ge=0, le=1)
    """Share of captioned pictures that are drawn from their caption; the others are described. Pictures without a
    caption are drawn, and left out where this is 0."""
    caption_loss: bool = True
    """Whether the caption that a picture is drawn from is learnt as well; without it the picture alone is."""
    condition_dropout: Annotated[Share | dict[Source, Share], BeforeValidator(_shares)] = 0.1
    """For guidance: share of the former whose caption is left out; or shares by source, which hold for the drawn
    pictures of interleaved documents too: of text (a caption, all words before the picture) and, apart from it, of
    image (all pictures before it)."""
    noisy_context: float = Field(0.0, ge=0, le=1)
    """Share of documents whose pictures that stand as context are shown with noise; next_code shows none."""
    context_max_time: float = Field(0.3, gt=0, lt=1)
    """Cap of that noise, as a share of the path."""
    window_rows: int = Field(256, ge=1)
    """Rows that are planned together."""


@dataclass(frozen=True)
class Placed:
    """One document in a row. `view` is its `Task`; `start`, `stop` cut a text; `caption_loss` is the config's;
    `target` is the segment of an interleaved document that is drawn, -1 for none, and `dropped` are the sources of a
    drawn picture's condition that are left out; `caption` is the one of a picture's captions that stands with it. Its
    pictures, the drawn one and those that are context, are what `objective` is about; context has noise up to
    `context_time`."""

    index: int
    view: Task
    length: int
    dropped: frozenset[Source] = frozenset()
    start: int = 0
    stop: int = 0
    target: int = -1
    objective: str = "latent_diffusion"
    context_time: float = 0.0
    caption_loss: bool = True
    caption: int = 0


class Planner:
    """Rows of documents, by window. `tokens` is a `stages.data.tokens.TokenSet`; `objectives` maps what is trained on
    pictures to its share of the documents: latent_diffusion by default; {} leaves everything out that has pictures.

    `left_out` counts what never comes into a row, by kind and reason:
        KIND_too_long            documents that are longer than a row, or begin with a picture that is
        KIND_captions_too_long   captions that a picture does not fit into a row with, where others of it do
        KIND_no_caption          pictures without a caption where caption_first is 0
        KIND_no_share            documents of a kind that has no share
        KIND_no_objective        documents with pictures where nothing is trained on them
        document_cut             interleaved documents of which only the beginning fits
        document_pictures_cut    their pictures behind the cut

    ValueError where nothing is left to train on, unless it may be `empty`.
    """

    def __init__(
        self,
        tokens,
        config: PackingConfig,
        seed: int,
        objectives: Mapping[str, float] | None = None,
        empty: bool = False,
    ):
        self.tokens, self.config, self.seed = tokens, config, seed
        objectives = {"latent_diffusion": 1.0} if objectives is None else objectives
        self._names = [name for name in OBJECTIVES if objectives.get(name)]
        self._shares = np.cumsum([objectives[name] for name in self._names])
        # One share is of captions alone.
        shares = config.condition_dropout
        self._dropout, self._interleaved_dropout = (
            (shares, shares) if isinstance(shares, dict) else ({"text": shares}, {})
        )
        self._representations = sorted({OBJECTIVES[name].representation.name for name in self._names})
        self.kinds = get_args(Kind) if self._names else ("text",)
        self.left_out: Counter[str] = Counter(
            {
                f"{kind}_no_objective": count
                for kind in get_args(Kind)
                if kind not in self.kinds and (count := len(tokens.indices(kind)))
            }
        )
        self.units = {kind: units for kind in self.kinds if (units := self._units(kind))}
        self.quota = self._quota()
        if not self.quota and not empty:
            raise ValueError("packing.mixture: leaves nothing to train on")
        for kind in set(self.units) - set(self.quota):
            self.left_out[f"{kind}_no_share"] = len(tokens.indices(kind))
        self._planned: dict[int, list[list[Placed]]] = {}

    def _units(self, kind: str) -> list[tuple[int, int, int]]:
        """(document, start, stop) of what can be placed: long texts are cut into pieces, a long document to its first
        row, pictures that do not fit left out, in whichever representation they are longest."""
        found = []
        for index in self.tokens.indices(kind):
            lengths = self._longest(int(index))
            total = sum(n + (2 if k == "visual" else 0) for k, n in lengths) + 2
            if kind == "text":
                found += [
                    (int(index), start, min(start + self.config.length, total))
                    for start in range(0, total, self.config.length)
                ]
            elif kind in ("image", "video") and not (self.config.caption_first or any(k == "text" for k, _ in lengths)):
                self.left_out[f"{kind}_no_caption"] += 1
            elif kind in ("image", "video") and (fitting := self._fitting(lengths)):
                found.append((int(index), 0, round(sum(n for _, n in fitting) / len(fitting))))
                self.left_out[f"{kind}_captions_too_long"] += sum(k == "text" for k, _ in lengths) - len(fitting)
            elif total <= self.config.length or (kind == "document" and self._begins(lengths)):
                found.append((int(index), 0, min(total, self.config.length)))
                if total > self.config.length:
                    self.left_out["document_cut"] += 1
                    self.left_out["document_pictures_cut"] += self._behind(lengths)
            else:
                self.left_out[f"{kind}_too_long"] += 1
        self.left_out = +self.left_out  # none is nothing to tell
        return found

    def needed(self, index: int) -> int:
        """The least `length` that has room for a picture with its shortest caption, or for the picture that an
        interleaved document begins with."""
        lengths = self._longest(index)
        if lengths[0][0] == "visual":
            return lengths[0][1] + 4
        return lengths[-1][1] + 4 + min(n for kind, n in lengths if kind == "text")

    def _behind(self, lengths: list[tuple[str, int]]) -> int:
        """Pictures of a document that no row reaches."""
        ends = itertools.accumulate((n + (2 if kind == "visual" else 0) for kind, n in lengths), initial=1)
        fits = list(itertools.takewhile(lambda end: end + 1 <= self.config.length, itertools.islice(ends, 1, None)))
        return sum(kind == "visual" for kind, _ in lengths[len(fits) :])

    def _longest(self, index: int) -> list[tuple[str, int]]:
        """Lengths of a document's segments in the representation that it is longest in."""
        return max(
            (self.tokens.lengths(index, name) for name in self._representations or ("latents",)),
            key=lambda found: sum(n for _, n in found),
        )

    def _fitting(self, lengths: list[tuple[str, int]]) -> list[tuple[int, int]]:
        """(caption, tokens with the picture) of a picture's captions that fit into a row."""
        picture = sum(n + 2 for kind, n in lengths if kind == "visual") + 2
        captions = [n for kind, n in lengths if kind == "text"]
        return [(number, n + picture) for number, n in enumerate(captions) if n + picture <= self.config.length]

    def _begins(self, lengths: list[tuple[str, int]]) -> bool:
        """Whether anything of a long document can be placed: its first segment is text or a picture that fits."""
        return lengths[0][0] == "text" or lengths[0][1] + 4 <= self.config.length

    def _quota(self) -> dict[str, int]:
        sizes = {kind: sum(stop - start for _, start, stop in units) for kind, units in self.units.items()}
        shares = {kind: self.config.mixture.get(kind) for kind in sizes}
        natural = sum(sizes[kind] for kind, share in shares.items() if share is None)
        rest = max(0.0, 1 - sum(share for share in shares.values() if share is not None))
        weight = {kind: share if share is not None else rest * sizes[kind] / natural for kind, share in shares.items()}
        total = sum(weight.values()) or 1.0
        budget = self.config.window_rows * self.config.length
        quota = {}
        for kind, units in self.units.items():
            mean = sizes[kind] / len(units)
            if weight[kind] > 0:
                quota[kind] = max(1, round(budget * weight[kind] / total / mean))
        return quota

    def window(self, number: int) -> list[list[Placed]]:
        """The rows of a window; the same for every rank and every run of this seed."""
        if number not in self._planned:
            rng = np.random.default_rng((self.seed, 3, number))
            # Apart, so that an arrangement does not depend on what is trained on it.
            kinds = np.random.default_rng((self.seed, 6, number))
            pictures = np.random.default_rng((self.seed, 7, number))
            placed = [
                self._arrange(kind, self.units[kind][i], rng, kinds, pictures, position // len(self.units[kind]))
                for kind, quota in self.quota.items()
                for position, i in enumerate(
                    draw(len(self.units[kind]), quota, number * quota, self.seed), number * quota
                )
            ]
            rows = pack([placed[i] for i in rng.permutation(len(placed))], self.config.length)
            self._planned = {number: [rows[i] for i in rng.permutation(len(rows))]}
        return self._planned[number]

    def _arrange(
        self,
        kind: str,
        unit: tuple[int, int, int],
        rng: np.random.Generator,
        kinds: np.random.Generator,
        pictures: np.random.Generator,
        epoch: int,
    ) -> Placed:
        by_objective, by_noise = kinds.random(2)
        if not self._names:
            return self._arrange_views(kind, unit, rng, pictures.random(), "latents", epoch)
        choice = np.searchsorted(self._shares, by_objective * self._shares[-1], side="right")
        objective = self._names[min(int(choice), len(self._names) - 1)]
        noisy = by_noise < self.config.noisy_context and not OBJECTIVES[objective].causal
        placed = self._arrange_views(
            kind, unit, rng, pictures.random(), OBJECTIVES[objective].representation.name, epoch
        )
        return replace(placed, objective=objective, context_time=self.config.context_max_time if noisy else 0.0)

    def _arrange_views(
        self,
        kind: str,
        unit: tuple[int, int, int],
        rng: np.random.Generator,
        by_image: float,
        representation: str,
        epoch: int,
    ) -> Placed:
        index, start, stop = unit
        by_order, by_text, by_target = rng.random(3)
        if kind == "text":
            return Placed(index, "text", stop - start, start=start, stop=stop)
        lengths = self.tokens.lengths(index, representation)
        if kind == "document":
            drawn = {"text": by_text, "image": by_image}
            dropped = frozenset(s for s, share in self._interleaved_dropout.items() if drawn[s] < share)
            return self._arrange_document(index, lengths, by_target, dropped)
        number = self._caption(index, lengths, epoch)
        caption = lengths[number][1] if lengths[0][0] == "text" else 0
        total = sum(n for k, n in lengths if k == "visual") + caption + 4
        if caption and by_order >= self.config.caption_first:
            return Placed(index, "describe", total, caption=number)
        dropped: frozenset[Source] = frozenset()
        if not caption or by_text < self._dropout.get("text", 0.0):
            total, dropped = total - caption, frozenset({"text"})
        return Placed(index, "draw", total, dropped, caption_loss=self.config.caption_loss, caption=number)

    def _caption(self, index: int, lengths: list[tuple[str, int]], epoch: int) -> int:
        """Which of a picture's captions an epoch has: each once, in an order of their own, before any comes again."""
        if sum(kind == "text" for kind, _ in lengths) < 2:
            return 0
        fitting = self._fitting(self._longest(index))
        turn, place = divmod(epoch, len(fitting))
        order = np.random.default_rng((self.seed, 8, index, turn)).permutation(len(fitting))
        return fitting[order[place]][0]

    def _arrange_document(
        self, index: int, lengths: list[tuple[str, int]], by_target: float, dropped: frozenset[Source]
    ) -> Placed:
        """Draw one of its pictures, after what comes before it and is not dropped, or (as likely as one picture) only
        read."""
        room, total, pictures = self.config.length, 1, []
        for number, (kind, n) in enumerate(lengths):
            size = n + (2 if kind == "visual" else 0)
            if total + size + 1 > room:
                break
            total += size
            if kind == "visual":
                pictures.append((number, total))
        choice = int(by_target * (len(pictures) + 1))
        if choice < len(pictures):
            number, total = pictures[choice]
            total -= sum(
                n if kind == "text" else n + 2
                for kind, n in lengths[:number]
                if ("text" if kind == "text" else "image") in dropped
            )
            return Placed(index, "document", total, dropped, stop=number + 1, target=number)
        fits = 0
        total = 1
        for kind, n in lengths:
            size = n + (2 if kind == "visual" else 0)
            if total + size + 1 > room:
                if kind == "text" and room - total - 1 > 0:
                    return Placed(index, "document", room, stop=fits + 1)
                break
            total, fits = total + size, fits + 1
        return Placed(index, "document", total + 1, stop=fits)


_LEAST_PIECE = 16  # tokens of a text that is cut: the shorter, the less a token has before it to be predicted from


def pack(documents: list[Placed], length: int) -> list[list[Placed]]:
    """Best-fit decreasing: each document goes into the fullest row that has room for it. Then rows of texts alone, the
    emptiest first, are cut to fill what other rows have left, where that saves the whole row."""
    rows = _best_fit(documents, length)
    used = [sum(document.length for document in row) for row in rows]
    room = sorted((length - tokens, row) for row, tokens in enumerate(used) if tokens < length)
    texts = [row for row, placed in enumerate(rows) if all(document.view == "text" for document in placed)]
    for donor in sorted(texts, key=used.__getitem__):
        others = [(free, row) for free, row in room if row != donor]
        poured = [_pour(text, others) for text in rows[donor]]
        if all(poured):
            for row, piece in itertools.chain(*poured):
                rows[row].append(piece)
            rows[donor], room = [], others
    return [row for row in rows if row]


def _pour(text: Placed, room: list[tuple[int, int]]) -> list[tuple[int, Placed]]:
    """(row, piece) of a text: whole where it fits best, else cut over the largest of `room`, as few as hold it; none
    where a piece would be too small. `room` is brought up to date."""
    at = bisect.bisect_left(room, (text.length, -1))
    if at < len(room):
        taken, sizes = [room.pop(at)], [text.length]
    else:
        sums = list(itertools.accumulate(free for free, _ in reversed(room) if free >= _LEAST_PIECE))
        count = bisect.bisect_left(sums, text.length) + 1
        if count > len(sums) or count * _LEAST_PIECE > text.length:
            return []
        taken = [room.pop() for _ in range(count)]
        sizes, spare = [], sums[count - 1] - text.length
        for free, _ in taken:
            sizes.append(max(_LEAST_PIECE, free - spare))
            spare -= free - sizes[-1]
    pieces, start = [], text.start
    for (free, row), size in zip(taken, sizes, strict=True):
        pieces.append((row, replace(text, length=size, start=start, stop=start + size)))
        start += size
        if free > size:
            bisect.insort(room, (free - size, row))
    return pieces


def _best_fit(documents: list[Placed], length: int) -> list[list[Placed]]:
    rows: list[list[Placed]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for document in sorted(documents, key=lambda d: -d.length):
        at = bisect.bisect_left(room, (document.length, -1))
        if at == len(room):
            rows.append([document])
            free, row = length - document.length, len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(document)
            free -= document.length
        if free > 0:
            bisect.insort(room, (free, row))
    return rows


class RowStream:
    """`take(count)`: the next rows and where they end. Position is {"window", "row"}."""

    def __init__(self, planner: Planner, position: dict | None = None):
        self.planner = planner
        self.window, self.row = (position["window"], position["row"]) if position else (0, 0)

    @property
    def position(self) -> dict:
        return {"window": self.window, "row": self.row}

    def take(self, count: int) -> list[list[Placed]]:
        rows: list[list[Placed]] = []
        while len(rows) < count:
            window = self.planner.window(self.window)
            part = window[self.row : self.row + count - len(rows)]
            rows += part
            self.row += len(part)
            if self.row >= len(window):
                self.window, self.row = self.window + 1, 0
        return rows
