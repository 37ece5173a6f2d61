"""The books of a training: whatever changes on the way, no document of an epoch is repeated or lost, and what each was
used for is known. Each history is given out by the loaders that training takes its rows from."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import corpora
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omniloom.infra.errors import InputError
from omniloom.models.text import TextTokenizer
from omniloom.stages.data.books import Books, Period, RowStream
from omniloom.stages.data.index import id_hash
from omniloom.stages.data.order import hash_seed
from omniloom.stages.data.packing import PackingConfig, Placed
from omniloom.stages.data.parts import held_before, parts_of
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.shares import Schedule, shares_at
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train.config import Config, unified_config, visual_sizes
from omniloom.stages.train.rows import RowLoader, period, validation_rows

KINDS = ("image", "video", "text", "document")
LENGTH = 48
Known = tuple[int, bool]  # a document: its number, and whether its words are one token longer than elsewhere


def document(kind: str, number: int, longer: bool = False) -> tuple[str, list[tuple[str, int]]]:
    """Of every kind some that are cut, that have several captions, or that do not fit."""
    n = 3 + 7 * number % 19 + longer
    held = {
        "text": [("text", 4 * n)],
        "image": [*[("text", n)] * (number % 3), ("visual", 9 if number % 7 else 60)],
        "video": [("text", n), ("visual", 16)],
        "document": [("text", n), ("visual", 4), ("text", 5), ("visual", 9)][number % 2 :],
    }
    return kind, held[kind]


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def token_row(kind: str, number: int, longer: bool) -> dict:
    segments = [
        {"kind": "text", "loss": True, "ids": np.full(n, 270 + number % 9, np.int32)}
        if what == "text"
        else {
            "kind": "visual",
            "loss": True,
            "grid": [1, 1, n],
            "latents": np.full(4 * n, number, np.float32),
            "codes": np.full(n, number % 64, np.int32),
        }
        for what, n in document(kind, number, longer)[1]
    ]
    row = {"id": name_of(number), "kind": kind, "label": None, "source": f"s{number // 100}", "bytes": 1}
    return {**row, "segments": segments}


@dataclass
class Change:
    """From some step on: which sources there are, those with longer texts, and how they are mixed on how many ranks."""

    steps: int
    sources: frozenset[int]
    longer: frozenset[int]
    mixture: dict | Schedule
    objectives: dict
    ranks: int
    batch_rows: int
    dropout: float
    temperature: float
    of_sources: dict[str, dict]  # both of a history whose sources have streams of their own


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
    longer=st.frozensets(st.integers(0, 5), max_size=1),
    mixture=st.one_of(shares, schedules),
    objectives=st.sampled_from([{"latent_diffusion": 5, "next_code": 1}, {"latent_diffusion": 1, "next_code": 3}]),
    ranks=st.sampled_from([1, 2, 4]),
    batch_rows=st.sampled_from([4, 8]),
    dropout=st.sampled_from([0.0, 0.3]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    of_sources=st.dictionaries(
        st.sampled_from([f"s{number}" for number in range(6)]),
        st.sampled_from(
            [{"weight": 0}, {"weight": 3}, {"epochs": 1}, {"epochs": 2.5, "weight": 2}, {"caption_weights": [1, 0, 3]}]
        ),
        min_size=1,
    ),
)
# A source has documents of several kinds; whose they are follows from the number.
sources = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), min_size=6, max_size=6)
TEXT: list[TextTokenizer] = []


def text_tokenizer() -> TextTokenizer:
    TEXT[:] = TEXT or [corpora.text_tokenizer()]
    return TEXT[0]


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
    document: Known
    stream: str
    position: int
    placed: Placed


class History:
    """A training that goes on, from its position alone, through changes."""

    def __init__(self, folder: Path, sources: list[list[str]], seed: int, by_source: bool):
        self.by_source = by_source
        self.folder, self.seed, self.step, self.position = folder, seed, 0, None
        self.kinds = {100 * source + n: kind for source, kinds in enumerate(sources) for n, kind in enumerate(kinds)}
        self.periods: list[Period] = []
        self.present: list[list[Known]] = []  # of each period, the documents by their numbers in its corpus
        self.corpora: list[list[Known]] = []
        self.tokens: list[TokenSet] = []  # of each of these
        self.given: list[Given] = []

    def tokens_of(self, held: list[Known]) -> TokenSet:
        rows = [token_row(self.kinds[number], number, longer) for number, longer in held]
        half = len(rows) // 2
        folder = self.folder / str(len(list(self.folder.iterdir()))) / "tokens"
        return TokenSet(corpora.pretokenize(folder, {"train": [rows[:half], rows[half:]]}, text_tokenizer()), "train")

    def go_on(self, change: Change) -> None:
        held = [
            (n, n // 100 in change.longer and document(kind, n, True) != document(kind, n))
            for n, kind in self.kinds.items()
            if n // 100 in change.sources
        ]
        if self.corpora[-1:] == [held]:
            corpora_then, tokens_then = self.corpora, self.tokens
        else:
            corpora_then, tokens_then = [*self.corpora, held], [*self.tokens, self.tokens_of(held)]
        config = Config.model_validate(
            {
                "model": {"width": 32, "layers": 1, "heads": 2},
                "packing": {
                    "length": LENGTH,
                    "window_rows": 6,
                    "mixture": change.mixture,
                    "condition_dropout": change.dropout,
                    **({"temperature": change.temperature, "sources": change.of_sources} if self.by_source else {}),
                },
                "objectives": change.objectives,
                "batch_rows": change.batch_rows,
                "workers": {"count": change.ranks},
                "seed": self.seed,
            }
        )
        stream = self.position and self.position["stream"]
        rows = stream["rows"] + stream["row"] if stream else 0
        try:
            new = period(parts_of([tokens.index for tokens in tokens_then]), config, self.step, rows)
        except ValueError as error:  # a mixture of what is not there
            assert "leaves nothing to train on" in str(error)
            return
        self.corpora, self.tokens = corpora_then, tokens_then
        self.periods.append(new)
        self.present.append(held)
        self.train(config, change, Books(self.periods))

    def train(self, config: Config, change: Change, books: Books) -> None:
        tokens = self.tokens[-1]
        model = unified_config(config, tokens.facts["vocab_size"], visual_sizes(tokens.facts), tokens.facts["specials"])
        loaders = [
            RowLoader(tokens, model, config, rank, change.ranks, books=Books(self.periods))
            for rank in range(change.ranks)
        ]
        for loader in loaders:
            if self.position:
                loader.seek(json.loads(json.dumps(self.position)))
        reference = RowStream(books, loaders[0].position["stream"])
        for _ in range(change.steps):
            try:
                RowStream(books, reference.position).next(2 * change.batch_rows)  # as far as loaders look ahead
            except InputError as error:
                assert "every source has been seen for its epochs" in str(error) and self.by_source
                break
            seeds = [seed for loader in loaders for _, some in loader.at(self.step) for seed in some]
            taken = sorted((row for loader in loaders for row in loader.taken(self.step)), key=lambda row: row.number)
            assert seeds == [hash_seed(self.seed, self.step, row) for row in range(change.batch_rows)]
            for row, (window, number) in zip(taken, reference.next(change.batch_rows), strict=True):
                self.note(row.number, row.documents, window, number)
            assert [row.number for row in taken] == list(range(change.batch_rows))
            self.step += 1
            assert all(loader.position == {"stream": reference.position} for loader in loaders)
        self.position = json.loads(json.dumps(loaders[0].position))
        for loader in loaders:
            loader.close()

    def note(self, row: int, documents: list[Placed], window, number: int) -> None:
        """What a loader gave of a row of a window: all that the corpus still has, piece by piece."""
        given, then = iter(documents), self.present[self.periods.index(self.planned(window))]
        for piece in window.span(number):
            planned = then[window.placed(piece).index]
            if planned in self.present[-1]:
                placed = next(given)
                assert self.present[-1][placed.index] == planned
                name = list(window.planner.streams)[window.pieces.stream[piece]]
                self.given.append(Given(self.step, row, planned, name, int(window.pieces.position[piece]), placed))
        assert next(given, None) is None

    def planned(self, window) -> Period:
        return next(period for period in self.periods if period.planner is window.planner)


histories = sources, st.lists(changes, min_size=1, max_size=5), st.integers(0, 1000), st.booleans()
# Shrinking a history takes minutes; what fails is printed as it is.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=5, deadline=None, phases=PHASES)
@given(*histories)
def test_of_any_history_no_document_is_repeated_or_lost_and_the_ledger_is_what_was_given(
    sources, changes, seed, by_source
):
    check(sources, changes, seed, by_source)


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_of_200_histories_no_document_is_repeated_or_lost_and_the_ledger_is_what_was_given(quarter):
    settings(max_examples=50, deadline=None, phases=PHASES)(given(*histories)(check))()


def check(sources, changes, seed, by_source) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder), sources, seed, by_source)
        for change in changes:
            history.go_on(change)
        if history.periods:
            check_epochs(history)
            check_uses(history)


def check_epochs(history: History) -> None:
    """Each position of a stream was given once, and all that was passed was, but for what was not there."""
    by_position: dict[tuple[str, int], list[Given]] = defaultdict(list)
    for given_ in history.given:
        by_position[given_.stream, given_.position].append(given_)
    always = set(history.present[0]).intersection(*history.present)
    streams = {name: s for period in history.periods for name, s in period.planner.streams.items()}
    assert history.periods[-1].planner.streams
    for name, stream in streams.items():
        passed = int(history.position["stream"]["streams"].get(name, (0, 0))[0])
        part = int(name.partition("+")[2] or 0)
        earlier = {i for held in history.corpora[:part] for i in held}
        times: Counter = Counter()
        units = stream.unit(np.arange(passed))
        places, starts, stops = (
            stream.pieces(units) if stream.kind == "text" else (stream.places(units), units * 0, units * 0)
        )
        numbers = stream.index.documents(stream.kind, places).tolist()
        for position, (number, start, stop) in enumerate(zip(numbers, starts.tolist(), stops.tolist(), strict=True)):
            known = history.corpora[part][number]
            found = by_position.pop((name, position), [])
            times[known, start] += bool(found)
            if found:
                assert {g.document for g in found} == {known} and known not in earlier
                spans = sorted((g.placed.start, g.placed.stop) for g in found)
                if stream.kind != "text":
                    assert len(found) == 1
                elif known in always:  # whole, and once
                    assert [first for first, _ in spans] == [start, *(last for _, last in spans[:-1])]
                    assert spans[-1][1] == stop
            elif known in always and known not in earlier:
                assert not comes_into_rows(*document(history.kinds[known[0]], *known))
        mine = {unit: n for unit, n in times.items() if unit[0] in always - earlier}
        fitting = {n for (i, _), n in mine.items() if comes_into_rows(*document(history.kinds[i[0]], *i))}
        assert max(fitting, default=0) - min(fitting, default=0) <= 1
    # What is left is of the window that is running, whose rows are not all given.
    assert all(len({g.placed.start for g in found}) == len(found) for found in by_position.values())


def check_uses(history: History) -> None:
    books, position = Books(history.periods), history.position["stream"]
    expected = sorted((g.step, g.row, g.document, repr(g.placed)) for g in history.given)
    streams = {name: s for period in history.periods for name, s in period.planner.streams.items()}
    uses = list(books.uses(position, {name: np.arange(s.count) for name, s in streams.items()}))
    then = [history.present[history.periods.index(use.period)] for use in uses]
    told = [(u.step, u.row, ids[u.placed.index], repr(u.placed)) for u, ids in zip(uses, then, strict=True)]
    assert sorted(told) == expected
    assert [use.step for use in uses] == sorted(use.step for use in uses)
    # One document by itself, found by its place in its kind.
    for name, stream in list(streams.items())[:1]:
        corpus = history.corpora[int(name.partition("+")[2] or 0)]
        place = int(stream.places(np.array([stream.documents_in // 2]))[0])
        known = corpus[int(stream.index.documents(stream.kind, np.array([place]))[0])]
        own = {(u.step, u.row, u.placed) for u in books.uses(position, {name: stream.units_of(place)})}
        mine = [g for g in history.given if g.document == known and g.stream == name]
        assert own == {(g.step, g.row, g.placed) for g in mine}


def test_a_validation_leaves_out_what_an_earlier_corpus_trained_on(tmp_path):
    """Whatever its lengths were then."""
    rows = [token_row("text", number, longer=False) for number in range(12)]
    splits = {"train": [rows[6:]], "validation": [rows[:6]]}
    held_out = TokenSet(corpora.pretokenize(tmp_path / "new" / "tokens", splits, text_tokenizer()), "validation")
    before = [token_row("text", number, longer=True) for number in (1, 4, 7)]
    earlier = TokenSet(corpora.pretokenize(tmp_path / "old" / "tokens", {"train": [before]}, text_tokenizer()), "train")
    seen = held_before(held_out.index, [earlier.index])
    wanted = {id_hash(name_of(number)) for number in (1, 4)}
    assert {int(i) for i in held_out.index.column("id")[seen]} == wanted
    config = Config.model_validate(
        {"model": {"width": 32, "layers": 1, "heads": 2}, "packing": {"length": 128}, "objectives": {}}
    )
    model = unified_config(
        config, held_out.facts["vocab_size"], visual_sizes(held_out.facts), held_out.facts["specials"]
    )
    shown = [
        {int(token) for batch, _ in validation_rows(held_out, config, model, "cpu", past) for token in batch.ids[0]}
        for past in ([], [earlier.index])
    ]
    texts = {number: 270 + number % 9 for number in range(6)}
    assert set(texts.values()) <= shown[0]
    assert {number for number, token in texts.items() if token in shown[1]} == {0, 2, 3, 5}


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
