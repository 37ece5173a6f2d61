"""What a training used a document for. In: its ledger, the tokens of its periods, and the document's id. Out: the
steps that had it, and how it was shown there. Where it stands in the order is computed, so that for each time that it
comes a few windows are planned again, however long the training was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from omniloom.stages.data.books import Books
from omniloom.stages.data.index import KINDS, Index, id_hash
from omniloom.stages.train.ledger import Ledger, open_books

_PIECE = 1 << 22


def uses(ledger: Ledger, indices: Sequence[Index], name: str) -> list[dict[str, Any]]:
    """The uses of the document of this id, in the order of steps: "step", "row", "training" (which one's period that
    was), "task", "objective" of a picture, "tokens", and of a text from which token "start" to which "stop". "applied"
    is False where the step changed no weights. `ledger` is a closed one; `indices` are those of its periods' tokens."""
    books = open_books(ledger, indices)
    gone = ledger["left_out"].get(name)
    skipped = set(ledger["not_applied"])
    told = {id(period): facts for period, facts in zip(books.periods, ledger["periods"], strict=True)}
    found = []
    for use in books.uses(ledger["position"], dict(_units(books, name))):
        if gone is not None and use.step >= gone:
            continue
        placed = use.placed
        found.append(
            {
                "step": use.step,
                "row": use.row,
                "training": told[id(use.period)]["training"],
                "task": placed.view,
                **({} if placed.view == "text" else {"objective": placed.objective}),
                "tokens": placed.length,
                **({"start": placed.start, "stop": placed.stop} if placed.view == "text" else {}),
                "applied": use.step not in skipped,
            }
        )
    return found


def _units(books: Books, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """By stream, the units of the document in it: in the order of each corpus that has it. Where an earlier one had it
    too the stream passes it over."""
    streams = {key: stream for period in books.periods for key, stream in period.planner.streams.items()}
    corpora = {id(stream.index): stream.index for stream in streams.values()}
    places = {key: _places(index, name) for key, index in corpora.items()}
    for key, stream in streams.items():
        if units := [stream.units_of(place) for place in places[id(stream.index)].get(stream.kind, ())]:
            yield key, np.concatenate(units)


def numbers(index: Index, name: str) -> list[int]:
    """The numbers of the documents of this id in a split, as far as 64 bits of it tell."""
    ids, wanted = index.column("id"), np.uint64(id_hash(name))
    pieces = range(0, len(ids), _PIECE)
    return [at + int(n) for at in pieces for n in np.flatnonzero(ids[at : at + _PIECE] == wanted)]


def _places(index: Index, name: str) -> dict[str, list[int]]:
    """By kind, the places of the documents of this id in it."""
    found: dict[str, list[int]] = {}
    for number in numbers(index, name):
        for kind in KINDS:
            documents = index.column(f"{kind}.documents")
            for at in range(0, index.count(kind), _PIECE):
                held = documents[at : min(at + _PIECE, index.count(kind))]["document"]
                found.setdefault(kind, []).extend(at + int(n) for n in np.flatnonzero(held == number))
    return found
