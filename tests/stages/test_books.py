"""The books of a training: whatever changes on the way, no document of an epoch is repeated or lost, and what each was
used for is known."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omniloom.stages.data.books import Books, Period, RowStream
from omniloom.stages.data.packing import PackingConfig, Placed
from omniloom.stages.data.parts import parts_of
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.shares import Schedule, shares_at

KINDS = ("image", "video", "text", "document")
LENGTH = 48


def document(kind: str, number: int) -> tuple[str, list[tuple[str, int]]]:
    """Of every kind some that are cut, that have several captions, or that do not fit."""
    n = 3 + 7 * number % 19
    held = {
        "text": [("text", 4 * n)],
        "image": [*[("text", n)] * (number % 3), ("visual", 9 if number % 7 else 60)],
        "video": [("text", n), ("visual", 16)],
        "document": [("text", n), ("visual", 4), ("text", 5), ("visual", 9)][number % 2 :],
    }
    return kind, held[kind]


@dataclass
class Change:
    """From some step on: which sources there are, and how they are mixed on how many ranks."""

    steps: int
    sources: frozenset[int]
    mixture: dict | Schedule
    objectives: dict
    ranks: int
    batch_rows: int
    dropout: float


shares = st.dictionaries(st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]), max_size=4)
schedules = st.tuples(shares.filter(bool), shares, st.integers(1, 20), st.sampled_from(["step", "linear"])).map(
    lambda drawn: Schedule(
        schedule=[
            {"step": 0, "shares": drawn[0]},
            {"step": drawn[2], "shares": {name: drawn[1].get(name, 0.3) for name in drawn[0]}},
        ],
        change=drawn[3],
    )
)
changes = st.builds(
    Change,
    steps=st.integers(0, 12),
    sources=st.frozensets(st.integers(0, 5), min_size=1),
    mixture=st.one_of(shares, schedules),
    objectives=st.sampled_from([{"latent_diffusion": 1}, {"latent_diffusion": 1, "next_code": 3}]),
    ranks=st.sampled_from([1, 2, 4]),
    batch_rows=st.sampled_from([4, 8]),
    dropout=st.sampled_from([0.0, 0.3]),
)
# A source has documents of several kinds; whose they are follows from the id.
sources = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), min_size=6, max_size=6)


def comes_into_rows(kind: str, segments: list[tuple[str, int]]) -> bool:
    if kind == "text" or segments[0][0] == "text" and kind == "document":
        return True
    if kind == "document":
        return segments[0][1] + 4 <= LENGTH
    return segments[-1][1] + 4 + min([n for _, n in segments[:-1]], default=0) <= LENGTH


@dataclass
class Given:
    """A piece that some rank was given."""

    step: int
    row: int
    document: int  # its id
    stream: str
    position: int
    placed: Placed


class History:
    """A training that goes on, from its position alone, through changes."""

    def __init__(self, sources: list[list[str]], seed: int):
        self.described = {
            100 * source + n: document(kind, 100 * source + n)
            for source, kinds in enumerate(sources)
            for n, kind in enumerate(kinds)
        }
        self.seed, self.step, self.position = seed, 0, None
        self.periods: list[Period] = []
        self.present: list[list[int]] = []  # of each period, ids by number
        self.corpora: list[list[int]] = []
        self.given: list[Given] = []

    def go_on(self, change: Change) -> None:
        ids = [i for i in self.described if i // 100 in change.sources]
        corpora_then = self.corpora if self.corpora[-1:] == [ids] else [*self.corpora, ids]
        packing = PackingConfig(length=LENGTH, window_rows=6, mixture=change.mixture, condition_dropout=change.dropout)
        indices = [corpora.index_of([self.described[i] for i in held], ids=held) for held in corpora_then]
        try:
            planner = Planner(parts_of(indices), packing, self.seed, change.objectives)
        except ValueError as error:  # a mixture of what is not there
            assert "leaves nothing to train on" in str(error)
            return
        self.corpora = corpora_then
        rows = self.position["rows"] + self.position["row"] if self.position else 0
        self.periods.append(Period(self.step, rows, change.batch_rows, planner))
        self.present.append(ids)
        ranks = [RowStream(Books(self.periods), json.loads(json.dumps(self.position))) for _ in range(change.ranks)]
        numbers = {id(period.planner): held for period, held in zip(self.periods, self.present, strict=True)}
        for _ in range(change.steps):
            taken = [rank.next(change.batch_rows) for rank in ranks]
            for row in range(change.batch_rows):
                window, number = taken[row * change.ranks // change.batch_rows][row]
                for piece in window.span(number):
                    placed = window.placed(piece)
                    name = list(window.planner.streams)[window.pieces.stream[piece]]
                    position = int(window.pieces.position[piece])
                    known = numbers[id(window.planner)][placed.index]
                    self.given.append(Given(self.step, row, known, name, position, placed))
            self.step += 1
            assert all(rank.position == ranks[0].position for rank in ranks)
        self.position = json.loads(json.dumps(ranks[0].position))


histories = sources, st.lists(changes, min_size=1, max_size=5), st.integers(0, 1000)


@settings(max_examples=10, deadline=None)
@given(*histories)
def test_of_any_history_no_document_is_repeated_or_lost_and_the_ledger_is_what_was_given(sources, changes, seed):
    check(sources, changes, seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(*histories)
def test_of_200_histories_no_document_is_repeated_or_lost_and_the_ledger_is_what_was_given(sources, changes, seed):
    check(sources, changes, seed)


def check(sources, changes, seed) -> None:
    history = History(sources, seed)
    for change in changes:
        history.go_on(change)
    if history.periods:
        check_epochs(history)
        check_ledger(history)


def check_epochs(history: History) -> None:
    """Each position of a stream was given once, and all that was passed was, but for what was not there."""
    by_position: dict[tuple[str, int], list[Given]] = defaultdict(list)
    for given_ in history.given:
        by_position[given_.stream, given_.position].append(given_)
    running = list(history.periods[-1].planner.streams)
    always = set(history.present[0]).intersection(*history.present)
    streams = {name: s for period in history.periods for name, s in period.planner.streams.items()}
    assert running
    for name, stream in streams.items():
        passed = int(history.position["streams"].get(name, (0, 0))[0])
        part = int(name.partition("+")[2] or 0)
        earlier = {i for held in history.corpora[:part] for i in held}
        times: Counter = Counter()
        units = stream.unit(np.arange(passed))
        places, starts, stops = stream.pieces(units) if stream.kind == "text" else (units, units * 0, units * 0)
        numbers = stream.index.documents(stream.kind, places).tolist()
        for position, (number, start, stop) in enumerate(zip(numbers, starts.tolist(), stops.tolist(), strict=True)):
            known = history.corpora[part][number]
            found = by_position.pop((name, position), [])
            times[known, start] += bool(found)
            if found:
                assert {g.document for g in found} == {known} and known not in earlier
                spans = sorted((g.placed.start, g.placed.stop) for g in found)
                if stream.kind == "text":  # whole, and once
                    assert [first for first, _ in spans] == [start, *(last for _, last in spans[:-1])]
                    assert spans[-1][1] == stop
                else:
                    assert len(found) == 1
            elif known in always and known not in earlier:
                assert not comes_into_rows(*history.described[known])
        counts = {times[unit] for unit in times if unit[0] in always and unit[0] not in earlier}
        fitting = {times[u] for u in times if u[0] in always - earlier and comes_into_rows(*history.described[u[0]])}
        assert len(counts) < 4 and max(fitting, default=0) - min(fitting, default=0) <= 1
    # What is left is of the window that is running, whose rows are not all given.
    assert all(len({g.placed.start for g in found}) == len(found) for found in by_position.values())


def check_ledger(history: History) -> None:
    books = Books(history.periods)
    expected = {(g.step, g.row, g.document, g.placed) for g in history.given}
    streams = {name: s for period in history.periods for name, s in period.planner.streams.items()}
    uses = list(books.uses(history.position, {name: np.arange(s.count) for name, s in streams.items()}))
    then = [history.present[history.periods.index(use.period)] for use in uses]
    assert {(u.step, u.row, ids[u.placed.index], u.placed) for u, ids in zip(uses, then, strict=True)} == expected
    assert [use.step for use in uses] == sorted(use.step for use in uses)
    # One document by itself, found by its place in its kind.
    for name, stream in list(streams.items())[:1]:
        corpus, place = history.corpora[int(name.partition("+")[2] or 0)], stream.index.count(stream.kind) // 2
        known = corpus[int(stream.index.documents(stream.kind, np.array([place]))[0])]
        own = {(u.step, u.row, u.placed) for u in books.uses(history.position, {name: stream.units_of(place)})}
        mine = [g for g in history.given if g.document == known and g.stream == name]
        assert own == {(g.step, g.row, g.placed) for g in mine}


def test_a_schedule_jumps_or_goes_in_a_line():
    points = [{"step": 0, "shares": {"text": 1, "image": 0}}, {"step": 100, "shares": {"text": 0.2, "image": 0.8}}]
    jumps, line = Schedule(schedule=points), Schedule(schedule=points, change="linear")
    assert [shares_at(jumps, step)["image"] for step in (0, 99, 100, 1000)] == [0, 0, 0.8, 0.8]
    assert [shares_at(line, step)["image"] for step in (0, 50, 99, 100, 1000)] == pytest.approx(
        [0, 0.4, 0.792, 0.8, 0.8]
    )
    documents = [document("text", n) for n in range(40)] + [("image", [("text", 5), ("visual", 9)])] * 40
    planner = Planner(corpora.index_of(documents), PackingConfig(length=LENGTH, window_rows=100, mixture=line), 0)
    stream = RowStream(Books([Period(0, 0, 10, planner)]))
    steps = []
    while stream.rows < 2000:
        steps.append(stream.books.place(stream.rows)[0])
        pieces = stream.window().pieces
        share = pieces.length[pieces.view != 0].sum() / pieces.length.sum()
        assert share == pytest.approx(shares_at(line, steps[-1])["image"], abs=0.02)
        stream.skip()
    assert steps[:2] == [0, 10] and steps[-1] > 180


@pytest.mark.parametrize(
    "points, told",
    [
        ([{"step": 5, "shares": {"text": 1}}], "schedule.0.step: expected 0, got 5"),
        ([{"step": 0, "shares": {"text": 1}}] * 2, "schedule.1.step: expected more than 0, got 0"),
        ([{"step": 0, "shares": {"text": 1}}, {"step": 2, "shares": {"image": 1}}], "schedule.1.shares: expected text"),
        (
            [{"step": 0, "shares": {"audio": 1}}],
            "schedule.0.shares: expected some of image, video, text, document, got audio",
        ),
        ([], "at least 1"),
    ],
)
def test_wrong_schedules_are_told(points, told):
    with pytest.raises(ValidationError, match=told):
        PackingConfig(mixture={"schedule": points})
