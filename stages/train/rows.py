"""Packed rows as training takes them: this rank's micro-batches by step, and the fixed rows of a validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from omniloom.models.unified.batch import Batch, Document, Segment, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.stages.data.books import Books, Period, RowStream
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.index import Index
from omniloom.stages.data.order import hash_seed
from omniloom.stages.data.packing import Placed
from omniloom.stages.data.parts import Part, held_before
from omniloom.stages.data.planner import Planner, Window
from omniloom.stages.data.shares import most
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train.config import Config, feature_dim

Draw = Callable[[Batch, list[int]], dict[str, tuple[Tensor, ...]]]
Beside = Callable[[Sequence[Sequence[Document]], str | None], Batch | None]
MicroBatches = list[tuple[Batch, list[int]]]  # a forward pass each, with a seed per row


@dataclass(frozen=True)
class PackedRow:
    """A row of a step: its number among all of the step, the seed of its noise, and its documents in their order."""

    number: int
    seed: int
    documents: list[Placed]


def period(corpus: Index | Sequence[Part], config: Config, step: int = 0, rows: int = 0) -> Period:
    """The period of the books that a config means, from a step on, before which there were so many rows."""
    return Period(step, rows, config.batch_rows, Planner(corpus, config.packing, config.seed, config.objectives))


_AHEAD = 4  # steps whose tokens are brought to this machine


class RowLoader:
    """`at(step)`: this rank's micro-batches, one a forward pass. Collates one step ahead.

    `draw` gives what a step draws of a batch and its rows' seeds (`UnifiedObjective.draw_ahead`): drawn here, it is in
    the batch; without it the step draws. `beside` gives what else it needs of the rows (`UnifiedObjective.beside`).
    For a GPU batches are in page-locked memory.

    `books` are those of a training that was changed on the way; `tokens` and `config` are of their last period. A
    document that is left out leaves its places in its row empty at the end; all others stay in their rows.
    """

    def __init__(
        self,
        tokens: TokenSet,
        model_config: UnifiedConfig,
        config: Config,
        rank: int,
        ranks: int,
        device: str = "cpu",
        books: Books | None = None,
        draw: Draw | None = None,
        beside: Beside | None = None,
    ):
        self.tokens, self.model_config, self.config, self.rank, self.ranks = tokens, model_config, config, rank, ranks
        self.device, self.feature_dim, self._draw = device, feature_dim(config, tokens.facts), draw
        self._beside = beside
        tokens.index.read_ahead()
        self._books = books or Books([period(tokens.index, config)])
        self._documents = Documents(tokens, model_config, config.loss.task_weights, bool(self.feature_dim))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future] | None = None
        self._taken: dict[int, list[PackedRow]] = {}  # by step, of the last two
        self._left_out: dict[str, int] = {}  # ids of documents, and the step from which on they are in no batch
        self._enter(None)

    def _enter(self, position: dict[str, Any] | None) -> None:
        if self._ahead:  # the background takes from the stream
            self._ahead[1].result()
            self._ahead = None
        self._stream = RowStream(self._books, position)
        self._position = dict(self._stream.position)

    @property
    def position(self) -> dict[str, Any]:
        return {"stream": self._position, **({"left_out_since": dict(self._left_out)} if self._left_out else {})}

    def seek(self, position: dict[str, Any]) -> None:
        stream, since = position["stream"], position.get("left_out_since", {})
        step, _ = self._books.place(stream["rows"] + stream["row"])
        self._left_out = dict.fromkeys(position.get("left_out", ()), step) | since  # what is left out stays so
        self._enter(stream)

    def _load(self, step: int) -> tuple[MicroBatches, dict[str, Any], list[PackedRow]]:
        """The micro-batches, the position after them, and what they were made of."""
        rows = self._stream.next(self.config.batch_rows)
        together = self.config.engine.sequence_parallel
        mine = self.config.workers.division(len(rows), self.rank, self.ranks, together)
        packed = [[self._packed(step, number, rows[number]) for number in numbers] for numbers in mine]
        batches = [self._micro_batch(some) for some in packed]
        first, last = mine[0].start, mine[-1].stop
        if self.tokens.remote:
            coming = enumerate(self._stream.coming(_AHEAD * len(rows)))
            planner = self._books.periods[-1].planner
            wanted = [
                window.documents(row)
                for number, (window, row) in coming
                if first <= number % len(rows) < last and window.planner is planner
            ]
            self.tokens.ahead(np.concatenate([np.empty(0, np.int64), *wanted]))
        return batches, dict(self._stream.position), [row for some in packed for row in some]

    def _micro_batch(self, rows: Sequence[PackedRow]) -> tuple[Batch, list[int]]:
        batch = self.collate([[self.segments(placed, row.seed) for placed in row.documents] for row in rows])
        seeds = [row.seed for row in rows]
        if self._draw:
            batch.drawn = self._draw(batch, seeds)
        return (batch if self.device == "cpu" else batch.pinned()), seeds

    def _packed(self, step: int, number: int, held: tuple[Window, int]) -> PackedRow:
        # A row's noise depends on its place in the run alone, never on ranks or batches.
        seed = hash_seed(self.config.seed, step, number)
        window, now = held[0], self._books.periods[-1]
        found = (self._books.placed(window, piece, now) for piece in window.span(held[1]))
        row = [placed for placed in found if placed]
        if self._left_out:
            row = [placed for placed in row if self.tokens.row(placed.index)["id"] not in self._left_out]
        return PackedRow(number, seed, row)

    def segments(self, placed: Placed, seed: int) -> list[Segment]:
        """A document's segments in a row of that seed, made anew each time."""
        return self._documents.segments(placed, seed)

    def collate(self, rows: Sequence[Sequence[Document]]) -> Batch:
        batch = collate(rows, self.config.packing.length, self.model_config, self.device, self.feature_dim)
        batch.unconditioned = self._beside(rows, self.device) if self._beside else None
        return batch

    def at(self, step: int) -> MicroBatches:
        if self._ahead and self._ahead[0] == step:
            batches, self._position, taken = self._ahead[1].result()
        else:
            batches, self._position, taken = self._load(step)
        self._taken = {number: kept for number, kept in self._taken.items() if number == step - 1} | {step: taken}
        self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return batches

    def taken(self, step: int) -> list[PackedRow]:
        """This rank's rows of the step that was taken last, or of the one before."""
        return self._taken[step]

    def describe(self, step: int) -> str:
        ids = [self.tokens.row(placed.index)["id"][:12] for row in self._taken[step] for placed in row.documents[:2]]
        return f"rows with documents {', '.join(ids[:8])}"

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def validation_rows(
    held_out: TokenSet, config: Config, model_config: UnifiedConfig, device: str, earlier: Sequence[Index] = ()
) -> MicroBatches:
    """Packed rows of the validation split, the same at every validation, where all tasks weigh alike; empty where the
    split holds nothing that fits. What one of the `earlier` corpora of the training had to train on is not in them."""
    packing = config.packing.held_out().model_copy(
        update={
            "window_rows": config.validation_rows,
            "mixture": most(config.packing.mixture),  # of a schedule all that it ever has
        }
    )
    unseen = np.where(held_before(held_out.index, earlier), -1, np.arange(len(held_out))) if earlier else None
    corpus = [Part(held_out.index, unseen)]
    planner = Planner(corpus, packing, config.seed, most(config.objectives), empty=True)
    if not planner.shares:  # what of the split is left out is counted in the stage's metrics
        return []
    rows = RowStream(planner).take(config.validation_rows)
    documents = Documents(held_out, model_config)
    found = []
    for number, row in enumerate(rows):
        seed = hash_seed(config.seed, 4, number)
        built = [documents.segments(placed, seed) for placed in row]
        found.append((collate([built], config.packing.length, model_config, device), [seed]))
    return found
