"""What a training used documents for. In: its ledger, the tokens of its periods, and the documents' ids. Out: the steps
that had them, and how they were shown there. Where one stands in the order is computed, so that for each time that it
comes a few windows are planned again, however long the training was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniloom.stages.data.books import Use
from omniloom.stages.data.index import Index, id_hash
from omniloom.stages.train.ledger import Ledger, open_books

_PIECE = 1 << 22


class Uses:
    """Of one training. `ledger` is a closed one; `indices` are those of its periods' tokens, of the train split."""

    def __init__(self, ledger: Ledger, indices: Sequence[Index]):
        self.ledger, self.books = ledger, open_books(ledger, indices)
        planners = [period.planner for period in self.books.periods]
        self._streams = {key: stream for planner in planners for key, stream in planner.streams.items()}

    def of(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The uses of the documents of these ids, in the order of steps: "id", "step", "row", "training" (which one's
        period that was), "task", "objective" of a picture, "tokens", and of a text from which token "start" to which
        "stop". "applied" is False where the step changed no weights."""
        known = {id_hash(name): name for name in names}
        told = {id(period): facts for period, facts in zip(self.books.periods, self.ledger["periods"], strict=True)}
        found = []
        for use in self.books.uses(self.ledger["position"], self._units(names)):
            name = known[int(use.period.planner.index.column("id")[use.placed.index])]
            if use.step < self.ledger["left_out"].get(name, use.step + 1):
                found.append({"id": name, **_facts(use), "training": told[id(use.period)]["training"]})
        skipped = set(self.ledger["not_applied"])
        return [{**use, "applied": use["step"] not in skipped} for use in found]

    def _units(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """By stream, the units of the documents in it: in the order of each corpus that has them. Where an earlier one
        had one too the stream passes it over."""
        corpora = {id(stream.index): stream.index for stream in self._streams.values()}
        held = {key: numbers(index, names) for key, index in corpora.items()}
        found = {}
        for key, stream in self._streams.items():
            places = _places(stream.index, stream.kind, held[id(stream.index)])
            if units := [own for place in places if len(own := stream.units_of(place))]:
                found[key] = np.concatenate(units)
        return found

    def why_not(self, name: str) -> str:
        """Why a document that the tokens hold to train on was in no row."""
        if name in self.ledger["left_out"]:
            return f"left out from step {self.ledger['left_out'][name]} on, where it was to blame for a bad one"
        units, reached = self._units([name]), self.ledger["position"]["streams"]
        trained = set[str]().union(*(period.planner.trained for period in self.books.periods))
        if not trained & units.keys():
            return "nothing of its kind is trained on, or fits into a row"
        # What the running window holds is in rows that are not all given out.
        ahead = [self._streams[key].positions(u, 0).max() >= reached.get(key, (0, 0))[0] for key, u in units.items()]
        return "not reached yet" if any(ahead) else "it fits into no row"


def _facts(use: Use) -> dict[str, Any]:
    placed = use.placed
    text = placed.view == "text"
    return {
        "step": use.step,
        "row": use.row,
        "task": placed.view,
        **({} if text else {"objective": placed.objective}),
        "tokens": placed.length,
        **({"start": placed.start, "stop": placed.stop} if text else {}),
    }


def numbers(index: Index, names: Sequence[str]) -> np.ndarray:
    """The numbers of the documents of these ids in a split, rising, as far as 64 bits of them tell; int64."""
    ids, wanted = index.column("id"), np.array([id_hash(name) for name in names], np.uint64)
    return _where(ids, wanted)


def _places(index: Index, kind: str, documents: np.ndarray) -> list[int]:
    """The places in their kind of those of these documents that are of it."""
    if not len(documents) or not (count := index.count(kind)):
        return []
    return _where(index.column(f"{kind}.documents")["document"][:count], documents.astype(np.uint64)).tolist()


def _where(column: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where the values of a column, read in pieces, are among the wanted ones."""
    found = [at + np.flatnonzero(np.isin(column[at : at + _PIECE], wanted)) for at in range(0, len(column), _PIECE)]
    return np.concatenate([np.empty(0, np.int64), *found])
