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
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.packing import PackingConfig, Placed, Planner, RowStream, pack
from omniloom.stages.data.tokens import TokenSet


class Lengths:
    """What a planner reads of a token set: kinds, and (kind, tokens) of each segment."""

    def __init__(self, documents: list[tuple[str, list[tuple[str, int]]]]):
        self.documents = documents

    def indices(self, kind: str) -> np.ndarray:
        return np.array([i for i, (k, _) in enumerate(self.documents) if k == kind], dtype=np.int64)

    def lengths(self, index: int, representation: str = "latents") -> list[tuple[str, int]]:
        return self.documents[index][1]


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
    return Planner(Lengths(documents), PackingConfig(**{"length": 64, "window_rows": 4, **fields}), seed)


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
def test_rows_hold_what_was_drawn_and_never_more_than_their_length(documents, seed, window):
    made = planner(documents, seed)
    rows = made.window(window)
    assert all(row and sum(placed.length for placed in row) <= 64 for row in rows)
    counts = Counter(documents[placed.index][0] for row in rows for placed in row if placed.start % 64 == 0)
    assert counts == made.quota
    assert all(whole(units) for units in pieces(rows).values())
    again = planner(documents, seed)
    again.window(window + 3)  # what else was planned before does not matter
    assert again.window(window) == rows


def test_units_and_quotas_are_those_counted_by_hand():
    """A picture stands in two tokens more than it has positions, a document in <bos> and <eos>, a row holds 64; a
    window of four rows takes 256 tokens of units of their mean size."""
    picture, both = [("visual", 9)], [("text", 5), ("visual", 9)]
    for kind, documents, units, quota in (
        ("text", [[("text", 20)], [("text", 126)]], [(0, 22), (0, 64), (64, 128)], 5),
        ("image", [both, picture], [(0, 18), (0, 13)], 17),
        ("image", [[("text", 5), ("text", 7), ("text", 60), *picture]], [(0, 19)], 13),  # the third does not fit
        (
            "image",
            [[("text", 51), *picture], [("text", 52), *picture], [("visual", 60)], [("visual", 61)]],
            [(0, 64), (0, 64)],
            4,
        ),
        ("video", [both], [(0, 18)], 14),
        ("document", [[*both, *both, ("text", 3)], [*both, *both, *both, *both]], [(0, 37), (0, 64)], 5),
        (
            "document",
            [[("visual", 60), ("text", 9)], [("visual", 61), ("text", 9)], [("visual", 58)]],
            [(0, 64), (0, 62)],
            4,
        ),
        ("document", [[("text", 100), *picture]], [(0, 64)], 4),
    ):  # its beginning
        made = planner([(kind, document) for document in documents])
        assert [(start, stop) for _, start, stop in made.units[kind]] == units
        assert made.quota == {kind: quota}, units
    # Cut where the row ends: behind the text that fills it, without an empty one behind it, or in the middle.
    for first, stop, length in ((61, 2, 64), (62, 1, 64), (70, 1, 64)):
        (placed, *_), *_ = planner([("document", [("text", first), ("text", 5)])]).window(0)
        assert (placed.start, placed.stop, placed.length, placed.target) == (0, stop, length, -1)
    # What has no share of its own keeps its part of the rest: 88 and 26 tokens of 114, of 0.5.
    mixed = planner(
        [("text", [("text", 20)])] * 4 + [("video", picture)] * 2 + [("image", both)],
        mixture={"image": 0.5},
        window_rows=40,
    )
    assert mixed.quota == {
        "image": round(1280 / 18),
        "text": round(1280 * 88 / 114 / 22),
        "video": round(1280 * 26 / 114 / 13),
    }
    # Shares that add up to more leave nothing to the others, and are as they compare.
    crowded = planner(
        [("text", [("text", 20)]), ("video", picture), ("image", both)],
        mixture={"image": 3.0, "video": 1.0},
        window_rows=40,
    )
    assert crowded.quota == {"image": round(1920 / 18), "video": round(640 / 13)}


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
    for window in range(40):
        for kind in ("image", "video"):
            placed = [p for row in made.window(window) for p in row if documents[p.index][0] == kind]
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
    assert planner(documents, seed, condition_dropout=0.0).window(17) == made.window(17)
    other = planner(documents, seed + 7, condition_dropout=0.0)
    assert any(other.window(w) != made.window(w) for w in range(3)) and len(orders) == 3


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
    for window in range(8):
        for placed in itertools.chain(*Planner(made, PackingConfig(length=64, window_rows=1), 0).window(window)):
            segments = documents.segments(placed)
            assert document_length(segments) == placed.length
            ids = [int(i) for s in segments if s.kind == "text" for i in s.ids]
            said.add(text.decode(ids))
            assert text.decode(ids) == ("" if "text" in placed.dropped else captions[placed.caption])
    assert said - {""} == set(captions)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=80))
def test_pack_places_every_document_once(lengths):
    documents = [Placed(i, "draw", n) for i, n in enumerate(lengths)]
    rows = pack(documents, 64)
    assert sorted(p.index for row in rows for p in row) == list(range(len(lengths)))
    assert all(sum(p.length for p in row) <= 64 for row in rows)
    # Best fit never leaves two rows that are both at most half full.
    assert sum(sum(p.length for p in row) <= 32 for row in rows) <= 1


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
    for kind, units in made.units.items():
        seen = []
        for window in range(2 * len(units) // made.quota[kind] + 1):
            seen += [(p.index, p.start) for row in made.window(window) for p in row if documents[p.index][0] == kind]
            seen = [(index, start if kind == "text" else 0) for index, start in seen if start % 64 == 0]
        # A window may end inside an epoch: the counts of two units never differ by more than 1.
        counts = Counter(seen)
        assert set(counts) == {(index, start) for index, start, _ in units}
        assert max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["text", "draw"]), st.integers(1, 64)), max_size=80))
def test_texts_are_cut_to_save_rows_and_stay_whole(described):
    documents = [Placed(i, view, n, stop=n if view == "text" else 0) for i, (view, n) in enumerate(described)]
    rows = pack(documents, 64)
    assert all(sum(p.length for p in row) <= 64 for row in rows)
    assert sorted(p.index for row in rows for p in row if p.view == "draw") == [
        p.index for p in documents if p.view == "draw"
    ]
    found = pieces(rows)
    assert {index: max(stop for _, stop in cuts) for (index, _), cuts in found.items()} == {
        p.index: p.length for p in documents if p.view == "text"
    }
    assert all(whole(cuts) for cuts in found.values())
    unlike = [Placed(p.index, "draw", p.length) for p in documents]  # what is never cut
    assert len(rows) <= len(pack(unlike, 64))


@pytest.mark.parametrize("length", [256, 512, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize("grid", [16, 64, 256])
def test_padding_of_pictures_and_texts_stays_under_two_percent(length, grid):
    """Pictures of 16 positions (the demo's), 64 and 256 with their captions, and as many tokens of texts, whose lengths
    are spread as those of documents are; with the defaults. A window holds as many rows whatever their length is."""
    rng = np.random.default_rng(0)
    documents = [("image", [("text", int(n)), ("visual", grid)]) for n in rng.integers(4, 40, 1000)]
    documents += [("text", [("text", int(n))]) for n in rng.lognormal(5.5, 1.0, 500)]
    made = Planner(Lengths(documents), PackingConfig(length=max(length, 2 * grid), mixture={"image": 0.5}), seed=0)
    rows = made.window(0)
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
    rows = [row for window in range(4) for row in made.window(window)]
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
    placed = [p for row in made.window(0) for p in row]
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
        return [p for row in planner(documents, window_rows=600, condition_dropout=dropout).window(0) for p in row]

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
    made = Planner(Lengths(documents), PackingConfig(length=64, window_rows=4), 0, {})
    assert {placed.index for row in made.window(0) for placed in row} == {0}
    described = planner(documents, mixture={"image": 1}, caption_first=0)
    assert {(placed.index, placed.view) for row in described.window(0) for placed in row} == {(1, "describe")}
    with pytest.raises(ValueError, match="leaves nothing"):
        Planner(Lengths(documents[1:]), PackingConfig(length=64), 0, {})


def test_a_mixture_leaves_kinds_out_and_unknown_ones_are_refused():
    documents = [("text", [("text", 20)]), ("image", [("visual", 9)])]
    assert set(planner(documents, mixture={"text": 0}).quota) == {"image"}
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
        made = Planner(tokens, settings, seed=length)
        for window in range(3):
            for row in made.window(window):
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
    made = Planner(tokens, PackingConfig(length=16), 0)
    for index in range(5):
        pieces = [
            documents.segments(Placed(i, "text", stop - start, start=start, stop=stop))[0].ids
            for i, start, stop in made.units["text"]
            if i == index
        ]
        assert all(len(piece) == 16 for piece in pieces[:-1])
        assert np.concatenate(pieces).tolist() == [specials.bos, *rows[index]["segments"][0]["ids"], specials.eos]


def test_one_picture_of_a_document_is_the_target_and_the_earlier_ones_are_context(tmp_path):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(5)
    rows = corpora.token_rows(text, rng, 0, 0, 0, 6, longest_text=10)
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [rows]}, text), "train")
    model = UnifiedConfig(vocab_size=text.vocab_size, latent_dim=4, width=16, heads=1, specials=text.specials)
    documents, made = Documents(tokens, model), Planner(tokens, PackingConfig(length=256, window_rows=8), 0)
    targets = Counter()
    for row in made.window(0):
        for placed in row:
            visual = [s.loss for s in documents.segments(placed) if s.kind == "visual"]
            pictures = sum(k == "visual" for k, _ in tokens.lengths(placed.index))
            assert visual == ([False] * (len(visual) - 1) + [True] if placed.target >= 0 else [False] * pictures)
            targets[placed.index, placed.target] += 1
    for index in range(6):
        numbers = [n for n, (k, _) in enumerate(tokens.lengths(index)) if k == "visual"]
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
        Lengths(documents),
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
        for row in made.window(window)
    ] == [
        [
            (2, "draw", 13, "text", -1, "latent", 0.0, 0),
            (1, "draw", 13, "text", -1, "masked", 0.0, 1),
            (0, "text", 8, "", -1, "masked", 0.3, 0),
            (0, "text", 8, "", -1, "masked", 0.3, 0),
        ],
        [
            (3, "document", 28, "", -1, "latent", 0.0, 0),
            (4, "draw", 16, "text", -1, "masked", 0.3, 0),
            (2, "draw", 13, "text", -1, "latent", 0.3, 0),
        ],
        [(0, "text", 64, "", -1, "latent", 0.0, 0)],
        [(2, "draw", 13, "text", -1, "masked", 0.3, 0), (3, "document", 12, "imagetext", 3, "latent", 0.0, 0)],
        [
            (4, "draw", 20, "", -1, "latent", 0.0, 0),
            (1, "describe", 18, "", -1, "masked", 0.3, 0),
            (1, "draw", 16, "", -1, "latent", 0.3, 1),
            (0, "text", 8, "", -1, "masked", 0.0, 0),
        ],
        [(0, "text", 64, "", -1, "latent", 0.0, 0)],
        [(0, "text", 64, "", -1, "masked", 0.0, 0)],
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
    windows = [row for window in range(5) for row in made.window(window)]
    stream, rows = RowStream(made), []
    while len(rows) < len(windows):
        rows += stream.take(min(3, len(windows) - len(rows)))
    assert rows == windows and stream.position == {"window": 5, "row": 0}


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
    assert made.left_out == {
        "image_captions_too_long": 2,
        "image_too_long": 2,
        "video_too_long": 1,
        "document_cut": 1,
        "document_pictures_cut": 2,
        "document_too_long": 1,
    }
    assert planner(documents, caption_first=0).left_out == made.left_out - Counter({"image_too_long": 1}) + Counter(
        {"image_no_caption": 1, "video_no_caption": 1}
    )
    assert planner(documents, mixture={"text": 0}).left_out == made.left_out + Counter({"text_no_share": 1})
    none = Planner(Lengths(documents), PackingConfig(length=64), 0, {})
    assert none.left_out == {"image_no_objective": 3, "video_no_objective": 2, "document_no_objective": 3}
    assert [made.needed(index) for index in (0, 1, 2, 3, 4, 6)] == [64, 66, 65, 73, 54, 65]
    assert planner([*documents, ("image", [("text", 70), ("visual", 9)])]).needed(9) == 83


def test_a_source_that_is_not_named_is_not_dropped():
    documents = [("image", [("text", 5), ("visual", 9)])] * 9
    for dropout in ({"image": 1.0}, 0.0):
        placed = [p for row in planner(documents, caption_first=1, condition_dropout=dropout).window(0) for p in row]
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
        "noisy_context": 0.0,
        "context_max_time": 0.3,
        "window_rows": 256,
    }
