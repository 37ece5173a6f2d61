"""Sampling by source: shares, epochs and captions are those that were asked for, and no document comes twice."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data import index as index_module
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.index import KINDS, Index, Lengths, write
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.parts import Part
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.streams import Stream
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import continuing, fits
from omniloom.stages.train.config import Config

NAMES = ("b", "a", "c")
documents = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(
            st.tuples(st.just("text"), st.lists(st.integers(0, 200), min_size=1, max_size=1)),
            st.tuples(st.just("image"), st.lists(st.integers(1, 20), max_size=3)),
        ),
    ),
    min_size=1,
    max_size=40,
)


def index_of(folder: Path, held, shards: int = 2) -> Index:
    """Of (source, (kind, tokens of its texts)); a picture has nine tokens."""

    def lengths(part, first: int) -> Lengths:
        segments = [[*words, *([-9] if kind == "image" else [])] for _, (kind, words) in part]
        flat = np.array(list(itertools.chain(*segments)), np.int32)
        return Lengths(
            np.array([KINDS.index(kind) for _, (kind, _) in part], np.uint8),
            np.array([len(own) for own in segments], np.int64),
            flat,
            flat,
            np.arange(first, first + len(part), dtype=np.uint64),
            np.array([source for source, _ in part], np.str_),
        )

    size = -(-len(held) // shards)
    given_ = [(n, Lengths.from_bytes(lengths(held[n * size :][:size], n * size).to_bytes())) for n in range(shards)]
    write(folder, given_)
    return Index(folder)


def planner(folder: Path, held, seed: int = 0, **fields) -> Planner:
    return Planner(index_of(folder, held), PackingConfig(**{"length": 64, "window_rows": 8, **fields}), seed)


def taken(made: Planner, rows: int) -> list:
    return [placed for row in RowStream(made).take(rows) for placed in row]


def tokens_by(held, placed) -> Counter:
    found: Counter = Counter()
    for piece in placed:
        source, (kind, _) = held[piece.index]
        found[kind, source] += piece.length
    return found


@settings(max_examples=40, deadline=None)
@given(documents, st.integers(1, 3))
def test_a_sources_documents_are_found_by_their_numbers_in_it(tmp_path_factory, held, shards):
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_CHUNK", 7)
        index = index_of(folder, held, shards)
    assert index.sources == tuple(sorted({source for source, _ in held}))
    for kind, source in itertools.product(("text", "image"), NAMES):
        mine = [n for n, (name, (what, _)) in enumerate(held) if (name, what) == (source, kind)]
        members = index.of_source(kind, source)
        if not mine:
            assert not len(members)
            continue
        places = index.ordered(kind, np.arange(members.start, members.stop))
        assert (np.diff(places) > 0).all() and sorted(index.documents(kind, places).tolist()) == mine
        stream = Stream(Part(index), kind, 64, 0, source=source)
        units = np.arange(stream.count)
        if kind == "text":
            places, starts, stops = stream.pieces(units)
            pieces = zip(index.documents("text", places).tolist(), starts.tolist(), stops.tolist(), strict=True)
            expected = [
                (n, at, min(at + 64, held[n][1][1][0] + 2)) for n in mine for at in range(0, held[n][1][1][0] + 2, 64)
            ]
            assert sorted(pieces) == sorted(expected)
        else:
            assert sorted(index.documents(kind, stream.places(units)).tolist()) == mine
        back = [stream.units_of(place) for place in range(index.count(kind))]
        assert sorted(np.concatenate(back).tolist()) == units.tolist()
        for place, own in enumerate(back):
            assert bool(len(own)) == (int(index.documents(kind, np.array([place]))[0]) in mine)


MANY = (
    [("a", ("text", [60]))] * 800 + [("b", ("text", [60]))] * 200 + [("c", ("text", [60]))] * 50
    + [("a", ("image", [9, 9]))] * 300 + [("b", ("image", [9]))] * 100
)  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e9])
@pytest.mark.parametrize("mixture", [{}, {"image": 0.6}])
def test_shares_go_with_weight_times_tokens_to_the_power_of_one_by_temperature(tmp_path, temperature, mixture):
    weights = {"a": 1.0, "b": 2.0, "c": 1.0}
    made = planner(
        tmp_path, MANY, temperature=temperature, mixture=mixture, window_rows=400, sources={"b": {"weight": 2}}
    )
    sizes = {("text", "a"): 800 * 62, ("text", "b"): 200 * 62, ("text", "c"): 50 * 62}
    sizes |= {("image", "a"): 300 * 22, ("image", "b"): 100 * 22}
    raised = {group: weights[group[1]] * size ** (1 / temperature) for group, size in sizes.items()}
    of_kind = {kind: sum(value for group, value in raised.items() if group[0] == kind) for kind in ("text", "image")}
    total = sum(raised.values())
    kinds = {"image": 0.6, "text": 0.4} if mixture else {kind: value / total for kind, value in of_kind.items()}
    expected = {group: kinds[group[0]] * value / of_kind[group[0]] for group, value in raised.items()}
    assert made.shares_at(0) == pytest.approx({"/".join(group): share for group, share in expected.items()})
    found = tokens_by(MANY, taken(made, 800))
    for group, share in expected.items():
        assert found[group] / sum(found.values()) == pytest.approx(share, abs=0.02)


def test_natural_shares_are_those_that_there_are_without_sources(tmp_path):
    by_source, whole = planner(tmp_path / "a", MANY, temperature=1), planner(tmp_path / "b", MANY)
    kinds: Counter = Counter()
    for name, share in by_source.shares.items():
        kinds[name.split("/")[0]] += share
    assert dict(kinds) == pytest.approx(whole.shares)
    left = planner(tmp_path / "c", MANY, sources={"a": {"weight": 0}})
    assert {name.split("/")[1] for name in left.shares} == {"b", "c"} and left.trained == set(left.shares)


@settings(max_examples=25, deadline=None)
@given(documents, st.sampled_from([0.5, 1.0, 2.0, 3.25]), st.integers(0, 99))
def test_a_source_is_seen_for_its_epochs_and_no_document_more_often_than_another(tmp_path_factory, held, epochs, seed):
    """Without an end for the others, which take its share; each unit of it as often as the epochs say."""
    held = [*held, ("a", ("text", [30])), *[("free", ("text", [10 + n])) for n in range(5)]]
    made = planner(tmp_path_factory.mktemp("index"), held, seed, sources={"a": {"epochs": epochs}})
    seen: Counter = Counter()
    stream, names = RowStream(made), list(made.streams)
    capped = {name: made.streams[name] for name in names if name.endswith("/a")}
    while any(stream._before.get(name, (0, 0))[0] < held_.limit for name, held_ in capped.items()):
        pieces = stream.window().pieces
        seen.update({(names[s], p) for s, p in zip(pieces.stream.tolist(), pieces.position.tolist(), strict=True)})
        stream.skip()
    assert {held[placed.index][0] for placed in itertools.chain(*stream.take(20))} == {"free", "b", "c"} & {
        source for source, (kind, words) in held if source != "a"
    }
    for name, own in capped.items():
        assert own.limit == max(1, round(epochs * own.count))
        positions = sorted(position for stream_, position in seen if stream_ == name)
        assert set(positions) <= set(range(int(own.limit)))
        if own.kind == "text":
            assert positions == list(range(int(own.limit)))
        times = Counter(own.unit(np.array(positions, np.int64)).tolist())
        assert max(times.values()) <= np.ceil(epochs) and min(times.values()) >= min(1, np.floor(epochs))
    assert max(seen.values()) == 1


def test_when_all_is_used_up_it_is_said_before_the_first_step_and_where_it_happens(tmp_path):
    held = [("a", ("text", [60]))] * 20 + [("b", ("text", [28]))] * 20
    config = PackingConfig(length=64, window_rows=8, sources={"a": {"epochs": 2}, "b": {"epochs": 1}})
    index = index_of(tmp_path, held)
    made = Planner(index, config, 0)
    assert made.tokens == 2 * 20 * 62 + 20 * 30
    with pytest.raises(InputError, match="there are 3,080 tokens, and 100 rows of 64 take 6,400") as caught:
        fits.check_tokens(index, config, {"latent_diffusion": 1.0}, 0, 100)
    assert caught.value.field == "packing.sources"
    fits.check_tokens(index, config, {"latent_diffusion": 1.0}, 0, 48)
    placed, stream = [], RowStream(made)
    with pytest.raises(InputError, match="every source has been seen for its epochs"):
        while True:
            placed += stream.take(1)[0]
    times = Counter(piece.index for piece in placed if piece.start == 0)
    assert times == {n: 2 if n < 20 else 1 for n in range(40)}
    assert Planner(index, PackingConfig(sources={"a": {"epochs": 2}}), 0).tokens == float("inf")


def test_captions_stand_with_a_picture_as_often_as_their_weights_say(tmp_path):
    held = [("a", ("image", [5, 6, 7]))] * 40 + [("b", ("image", [5, 6, 7]))] * 40 + [("c", ("image", [5]))] * 10
    sources = {"a": {"caption_weights": [3, 0, 1]}, "c": {"caption_weights": [0, 1]}}
    placed = taken(planner(tmp_path, held, sources=sources), 3000)
    times = {name: Counter(p.caption for p in placed if held[p.index][0] == name) for name in NAMES}
    total = sum(times["a"].values())
    assert total > 2000 and times["a"][1] == 0 and times["a"][0] / total == pytest.approx(0.75, abs=0.03)
    assert max(times["b"].values()) - min(times["b"].values()) <= 40  # each in turn
    assert set(times["c"]) == {0}  # the only one it has
    again = taken(planner(tmp_path / "again", held, sources=sources), 3000)
    assert again == placed
    last = taken(planner(tmp_path / "last", held, sources={"a": {"caption_weights": [0, 1]}}), 2000)
    times_last = Counter(p.caption for p in last if held[p.index][0] == "a")
    assert times_last[0] == 0 and times_last[1] / sum(times_last.values()) == pytest.approx(0.5, abs=0.05)


def test_a_caption_that_fits_no_row_has_no_weight(tmp_path):
    held = [("a", ("image", [60, 5, 8]))] * 30
    placed = taken(planner(tmp_path, held, sources={"a": {"caption_weights": [8, 1, 1]}}), 600)
    times = Counter(p.caption for p in placed)
    assert set(times) == {1, 2} and times[1] / sum(times.values()) == pytest.approx(0.5, abs=0.06)
    assert all(p.length in {5 + 13, 8 + 13, 13} for p in placed)


def test_captions_are_left_out_as_often_as_their_source_says_and_never_where_losses_are_measured(tmp_path):
    held = [(name, ("image", [5])) for name in NAMES for _ in range(50)]
    settings_ = {"caption_first": 1, "condition_dropout": 0.5, "sources": {"a": {"caption_dropout": 0.1}}}
    settings_["sources"]["b"] = {"caption_dropout": 0.0}
    made = planner(tmp_path, held, **settings_)
    placed = taken(made, 3000)
    for name, share in (("a", 0.1), ("b", 0.0), ("c", 0.5)):
        mine = ["text" in p.dropped for p in placed if held[p.index][0] == name]
        assert len(mine) > 1000 and np.mean(mine) == pytest.approx(share, abs=0.03)
    quiet = PackingConfig(**settings_, noisy_context=0.5).held_out()
    assert not any(p.dropped for p in taken(Planner(made.index, quiet, 0), 200))


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"sources": {}}, "sources"),
        ({"sources": {"a": {}}}, "sources.a.*expected some of weight, epochs, caption_weights, caption_dropout"),
        ({"sources": {"a": {"weight": -1}}}, "sources.a.weight"),
        ({"sources": {"a": {"epochs": 0}}}, "sources.a.epochs"),
        ({"sources": {"a": {"caption_weights": [0, 0]}}}, "caption_weights.*expected one that is more than 0"),
        ({"sources": {"a": {"caption_weights": []}}}, "caption_weights"),
        ({"sources": {"a": {"caption_dropout": 1.1}}}, "caption_dropout"),
        ({"sources": {"a": {"share": 1}}}, "share"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
    ],
)
def test_wrong_values_are_told(fields, told):
    with pytest.raises(ValidationError, match=f"(?s){told}"):
        PackingConfig(**fields)


def test_a_source_that_is_not_there_is_told(tmp_path):
    class Records:
        sources = (1, 2)

        def source_name(self, number: int) -> str:
            return "ab"[number]

    asked = PackingConfig(sources={"z": {"weight": 2}})
    for call in (
        lambda: fits.check_sources(asked, Records()),
        lambda: fits.check_tokens(index_of(tmp_path, MANY), asked, {"latent_diffusion": 1.0}, 0),
    ):
        with pytest.raises(InputError, match="no source of that name, expected some of a, b") as caught:
            call()
        assert caught.value.field == "packing.sources.z"
    fits.check_sources(asked, None)


def test_tokens_that_do_not_name_sources_are_refused_and_train_without(tmp_path):
    index = corpora.index_of([("text", [("text", 5)])] * 9)
    assert index.sources == () and Planner(index, PackingConfig(length=64), 0).shares == {"text": 1.0}
    with pytest.raises(InputError, match="make them again") as caught:
        Planner(index, PackingConfig(length=64, temperature=2), 0)
    assert caught.value.field == "packing.temperature"


def test_an_artifact_and_its_remote_copy_say_which_source_a_document_is_of(tmp_path, monkeypatch):
    rows = corpora.token_rows(
        corpora.text_tokenizer(), np.random.default_rng(0), images=8, videos=0, texts=9, documents=2
    )
    for number, row in enumerate(rows):
        row["source"] = NAMES[number % 3]
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [rows[:9], rows[9:]]}, corpora.text_tokenizer())
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    uri = "memory://sources"
    storage.copy_tree(artifact.uri, uri)
    copy = type(artifact)(artifact.stage, artifact.fingerprint, uri, artifact.manifest)
    for held in (artifact, copy):
        index = TokenSet(held, "train").index
        assert index.sources == ("a", "b", "c")
        places = index.ordered("text", np.array(index.of_source("text", "b")))
        found = index.documents("text", places)
        assert {rows[n]["source"] for n in found} == {"b"} and len(found) == 3


def test_a_training_cannot_begin_to_sample_by_source_on_its_way():
    def config(**packing) -> Config:
        return Config.model_validate({"model": {"width": 32, "layers": 1, "heads": 2}, "packing": packing})

    told = continuing.refusals(config(), config(temperature=2), 0)
    assert [error.field for error in told] == ["packing.sources"] and "expected temperature or sources" in str(told[0])
    same = config(sources={"a": {"weight": 1.5}}), config(temperature=2, sources={"b": {"epochs": 3}})
    assert continuing.refusals(*same, 0) == []
