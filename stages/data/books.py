"""The books of a training: what it was given, period by period, and which rows come next.

    period     from a step on: the corpus, the packing, the objectives' shares and the rows of a step, until one changes
    position   of a `RowStream`, as JSON: which row of which window comes next, how many rows came before that window,
               and where each stream stood then; it knows no rank, so that any number of them goes on from it

A window is planned as the period has it in which it begins, and given out to its end: a change holds from the next
window on, but that what the corpus has no more leaves its places empty at once. Streams go on where they stood, so that
a change repeats and loses no document of an epoch. From the seed, the periods and a position follows what every row of
the training held: `Books.uses` tells it of a document.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omniloom.stages.data.packing import Placed
from omniloom.stages.data.planner import Cursors, Planner, Window

_KEPT = 4  # windows that are looked at again
_MARK = 64  # windows from one note of where the streams stand to the next


@dataclass(frozen=True)
class Period:
    """From `step` on, before which there were `rows`; so many `batch_rows` a step."""

    step: int
    rows: int
    batch_rows: int
    planner: Planner


@dataclass(frozen=True)
class Use:
    """A document in a row that was trained on: the step, the row's number in it, what of it was shown how, and the
    period that the row was given out in, whose corpus it is a document of."""

    step: int
    row: int
    placed: Placed
    period: Period


class Books:
    def __init__(self, periods: Sequence[Period] | Planner):
        self.periods = [Period(0, 0, 1, periods)] if isinstance(periods, Planner) else list(periods)

    def period(self, rows: int) -> Period:
        """The one in which the row comes that has so many before it."""
        return self.periods[bisect_right(self.periods, rows, key=lambda period: period.rows) - 1]

    def place(self, rows: int) -> tuple[int, int]:
        """The step of that row, and its number in it."""
        period = self.period(rows)
        steps, row = divmod(rows - period.rows, period.batch_rows)
        return period.step + steps, row

    def placed(self, window: Window, piece: int, period: Period) -> Placed | None:
        """One of a window's pieces as a document of the period's corpus; None where that has it no more."""
        placed = window.placed(piece)
        if window.planner is period.planner:
            return placed
        name = list(window.planner.streams)[int(window.pieces.stream[piece])]
        stream = period.planner.streams.get(name)
        document = stream.document_at(int(window.pieces.position[piece])) if stream else -1
        return replace(placed, index=document) if document >= 0 else None

    def uses(self, position: dict[str, Any], wanted: Mapping[str, np.ndarray]) -> Iterator[Use]:
        """All uses of these units, by stream, in a training that came to this position, in the order of steps."""
        reached = RowStream(self, position).window().after  # rows of the running window are used too
        places = {name: self._places(name, units, reached.get(name, (0, 0))[0]) for name, units in wanted.items()}
        marks = [{"window": 0, "rows": 0, "streams": {}}, *position["marks"]]
        for number, mark in enumerate(marks):
            ends = marks[number + 1] if number + 1 < len(marks) else None
            if any(_between(found, name, mark, ends) for name, found in places.items()):
                yield from self._found(position, mark, ends, places)

    def _places(self, name: str, units: np.ndarray, reached: int) -> np.ndarray:
        """Where in a stream the units stand, in all epochs up to a position."""
        stream = next(held.planner.streams[name] for held in self.periods if name in held.planner.streams)
        epochs = range(1 + reached // stream.count)
        return np.sort(np.concatenate([stream.positions(units, epoch) for epoch in epochs]))

    def _found(
        self, position: dict[str, Any], mark: dict[str, Any], ends: dict[str, Any] | None, places: dict[str, np.ndarray]
    ) -> Iterator[Use]:
        """The uses at these places in the windows from one mark to the next."""
        rows, taken = RowStream(self, {**mark, "row": 0, "marks": []}), position["rows"] + position["row"]
        while rows.rows < taken and (ends is None or rows.number < ends["window"]):
            window, before = rows.window(), rows.rows
            here = np.zeros(len(window.pieces), bool)
            for number, name in enumerate(window.planner.streams):
                if name in places:
                    here |= (window.pieces.stream == number) & np.isin(window.pieces.position, places[name])
            for piece in np.flatnonzero(here).tolist():
                row = before + window.row_of(piece)
                if row < taken and (placed := self.placed(window, piece, self.period(row))):
                    yield Use(*self.place(row), placed, self.period(row))
            rows.skip()


def _passed(at: dict[str, Any], name: str) -> int:
    return int(at["streams"].get(name, (0, 0))[0])


def _between(places: np.ndarray, name: str, mark: dict[str, Any], ends: dict[str, Any] | None) -> bool:
    """Whether a stream came to one of the sorted places after a mark and before the next."""
    first = np.searchsorted(places, _passed(mark, name))
    return bool(first < (len(places) if ends is None else np.searchsorted(places, _passed(ends, name))))


class RowStream:
    """`take(count)`: the next rows; `position`: where it goes on."""

    def __init__(self, books: Books | Planner, position: dict[str, Any] | None = None):
        self.books = Books(books) if isinstance(books, Planner) else books
        position = position or {"window": 0, "row": 0, "rows": 0, "streams": {}, "marks": []}
        self.number, self._row, self.rows = position["window"], position["row"], position["rows"]
        self._before: Cursors = {name: (at[0], at[1]) for name, at in position["streams"].items()}
        self._marks: list[dict[str, Any]] = list(position["marks"])
        self._planned: dict[int, Window] = {}

    @property
    def position(self) -> dict[str, Any]:
        return {
            "window": self.number,
            "row": self._row,
            "rows": self.rows,
            "streams": {name: list(at) for name, at in self._before.items()},
            "marks": list(self._marks),
        }

    def take(self, count: int) -> list[list[Placed]]:
        return [window.row(row) for window, row in self.next(count)]

    def coming(self, count: int) -> list[tuple[Window, int]]:
        """The same, of rows that are not taken yet."""
        ahead = RowStream(self.books, {**self.position, "marks": []})
        ahead._planned = self._planned
        return ahead.next(count)

    def next(self, count: int) -> list[tuple[Window, int]]:
        """The windows of the next rows, and the rows' numbers there."""
        found: list[tuple[Window, int]] = []
        while len(found) < count:
            window = self.window()
            rows = range(self._row, min(self._row + count - len(found), len(window)))
            found += [(window, row) for row in rows]
            self._row += len(rows)
            if self._row >= len(window):
                self.skip()
        return found

    def window(self) -> Window:
        """The one that the next row is in."""
        if self.number not in self._planned:
            planner, (step, _) = self.books.period(self.rows).planner, self.books.place(self.rows)
            while len(self._planned) >= _KEPT:
                self._planned.pop(min(self._planned))
            self._planned[self.number] = planner.window(self.number, self._before, step)
        return self._planned[self.number]

    def skip(self) -> None:
        """On to the next window."""
        window = self.window()
        self.number, self._row, self.rows, self._before = self.number + 1, 0, self.rows + len(window), window.after
        if self.number % _MARK == 0:
            mark = self.position
            self._marks.append({name: mark[name] for name in ("window", "rows", "streams")})
