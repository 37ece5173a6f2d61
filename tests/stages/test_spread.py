"""Draws of held-out items: even over sources and labels whatever comes first in the files, and the seed's alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.stages.data.spread import spread

ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z", None])), min_size=1, max_size=40)


def table(rows, ids=None) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(ids or [f"id{number}" for number in range(len(rows))]),
            "source": pa.array([source for source, _ in rows]),
            "label": pa.array([label for _, label in rows], pa.string()),
        }
    )


def assert_even(drawn: Counter, there: Counter) -> None:
    """None has two more than another that has any left."""
    for value, count in drawn.items():
        for other, available in there.items():
            assert drawn[other] == available or count <= drawn[other] + 1, (value, other, drawn, there)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 1000), st.data())
def test_every_prefix_is_even_over_sources_and_within_each_over_labels(rows, seed, data):
    shared = Counter(label for _, label in rows)
    order = spread(table(rows), ("source", "label"), seed)
    rows = [(source, label if shared[label] > 1 else None) for source, label in rows]  # of one row alone: no class
    assert sorted(order.tolist()) == list(range(len(rows)))
    drawn = [rows[i] for i in order[: data.draw(st.integers(0, len(rows)))]]
    assert_even(Counter(source for source, _ in drawn), Counter(source for source, _ in rows))
    for source in "ab":
        assert_even(
            Counter(label for s, label in drawn if s == source), Counter(label for s, label in rows if s == source)
        )


@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_files_and_their_order_have_no_say(rows, seed, random):
    ids = [f"id{number}" for number in range(len(rows))]
    first = table(rows, ids)
    moved = list(range(len(rows)))
    random.shuffle(moved)
    second = table([rows[i] for i in moved], [ids[i] for i in moved])
    cut = random.randint(0, len(rows))
    second = pa.concat_tables([second.slice(0, cut), second.slice(cut)])  # other shards
    drawn = [[t["id"][int(i)].as_py() for i in spread(t, ("source", "label"), seed)] for t in (first, second)]
    assert drawn[0] == drawn[1] == [first["id"][int(i)].as_py() for i in spread(first, ("source", "label"), seed)]


def test_the_seed_chooses_and_every_item_is_as_likely():
    rows = [("a", "x")] * 5 + [("a", "y")] * 5
    firsts = Counter(int(spread(table(rows), ("source", "label"), seed)[0]) for seed in range(2000))
    assert len(firsts) == 10 and min(firsts.values()) > 140 and max(firsts.values()) < 260  # 200 +- 4.5 deviations
    plain = [spread(table(rows), (), seed)[:5] for seed in range(400)]
    assert np.mean([np.mean(part < 5) for part in plain]) == pytest.approx(0.5, abs=0.05)
    assert any((part < 5).sum() > 3 for part in plain), "without columns nothing is evened out"


def test_a_name_for_each_item_is_no_class():
    """269 names beside two classes: of 30, ten each."""
    rows = [("a", f"name {number}") for number in range(269)] + [("a", "x")] * 20 + [("a", "y")] * 20
    drawn = [rows[i][1] for i in spread(table(rows), ("source", "label"), 1)[:30]]
    assert drawn.count("x") == drawn.count("y") == 10


def test_of_some_rows_alone_and_of_none():
    rows = [("a", "x")] * 6 + [("b", None)] * 3
    some = np.array([8, 0, 2, 7])
    order = spread(table(rows), ("source", "label"), 3, some)
    assert sorted(order.tolist()) == [0, 2, 7, 8] and len({int(i) // 6 for i in order[:2]}) == 2
    assert spread(table([]), ("source", "label"), 0).tolist() == []
    assert spread(table(rows), ("label",), 0, np.array([], np.int64)).tolist() == []
