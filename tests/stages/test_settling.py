"""Settling in arrays, a part at a time, gives each record what a plain way of doing it gives, with all in memory."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from omniloom.infra.artifacts import Artifact
from omniloom.stages.data import changes, records
from omniloom.stages.data.media.identity import LOOK_BYTES
from omniloom.stages.data.media.sketches import SKETCH, densified
from omniloom.stages.ingest.increments.in_order import Order
from omniloom.stages.ingest.splitting import columns, compared, keys, settling, spilled, splits, text_twins

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
ROWS = 17  # of a shard


def drawn(rng: np.random.Generator, count: int) -> list[dict]:
    """Records of texts, pictures and documents: some come twice, some are groups, many nearly say the same."""
    saying = rng.integers(0, 1 << 32, (count // 8, SKETCH), np.uint32)
    found = []
    for n in range(count):
        kind = str(rng.choice(["text", "text", "image", "document"]))
        sketch = saying[int(len(saying) * rng.random() ** 4)].copy()  # of some more than are paired in a table
        sketch[rng.permutation(SKETCH)[: rng.integers(2 * SKETCH // 3)]] = rng.integers(0, 1 << 32, dtype=np.uint32)
        sketch[rng.random(SKETCH) < 0.05] = 0xFFFFFFFF
        pictures = [digest(f"picture {k}") for k in rng.integers(0, 3 * count, 2 if kind == "document" else 1)]
        found.append(
            {
                "id": digest(f"record {rng.integers(count * 4)}"),
                "kind": kind,
                "source": f"s{n * 3 // count}",
                "path": f"{n}",
                "part": 0,
                "group": digest(f"group {rng.integers(count)}") if rng.random() < 0.4 else None,
                "pictures": pictures if kind != "text" else [],
                "looks": [look(name) for name in pictures] if kind != "text" else [],
                "sketch": sketch.tobytes() if kind != "image" and rng.random() < 0.9 else None,
                "captions": [f"caption {n}"] if kind == "image" else [],
                "captioned": int(kind == "image"),
                "synthetic": bool(rng.random() < 0.1),
                "multipage": False,
            }
        )
        found[-1]["sketched"] = found[-1]["sketch"] is not None
    return found


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def look(name: str) -> bytes:
    return np.random.default_rng(int(name[:8], 16)).bytes(LOOK_BYTES)


def stored(folder: str, rows: list[dict], order: np.ndarray) -> keys.Corpus:
    """The rows lie in shards in this order, each of an item of its own."""
    places = np.empty((2, len(rows)), np.uint32)
    for group, at in enumerate(range(0, len(rows), ROWS)):
        some = order[at : at + ROWS]
        places[0, some], places[1, some] = group, np.arange(len(some))
        table = pa.Table.from_pylist([{**rows[n], "item": i} for i, n in enumerate(some)], schema=keys.SCHEMA)
        keys.write_table(folder, records.shard_name(group).rpartition("/")[2], table)
    return keys.Corpus(folder, Order(places))


def told(folder: str, rows: list[dict], order: np.ndarray) -> dict[str, str | None]:
    """By path the split of each record, None where it is dropped."""
    made, found = changes.of_artifact(folder), {}
    for at, n in enumerate(order.tolist()):
        changed = made.get(records.shard_name(at // ROWS).rpartition("/")[2], changes.Changes())
        split = changed.splits.get(at % ROWS, splits.own_split(rows[n], FRACTIONS))
        found[rows[n]["path"]] = None if at % ROWS in changed.dropped else split
    return found


# ---- the plain way ----


def plainly(rows: list[dict]) -> dict[str, str | None]:
    found: dict[str, str | None] = {row["path"]: None for row in rows}
    kept = list({row["id"]: row for row in reversed(rows)}.values())[::-1]
    by_group: dict[str, list[dict]] = {}
    for row in kept:
        by_group.setdefault(row["group"] or row["id"], []).append(row)
    ties = [*of_texts(by_group), *of_pictures(by_group)]
    clusters = clustered(list(by_group), ties)
    totals = {kind: sum(row["kind"] == kind for row in kept) for kind in records.KINDS}
    of_cluster = {name: [row for key in members for row in by_group[key]] for name, members in clusters.items()}
    split = {name: records.split_of(min(members), FRACTIONS) for name, members in clusters.items()}
    least = {name: min(members) for name, members in clusters.items()}
    for held in ("test", "validation"):
        for name, own in of_cluster.items():
            counts = {kind: sum(row["kind"] == kind for row in own) for kind in totals}
            large = any(counts[kind] > max(8, 2 * FRACTIONS[held] * totals[kind]) for kind in totals)
            split[name] = "train" if split[name] == held and large else split[name]
    for stratum in sorted({(row["source"], row["kind"]) for row in kept}):
        sizes = {name: sum((r["source"], r["kind"]) == stratum for r in own) for name, own in of_cluster.items()}
        sizes = {name: size for name, size in sizes.items() if size}
        for held in ("test", "validation"):
            if chosen := for_want(sizes, split, least, held):
                split[chosen] = held
    for name, own in of_cluster.items():
        found |= {row["path"]: split[name] for row in own}
    return found


def for_want(sizes: dict[str, int], split: dict[str, str], least: dict[str, str], held: str) -> str | None:
    total, left = sum(sizes.values()), [name for name in sizes if split[name] == "train"]
    if total < 2 * len(sizes) or FRACTIONS[held] * total < 1 or held in {split[name] for name in sizes}:
        return None
    others = [h for h in ("test", "validation") if h != held and h not in {split[name] for name in sizes}]
    if len(left) < 2 + len(others):
        return None
    fit = [name for name in left if sizes[name] <= 2 * FRACTIONS[held] * total]
    chosen = min(fit, key=least.__getitem__) if fit else min(left, key=lambda name: (sizes[name], least[name]))
    return chosen if sizes[chosen] * 2 <= total else None


def of_texts(by_group: dict[str, list[dict]]) -> list[tuple[str, str]]:
    texts = {}
    for key, own in by_group.items():
        if sketches := [np.frombuffer(row["sketch"], np.uint32) for row in own if row["sketch"]]:
            texts[key] = np.min(sketches, axis=0)
    if not texts:
        return []
    names, values = list(texts), np.stack(list(texts.values()))
    filled, ties = densified(values), []
    for band in text_twins.bands(values):
        order = np.lexsort((values[:, 0], band))
        for at, one in enumerate(order.tolist()):
            for other in order[at + 1 : at + 9].tolist():
                if band[one] == band[other] and (filled[one] == filled[other]).mean() >= text_twins.AGREEING:
                    ties.append((names[one], names[other]))
    return ties


def of_pictures(by_group: dict[str, list[dict]]) -> list[tuple[str, str]]:
    showing: dict[str, list[tuple[str, str]]] = {}
    for key, own in by_group.items():
        for row in own:
            for name in row["pictures"]:
                showing.setdefault(name, []).append((key, row["kind"]))
    return [(some[0][0], key) for some in showing.values() for key, _ in some]


def clustered(names: list[str], ties: list[tuple[str, str]]) -> dict[str, list[str]]:
    of = {name: name for name in names}

    def root(name: str) -> str:
        while of[name] != name:
            name = of[name]
        return name

    for one, other in ties:
        of[root(one)] = root(other)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(root(name), []).append(name)
    return found


@pytest.fixture
def small(monkeypatch):
    """Parts, blocks and what is held of a few rows, so that a small corpus has many."""
    for module, name, value in (
        (columns, "_TOGETHER", 8),
        (columns, "_BLOCK", 16),
        (columns, "_LEAST_BITS", 3),
        (columns, "_MOST_BITS", 5),
        (compared, "_BLOCK", 5),
        (text_twins, "_BLOCK", 7),
        (splits, "_BLOCK", 11),
        (settling, "_TOLD", 3),
        (spilled, "_HELD", 100),
        (spilled, "_PART", 64),
        (spilled, "_ONCE", 50),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("seed", range(6))
def test_parts_give_each_record_what_the_plain_way_gives(tmp_path, seed, small):
    rng = np.random.default_rng(seed)
    rows = drawn(rng, 150)
    order = np.arange(150) if seed % 2 else rng.permutation(150)
    corpus = stored(str(tmp_path), rows, order)
    found = settling.settle(corpus, len(rows), FRACTIONS)
    expected = plainly(rows)
    assert told(str(tmp_path), rows, order) == expected
    assert found.duplicates == sum(split is None for split in expected.values()) > 0
    assert {split for split in expected.values()} == {None, *records.SPLITS}
    assert found.counts["near_twins"] > 5 and found.counts["records"] == 150 - found.duplicates


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_that_has_changed_is_settled_as_one_that_was_read_at_once(tmp_path, seed, small):
    """Shards that stayed, one of which has lost rows, one that is gone, and new ones."""
    rng = np.random.default_rng(seed)
    rows = drawn(rng, 140)
    first = stored(str(tmp_path / "1"), rows, np.arange(140))
    settling.settle(first, 140, FRACTIONS)
    left = [n for n in range(140) if n // ROWS != 2 and n not in (ROWS, ROWS + 3, 4 * ROWS + 1)]
    new = [{**row, "path": f"new {row['path']}"} for row in drawn(rng, 40)]
    now = [*(rows[n] for n in left[:50]), *new, *(rows[n] for n in left[50:])]
    where, kept = {n: divmod(n, ROWS) for n in left}, SimpleNamespace(uri=str(tmp_path / "2"))
    second = stored(kept.uri, [*rows, *new], np.arange(180))
    second.names = [name for name in second.names if records.group_of(name) != 2]
    places = [where[n] for n in left]
    added = [divmod(140 + n, ROWS) for n in range(40)]
    second.order = Order(np.array([*places[:50], *added, *places[50:]], np.uint32).T)
    settling.settle(second, len(now), FRACTIONS, Artifact("ingest", "0" * 64, str(tmp_path / "1"), {}))
    found = told(kept.uri, [*rows, *new], np.arange(180))
    assert {row["path"]: found[row["path"]] for row in now} == plainly(now)


def test_what_is_equal_is_found_in_parts(small):
    rng = np.random.default_rng(1)
    for kind in (np.uint32, np.uint64):
        values = rng.integers(0, 60, 200).astype(kind) * kind(2**25 + 1)
        own, counts = np.unique(values, return_counts=True)
        assert columns.repeated(values).tolist() == np.flatnonzero(np.isin(values, own[counts > 1])).tolist()
        some = own[::3]
        assert columns.having(values, some).tolist() == np.flatnonzero(np.isin(values, some)).tolist()
    pairs = np.stack([values, rng.integers(0, 3, 200).astype(np.uint64)], axis=1)
    known: dict[tuple, int] = {}
    expected = [known.setdefault(tuple(pair), n) for n, pair in enumerate(pairs.tolist())]
    assert columns.firsts(pairs).tolist() == expected
    later, first = columns.repeats(pairs)
    assert dict(zip(later.tolist(), first.tolist(), strict=True)) == {
        n: one for n, one in enumerate(expected) if n != one
    }
