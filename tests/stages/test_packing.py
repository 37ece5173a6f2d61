"""Packing: rows hold what was planned, in an order that only the seed decides, and the cursor loses nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omniloom.models.unified.batch import collate, document_length
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.layouts import without
from omniloom.stages.data.bestfit import pack
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.packing import PackingConfig, Placed
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.streams import Stream
from omniloom.stages.data.survey import left_out, needed
from omniloom.stages.data.tokens import TokenSet

sizes = st.integers(0, 40)
pictures = st.tuples(
    st.sampled_from(["image", "video"]),
    st.tuples(st.lists(st.integers(1, 40), max_size=3), st.integers(1, 30)).map(
        lambda pair: [*(("text", n) for n in pair[0]), ("visual", pair[1])]
    ),
)
texts = st.tuples(st.just("text"), st.integers(0, 200).map(lambda n: [("text", n)]))
interleaved = st.tuples(
    st.just("document"),
    st.lists(
        st.one_of(st.tuples(st.just("text"), sizes), st.tuples(st.just("visual"), st.integers(1, 30))),
        min_size=1,
        max_size=6,
    ),
)
corpus = st.lists(st.one_of(pictures, texts, interleaved), min_size=1, max_size=25)


def planner(documents, seed=0, **fields) -> Planner:
    return Planner(corpora.index_of(documents), PackingConfig(**{"length": 64, "window_rows": 4, **fields}), seed)


def windows(made: Planner, count: int) -> list[list[list[Placed]]]:
    """The rows of the first windows."""
    found, before = [], made.start()
    for number in range(count):
        window = made.window(number, before)
        found.append(window.rows())
        before = window.after
    return found


def units(texts: Stream) -> list[tuple[int, int, int]]:
    """(document, start, stop) of each unit."""
    places, start, stop = texts.pieces(np.arange(texts.count))
    found = zip(texts.index.documents("text", places), start, stop, strict=True)
    return sorted((int(document), int(first), int(last)) for document, first, last in found)


def can_train(documents) -> bool:
    return any(
        kind in ("text", "document") or lengths[-1][1] + min([n for _, n in lengths[:-1]], default=0) + 4 <= 64
        for kind, lengths in documents
    )


def pieces(rows) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Of each text's unit of at most 64 tokens, the pieces that lie in rows."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in rows:
        for placed in row:
            if placed.view == "text":
                assert placed.length == placed.stop - placed.start
                found.setdefault((placed.index, placed.start // 64 * 64), []).append((placed.start, placed.stop))
    return found


def whole(pieces: list[tuple[int, int]]) -> bool:
    """Whether the pieces are cuts of one stretch, each of it as often as the others, and none is a crumb."""
    begin, end = min(start for start, _ in pieces), max(stop for _, stop in pieces)
    times = {sum(start <= at < stop for start, stop in pieces) for at in range(begin, end)}
    small = [stop - start for start, stop in pieces if (start, stop) != (begin, end)]
    return len(times) == 1 and all(size >= 16 for size in small)


@settings(max_examples=60, deadline=None)
@given(corpus.filter(can_train), st.integers(0, 1000), st.integers(0, 5))
def test_rows_hold_what_was_drawn_and_never_more_than_their_length(documents, seed, count):
    made = planner(documents, seed)
    before = made.start()
    for number in range(count + 1):
        window = made.window(number, before)
        rows = window.rows()
        assert all(row and sum(placed.length for placed in row) <= 64 for row in rows)
        assert all(whole(units) for units in pieces(rows).values())
        for name, share in made.shares.items():
            given = window.pieces.at(window.pieces.stream == list(made.streams).index(name))
            (begin, owed), (end, still) = before[name], window.after[name]
            positions = np.unique(given.position)
            # From where the window before ended, each once, less what no row holds.
            assert set(positions) <= set(range(begin, end)) and (name != "text" or len(positions) == end - begin)
            left = made.streams[name].arranged(np.arange(begin, end), made.arranger)
            assert left.position.tolist() == positions.tolist()
            assert still == pytest.approx(owed + share * 256 - given.length.sum()) and -64 < still <= 0
        before = window.after
    again = planner(documents, seed)
    again.window(count + 3, made.start())  # what else was planned before does not matter
    assert windows(again, count + 1)[-1] == rows


def test_units_and_shares_are_those_counted_by_hand():
    """A picture stands in two tokens more than it has positions, a document in <bos> and <eos>, a row holds 64."""
    picture, both = [("visual", 9)], [("text", 5), ("visual", 9)]
    for kind, documents, tokens in (
        ("text", [[("text", 20)], [("text", 126)]], 22 + 128),
        ("image", [both, picture], 18 + 13),
        ("image", [[("text", 5), ("text", 7), ("text", 60), *picture]], 19),  # the third does not fit
        ("image", [[("text", 51), *picture], [("text", 52), *picture], [("visual", 60)], [("visual", 61)]], 64 + 64),
        ("video", [both], 18),
        ("document", [[*both, *both, ("text", 3)], [*both, *both, *both, *both]], 37 + 64),
        ("document", [[("visual", 60), ("text", 9)], [("visual", 61), ("text", 9)], [("visual", 58)]], 64 + 62),
        ("document", [[("text", 100), *picture]], 64),
    ):  # its beginning
        made = planner([(kind, document) for document in documents])
        assert made.streams[kind].tokens(made.arranger) == tokens and made.shares == {kind: 1}
    texts = planner([("text", [("text", n)]) for n in (20, 126, 62, 200)]).streams["text"]
    assert units(texts) == [
        (0, 0, 22),
        (1, 0, 64),
        (1, 64, 128),
        (2, 0, 64),
        *((3, start, min(start + 64, 202)) for start in range(0, 202, 64)),
    ]
    for place in range(4):
        assert set(texts.pieces(texts.units_of(place))[0]) == {place}
    # Cut where the row ends: behind the text that fills it, without an empty one behind it, or in the middle.
    for first, stop, length in ((61, 2, 64), (62, 1, 64), (70, 1, 64)):
        (placed, *_), *_ = windows(planner([("document", [("text", first), ("text", 5)])]), 1)[0]
        assert (placed.start, placed.stop, placed.length, placed.target) == (0, stop, length, -1)
    # What has no share of its own keeps its part of the rest: 88 and 26 tokens of 114, of 0.5.
    mixed = planner(
        [("text", [("text", 20)])] * 4 + [("video", picture)] * 2 + [("image", both)], mixture={"image": 0.5}
    )
    assert mixed.shares == pytest.approx({"image": 0.5, "text": 0.5 * 88 / 114, "video": 0.5 * 26 / 114})
    # Shares that add up to more leave nothing to the others, and are as they compare.
    crowded = planner(
        [("text", [("text", 20)]), ("video", picture), ("image", both)], mixture={"image": 3.0, "video": 1.0}
    )
    assert crowded.shares == pytest.approx({"image": 0.75, "video": 0.25})


@pytest.mark.parametrize("seed", [0, 1])
def test_every_caption_of_a_picture_has_its_turn_before_any_comes_again(seed):
    # The third caption of the first picture is too long for a row; texts are there to shift windows against epochs.
    documents = [
        ("image", [("text", 3), ("text", 5), ("text", 60), ("text", 7), ("visual", 9)]),
        ("image", [("text", 4), ("text", 6), ("visual", 9)]),
        ("image", [("visual", 9)]),
        ("video", [("text", 11), ("text", 2), ("visual", 18)]),
        ("text", [("text", 100)]),
    ]
    made, taken = planner(documents, seed, condition_dropout=0.0), {}
    for window, rows in enumerate(windows(made, 40)):
        for kind in ("image", "video"):
            placed = [p for row in rows for p in row if documents[p.index][0] == kind]
            for p in placed:
                lengths = documents[p.index][1]
                caption = lengths[p.caption][1] if len(lengths) > 1 else 0
                assert p.length == caption + lengths[-1][1] + 4
                taken.setdefault(p.index, []).append((window, p.caption))
    orders = set()
    for index, usable in {0: {0, 1, 3}, 1: {0, 1}, 3: {0, 1}}.items():
        counts = Counter(caption for _, caption in taken[index])
        assert set(counts) == usable and max(counts.values()) - min(counts.values()) <= 1
        orders.add(tuple(caption for _, caption in taken[index]))
    assert [caption for _, caption in taken[2]] == [0] * len(taken[2])
    assert windows(planner(documents, seed, condition_dropout=0.0), 18)[17] == windows(made, 18)[17]
    other = planner(documents, seed + 7, condition_dropout=0.0)
    assert windows(other, 3) != windows(made, 3) and len(orders) == 3


def test_a_picture_stands_with_the_caption_that_was_planned(tmp_path):
    text = corpora.text_tokenizer()
    captions = ["a red square", "the green square moves", "a blue one"]
    (row,) = corpora.token_rows(text, np.random.default_rng(0), images=1, videos=0, texts=0, documents=0)
    row["segments"] = [*({"kind": "text", "loss": True, "ids": text.encode(c)} for c in captions), row["segments"][-1]]
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [[row]]}, text)
    config = UnifiedConfig(
        vocab_size=text.vocab_size, width=8, layers=1, heads=1, kv_heads=1, latent_dim=4, specials=text.specials
    )
    made = TokenSet(artifact, "train")
    documents, said = Documents(made, config), set()
    for rows in windows(Planner(made.index, PackingConfig(length=64, window_rows=1), 0), 8):
        for placed in itertools.chain(*rows):
            segments = documents.segments(placed)
            assert document_length(segments) == placed.length
            ids = [int(i) for s in segments if s.kind == "text" for i in s.ids]
            said.add(text.decode(ids))
            assert text.decode(ids) == ("" if "text" in placed.dropped else captions[placed.caption])
    assert said - {""} == set(captions)


def packed(sizes: list[int], cuttable: list[bool]) -> list[list[tuple[int, int, int]]]:
    """Of each row (item, begin, size) of its pieces."""
    found = pack(np.array(sizes, np.int64), np.array(cuttable, bool), 64)
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(max(found.row, default=-1) + 1)]
    for row, *piece in zip(found.row, found.item, found.begin, found.size, strict=True):
        rows[row].append(tuple(map(int, piece)))
    return rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=80))
def test_pack_is_best_fit_decreasing_and_places_every_document_once(sizes):
    rows = packed(sizes, [False] * len(sizes))
    assert sorted(piece for row in rows for piece in row) == [(i, 0, n) for i, n in enumerate(sizes)]
    assert all(row and sum(size for *_, size in row) <= 64 for row in rows)
    left: list[int] = []  # item by item
    for size in sorted(sizes, reverse=True):
        at = min((i for i, room in enumerate(left) if room >= size), key=left.__getitem__, default=None)
        if at is None:
            left.append(64 - size)
        else:
            left[at] -= size
    assert sorted(64 - sum(size for *_, size in row) for row in rows) == sorted(left)


@settings(max_examples=30, deadline=None)
@given(corpus.filter(can_train), st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(0, 40))
def test_a_stream_goes_on_from_any_position(documents, takes, cut):
    straight, stream = RowStream(planner(documents)), RowStream(planner(documents))
    rows = straight.take(cut + sum(takes))
    assert stream.take(cut) == rows[:cut]
    resumed = RowStream(planner(documents), dict(stream.position))
    found = [row for take in takes for row in resumed.take(take)]
    assert found == rows[cut:]
    assert resumed.position == straight.position


@settings(max_examples=30, deadline=None)
@given(corpus.filter(can_train), st.integers(0, 100))
def test_each_epoch_visits_every_unit_once(documents, seed):
    made = planner(documents, seed)
    seen: dict[str, Counter] = {name: Counter() for name in made.shares}
    before = made.start()
    for number in range(400):
        if all(at > 2 * made.streams[name].count for name, (at, _) in before.items()):
            break
        window = made.window(number, before)
        before = window.after
        for row in window.rows():
            for p in row:
                unit = p.start // 64 if p.view == "text" else 0
                whole_or_first = p.view != "text" or p.start % 64 == 0
                seen[documents[p.index][0]][p.index, unit] += whole_or_first
    for name, counts in seen.items():
        held = made.streams[name].arranged(np.arange(made.streams[name].count), made.arranger)
        expected = {(int(i), int(start) // 64 if name == "text" else 0) for i, start in zip(held.index, held.start)}
        # A window may end inside an epoch: the counts of two units never differ by more than 1.
        assert set(counts) == expected and max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=80))
def test_texts_are_cut_to_save_rows_and_stay_whole(described):
    cuttable, sizes = [cut for cut, _ in described], [size for _, size in described]
    rows = packed(sizes, cuttable)
    assert all(row and sum(size for *_, size in row) <= 64 for row in rows)
    cuts: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        for item, begin, size in row:
            cuts.setdefault(item, []).append((begin, begin + size))
    assert sorted(cuts) == list(range(len(sizes)))
    for item, found in cuts.items():
        assert whole(found) and (min(found)[0], max(found)[1]) == (0, sizes[item])
        assert cuttable[item] or len(found) == 1
    assert len(rows) <= len(packed(sizes, [False] * len(sizes)))


def test_a_row_of_texts_that_others_have_room_for_is_cut_up():
    """Two pictures leave 20 tokens each, of which a text of 36 takes all that it needs."""
    assert packed([44, 44, 36], [False, False, True]) == [[(0, 0, 44), (2, 16, 20)], [(1, 0, 44), (2, 0, 16)]]
    assert len(packed([44, 44, 36], [False] * 3)) == 3
    assert len(packed([44, 54, 28], [False, False, True])) == 3  # ten tokens are no piece


@pytest.mark.parametrize("length", [256, 512, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize("grid", [16, 64, 256])
def test_padding_of_pictures_and_texts_stays_under_two_percent(length, grid):
    """Pictures of 16 positions (the demo's), 64 and 256 with their captions, and as many tokens of texts, whose lengths
    are spread as those of documents are; with the defaults. A window holds as many rows whatever their length is."""
    rng = np.random.default_rng(0)
    documents = [("image", [("text", int(n)), ("visual", grid)]) for n in rng.integers(4, 40, 1000)]
    documents += [("text", [("text", int(n))]) for n in rng.lognormal(5.5, 1.0, 500)]
    settings = PackingConfig(length=max(length, 2 * grid), mixture={"image": 0.5})
    made = Planner(corpora.index_of(documents), settings, seed=0)
    [rows] = windows(made, 1)
    used = sum(placed.length for row in rows for placed in row)
    assert 1 - used / (len(rows) * made.config.length) < 0.02
    assert sum(placed.length for row in rows for placed in row if placed.view == "text") / used == pytest.approx(
        0.5, abs=0.03
    )


@pytest.mark.parametrize("length", [256, 4096])
def test_padding_stays_under_two_percent_in_a_small_window(length):
    rng = np.random.default_rng(0)
    grid = 16 if length == 256 else 256
    documents = [("image", [("text", int(n)), ("visual", grid)]) for n in rng.integers(3, 25, 3000)]
    documents += [("video", [("text", int(n)), ("visual", 3 * grid)]) for n in rng.integers(3, 25, 300)]
    documents += [("text", [("text", int(n))]) for n in rng.lognormal(5.5, 1.0, 1000)]
    made = planner(documents, length=length, window_rows=64, mixture={"image": 0.6, "video": 0.2, "text": 0.2})
    rows = list(itertools.chain(*windows(made, 4)))
    used = sum(placed.length for row in rows for placed in row)
    assert 1 - used / (len(rows) * length) < 0.02
    shares = Counter()
    for row in rows:
        for placed in row:
            shares[documents[placed.index][0]] += placed.length / used
    assert shares == pytest.approx({"image": 0.6, "video": 0.2, "text": 0.2}, abs=0.04)


def test_orders_and_conditions_come_at_the_configured_rates():
    documents = [("image", [("text", 5), ("visual", 9)])] * 50 + [("image", [("visual", 9)])] * 50
    made = planner(documents, window_rows=800, caption_first=0.7, condition_dropout=0.2)
    placed = list(itertools.chain(*windows(made, 1)[0]))
    captioned = [p for p in placed if p.index < 50]
    drawn = [p for p in captioned if p.view == "draw"]
    assert len(drawn) / len(captioned) == pytest.approx(0.7, abs=0.05)
    assert np.mean(["text" in p.dropped for p in drawn]) == pytest.approx(0.2, abs=0.05)
    assert all(p.view == "draw" and p.dropped == {"text"} for p in placed if p.index >= 50)


def test_sources_of_a_condition_are_dropped_apart_and_one_share_is_of_captions():
    """In interleaved documents only by source; what is not dropped is planned as without."""
    documents = [("image", [("text", 5), ("visual", 9)])] * 30
    documents += [("document", [("text", 6), ("visual", 4), ("text", 3), ("visual", 9)])] * 60

    def placed(dropout) -> list[Placed]:
        return list(itertools.chain(*windows(planner(documents, window_rows=600, condition_dropout=dropout), 1)[0]))

    def plan(made: list[Placed]) -> Counter:
        return Counter((p.index, p.view, p.target, p.dropped) for p in made)

    one, words, both = (placed(dropout) for dropout in (0.25, {"text": 0.25}, {"text": 0.3, "image": 0.4}))
    assert not any(p.dropped for p in one if p.index >= 30)
    assert plan([p for p in one if p.index < 30]) == plan([p for p in words if p.index < 30])
    second = [p for p in both if p.target == 3]
    assert {p.length for p in second} == {1 + 6 + 6 + 3 + 11, 1 + 6 + 11, 1 + 6 + 3 + 11, 1 + 11}
    shares = Counter(p.dropped for p in second)
    for dropped, share in (
        (frozenset(), 0.42),
        (frozenset({"text"}), 0.18),
        (frozenset({"image"}), 0.28),
        (frozenset({"text", "image"}), 0.12),
    ):
        assert shares[dropped] / len(second) == pytest.approx(share, abs=0.05)
    assert not any(p.dropped for p in both if p.view == "document" and p.target < 0)
    captioned = [p for p in both if p.view == "draw"]
    assert {p.dropped for p in captioned} == {frozenset(), frozenset({"text"})}


@pytest.mark.parametrize("dropout", [-0.1, 1.5, "much", True, {}, {"caption": 0.1}, {"text": 2}])
def test_wrong_shares_of_dropped_conditions_are_told(dropout):
    with pytest.raises(ValidationError, match="expected a share from 0 to 1, or shares of text and image"):
        PackingConfig(condition_dropout=dropout)


def test_without_objectives_texts_alone_are_planned_and_without_drawing_captioned_pictures():
    documents = [
        ("text", [("text", 20)]),
        ("image", [("text", 5), ("visual", 9)]),
        ("image", [("visual", 9)]),
        ("document", [("text", 5), ("visual", 9)]),
    ]
    made = Planner(corpora.index_of(documents), PackingConfig(length=64, window_rows=4), 0, {})
    assert {placed.index for row in windows(made, 1)[0] for placed in row} == {0}
    described = planner(documents, mixture={"image": 1}, caption_first=0)
    assert {(placed.index, placed.view) for row in windows(described, 1)[0] for placed in row} == {(1, "describe")}
    with pytest.raises(ValueError, match="leaves nothing"):
        Planner(corpora.index_of(documents[1:]), PackingConfig(length=64), 0, {})


def test_a_mixture_leaves_kinds_out_and_unknown_ones_are_refused():
    documents = [("text", [("text", 20)]), ("image", [("visual", 9)])]
    assert set(planner(documents, mixture={"text": 0}).shares) == {"image"}
    with pytest.raises(ValueError, match="leaves nothing"):
        planner(documents, mixture={"text": 0, "image": 0})
    with pytest.raises(ValidationError, match="audio"):
        PackingConfig(mixture={"audio": 1})
    with pytest.raises(ValidationError, match="greater than or equal"):
        PackingConfig(mixture={"text": -1})


def parts(segment) -> tuple:
    return segment.kind, segment.loss, (segment.ids if segment.kind == "text" else segment.latents).tolist()


def test_planned_lengths_are_those_that_the_model_is_given(tmp_path):
    """Every view of every kind, documents cut at a row's end and texts cut into pieces included."""
    text, rng = corpora.text_tokenizer(), np.random.default_rng(3)
    rows = corpora.token_rows(text, rng, images=20, videos=6, texts=12, documents=30, longest_text=120)
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [rows[:20], rows[20:]]}, text), "train")
    model = UnifiedConfig(vocab_size=text.vocab_size, latent_dim=4, width=16, heads=1, specials=text.specials)
    documents = Documents(tokens, model)
    seen = Counter()
    for length in (24, 40, 64):
        settings = PackingConfig(length=length, window_rows=60, condition_dropout={"text": 0.2, "image": 0.3})
        made = Planner(tokens.index, settings, seed=length)
        for rows_of_window in windows(made, 3):
            for row in rows_of_window:
                built = [documents.segments(placed) for placed in row]
                for placed, segments in zip(row, built, strict=True):
                    assert document_length(segments) == placed.length, placed
                    if placed.target >= 0:
                        whole = documents.segments(replace(placed, dropped=frozenset()))
                        expected = [*without(whole[:-1], placed.dropped, model.specials), whole[-1]]
                        assert [parts(s) for s in segments] == [parts(s) for s in expected]
                    seen[placed.view, not placed.dropped, placed.target >= 0] += 1
                batch = collate([built], length, model)
                assert batch.tokens["padding"] == length - sum(p.length for p in row)
    assert {view for view, *_ in seen} == {"text", "draw", "describe", "document"}
    assert seen["draw", False, False] and seen["document", True, False]
    assert seen["document", False, True] and seen["document", True, True]


def test_a_cut_text_is_whole_again_when_its_pieces_are_joined(tmp_path):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(4)
    rows = corpora.token_rows(text, rng, 0, 0, 5, 0, longest_text=120)
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [rows]}, text), "train")
    specials = SimpleNamespace(**text.specials)
    documents = Documents(tokens, SimpleNamespace(specials=specials))
    made = Planner(tokens.index, PackingConfig(length=16), 0)
    for index in range(5):
        pieces = [
            documents.segments(Placed(i, "text", stop - start, start=start, stop=stop))[0].ids
            for i, start, stop in units(made.streams["text"])
            if i == index
        ]
        assert all(len(piece) == 16 for piece in pieces[:-1])
        assert np.concatenate(pieces).tolist() == [specials.bos, *rows[index]["segments"][0]["ids"], specials.eos]


def test_one_picture_of_a_document_is_the_target_and_the_earlier_ones_are_context(tmp_path):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(5)
    rows = corpora.token_rows(text, rng, 0, 0, 0, 6, longest_text=10)
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [rows]}, text), "train")
    model = UnifiedConfig(vocab_size=text.vocab_size, latent_dim=4, width=16, heads=1, specials=text.specials)
    documents, made = Documents(tokens, model), Planner(tokens.index, PackingConfig(length=256, window_rows=8), 0)
    targets = Counter()
    for row in windows(made, 1)[0]:
        for placed in row:
            visual = [s.loss for s in documents.segments(placed) if s.kind == "visual"]
            pictures = sum(s.kind == "visual" for s in tokens.document(placed.index))
            assert visual == ([False] * (len(visual) - 1) + [True] if placed.target >= 0 else [False] * pictures)
            targets[placed.index, placed.target] += 1
    for index in range(6):
        numbers = [n for n, s in enumerate(tokens.document(index)) if s.kind == "visual"]
        assert {target for i, target in targets if i == index} == {-1, *numbers}


def test_a_run_goes_on_with_the_plan_that_an_older_version_began():
    """Written down: streams that were drawn otherwise would repeat and leave out documents after an update."""
    documents = [
        ("text", [("text", 70)]),
        ("image", [("text", 5), ("text", 3), ("visual", 9)]),
        ("image", [("visual", 9)]),
        ("document", [("text", 6), ("visual", 4), ("text", 3), ("visual", 9)]),
        ("video", [("text", 4), ("visual", 12)]),
    ]
    made = Planner(
        corpora.index_of(documents),
        PackingConfig(length=64, window_rows=3, noisy_context=0.3, condition_dropout={"text": 0.2, "image": 0.5}),
        11,
        {"latent_diffusion": 1, "masked_code": 1},
    )
    assert [
        [
            (
                p.index,
                p.view,
                p.length,
                "".join(sorted(p.dropped)),
                p.target,
                p.objective[:6],
                p.context_time,
                p.caption,
            )
            for p in row
        ]
        for window in (0, 5)
        for row in windows(made, 6)[window]
    ] == [
        [(0, "text", 64, "", -1, "latent", 0.0, 0)],
        [
            (3, "document", 28, "", -1, "masked", 0.0, 0),
            (4, "draw", 20, "", -1, "masked", 0.0, 0),
            (4, "draw", 16, "text", -1, "masked", 0.0, 0),
        ],
        [(0, "text", 64, "", -1, "latent", 0.0, 0)],
        [
            (3, "document", 13, "", 1, "masked", 0.0, 0),
            (2, "draw", 13, "text", -1, "masked", 0.0, 0),
            (1, "draw", 13, "text", -1, "masked", 0.0, 0),
            (2, "draw", 13, "text", -1, "latent", 0.0, 0),
            (0, "text", 8, "", -1, "latent", 0.0, 0),
        ],
        [(0, "text", 64, "", -1, "latent", 0.0, 0)],
        [
            (2, "draw", 13, "text", -1, "latent", 0.0, 0),
            (0, "text", 8, "", -1, "latent", 0.0, 0),
            (0, "text", 8, "", -1, "latent", 0.0, 0),
        ],
        [
            (3, "document", 28, "", -1, "latent", 0.3, 0),
            (4, "describe", 20, "", -1, "latent", 0.0, 0),
            (1, "draw", 16, "", -1, "latent", 0.3, 1),
        ],
    ]


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [
        ("length", (16,), (15, 0)),
        ("caption_first", (0, 1), (-0.01, 1.01)),
        ("noisy_context", (0, 1), (-0.01, 1.01)),
        ("context_max_time", (0.01, 0.99), (0, 1)),
        ("window_rows", (1,), (0,)),
        ("condition_dropout", (0, 1), (-0.01, 1.01)),
        ("mixture", ({"text": 0}, {"text": 7}), ({"text": -0.1},)),
    ],
)
def test_limits_of_the_fields(field, taken, refused):
    for value in taken:
        assert getattr(PackingConfig(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(ValidationError, match=field):
            PackingConfig(**{field: value})


def test_a_stream_is_the_windows_one_after_the_other():
    made = planner([("text", [("text", 70)]), ("image", [("text", 5), ("visual", 9)])])
    planned = list(itertools.chain(*windows(made, 5)))
    stream, rows = RowStream(made), []
    while len(rows) < len(planned):
        coming = [window.documents(row).tolist() for window, row in stream.coming(3)]
        rows += (taken := stream.take(min(3, len(planned) - len(rows))))
        assert [[placed.index for placed in row] for row in taken] == coming[: len(taken)]
    assert rows == planned and (stream.position["window"], stream.position["row"]) == (5, 0)


def test_what_is_left_out_is_counted_by_kind_and_reason():
    """Rows of 64; a picture of n positions takes n + 4 with nothing, and its caption's tokens more."""
    picture = ("visual", 50)
    documents = [
        ("image", [("text", 10), ("text", 11), ("text", 30), picture]),
        ("image", [("text", 12), picture]),
        ("image", [("visual", 61)]),
        ("video", [("text", 9), ("visual", 60)]),
        ("video", [picture]),
        ("document", [("text", 20), ("visual", 20), ("text", 9), picture, ("text", 3), picture]),
        ("document", [("visual", 61), ("text", 3)]),
        ("document", [("text", 5)]),
        ("text", [("text", 300)]),
    ]
    made = planner(documents)
    assert left_out(made) == {
        "image_captions_too_long": 2,
        "image_too_long": 2,
        "video_too_long": 1,
        "document_cut": 1,
        "document_pictures_cut": 2,
        "document_too_long": 1,
    }
    assert left_out(planner(documents, caption_first=0)) == left_out(made) - Counter({"image_too_long": 1}) + Counter(
        {"image_no_caption": 1, "video_no_caption": 1}
    )
    assert left_out(planner(documents, mixture={"text": 0})) == left_out(made) + Counter({"text_no_share": 1})
    none = Planner(corpora.index_of(documents), PackingConfig(length=64), 0, {})
    assert left_out(none) == {"image_no_objective": 3, "video_no_objective": 2, "document_no_objective": 3}
    assert [needed(made, kind) for kind in ("image", "video", "document")] == [(64, 66), (54, 73), (4, 65)]
    assert needed(planner([("image", [("text", 70), ("visual", 9)]), documents[-1]]), "image") == (83, 83)


def test_a_source_that_is_not_named_is_not_dropped():
    documents = [("image", [("text", 5), ("visual", 9)])] * 9
    for dropout in ({"image": 1.0}, 0.0):
        placed = list(itertools.chain(*windows(planner(documents, caption_first=1, condition_dropout=dropout), 1)[0]))
        assert placed and all(p.view == "draw" and not p.dropped and p.length == 18 for p in placed)


def test_a_planned_document_is_a_value():
    assert len({Placed(1, "draw", 9), Placed(1, "draw", 9), Placed(2, "draw", 9)}) == 2
    assert Placed(1, "draw", 9) == Placed(1, "draw", 9, frozenset(), 0, 0, -1, "latent_diffusion", 0.0, True, 0)


def test_what_nothing_is_said_of():
    """Half of the captioned pictures are drawn, a tenth of those without their caption, and no context has noise."""
    usual = PackingConfig()
    assert usual.model_dump() == {
        "length": 4096,
        "mixture": {},
        "caption_first": 0.5,
        "caption_loss": True,
        "condition_dropout": 0.1,
        "temperature": None,
        "sources": None,
        "noisy_context": 0.0,
        "context_max_time": 0.3,
        "window_rows": 256,
    }
