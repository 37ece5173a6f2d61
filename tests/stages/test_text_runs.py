"""Texts in columns are the records that each of them is by itself, and shards close where they would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.groups import grouped, ingest_group
from omniloom.stages.ingest.sources import pieces
from omniloom.stages.ingest.splitting import keys, splits
from omniloom.stages.ingest.text_runs import Columns, Facts, TextRun

EVEN = {"train": 0.4, "validation": 0.3, "test": 0.3}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)


def facts(n: int) -> Facts:
    group = splits.group_key("file", f"{n % 2}") if n % 3 else None
    return Facts(f"{n}.txt", group, "CC0" if n % 2 else None, n % 5 == 0, '{"n": 1}' if n % 2 else "{}")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=1, max_size=5), min_size=1, max_size=8))
def test_columns_hold_what_each_text_is_alone(texts):
    columns, rows = Columns(EVEN), []
    for n, some in enumerate(texts):
        run = TextRun(some, range(7, 7 + len(some)), facts(n), item=n, source="s")
        rows += [{**row, "source": "s", "item": n, "split": splits.own_split(row, EVEN)} for row in run.rows()]
        columns.add(run)
    table, of_keys = columns.tables()
    table.validate(full=True)
    of_keys.validate(full=True)
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert {name: value for name, value in found.items() if value not in (None, [])} == {
            name: row[name] for name in records.SCHEMA.names if row.get(name) is not None
        }
    assert of_keys.to_pylist() == [keys.of_row(row) for row in rows]
    assert columns.size == 0


@pytest.mark.parametrize(
    ("count", "size", "some", "taken"),
    [(9, 99, False, 4), (2, 99, False, 2), (9, 5, False, 2), (9, 6, False, 3), (9, 0, False, 0), (9, 0, True, 1)],
)
def test_a_run_is_cut_where_a_shard_closes(count, size, some, taken):
    run = TextRun(["ab", "cde", "f", "gh"], [1, 2, 3, 5], facts(1), item=4, source="s")
    first, rest = run.cut(count, size, some)
    assert first.texts == run.texts[:taken] and list(first.parts) == list(run.parts[:taken])
    assert (rest.texts if rest else []) == run.texts[taken:] and first.size == sum(map(len, first.texts))
    for part in (first, *([rest] if rest else [])):
        assert (part.facts, part.item, part.source) == (run.facts, 4, "s")


@pytest.mark.parametrize("fields", [{"shard_bytes": 5000}, {"shard_items": 7}])
def test_shards_of_texts_close_by_what_they_hold(tmp_path, fields):
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abc "), int(n))) + "x" for n in rng.integers(1, 900, 80)]
    (tmp_path / "in").mkdir()
    for n, text in enumerate(texts):
        (tmp_path / "in" / f"{n:03d}.txt").write_text(text)
    config = Config.model_validate({"sources": [{"kind": "text", "uri": str(tmp_path / "in")}], **fields})
    for group in grouped(pieces(config), config):
        list(ingest_group(group, config, str(tmp_path / "out"), str(tmp_path / "state")))
    found = [list(records.iterate_shard(shard)) for shard in records.shards(str(tmp_path / "out"))]
    assert [row["text"] for rows in found for row in rows] == texts and len(found) >= 8
    for rows in found:
        assert len(rows) <= config.shard_items
        assert sum(len(row["text"]) for row in rows) <= 1.15 * config.shard_bytes
    names = [name for name in storage.list_files(str(tmp_path / "out/resume/keys"))]
    told = [row["path"] for name in sorted(names) for row in keys.read(str(tmp_path / "out"), name).to_pylist()]
    assert told == [f"{n:03d}.txt" for n in range(len(texts))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 9), st.booleans())
def test_lines_are_the_same_whatever_the_blocks(lengths, step, ended):
    lines = [bytes([97 + n]) * length for n, length in enumerate(lengths)]
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    found = [line for line, _ in encoding.lines(iter([data[at : at + step] for at in range(0, len(data), step)]), 8)]
    assert [line for line, _ in encoding.lines(iter([data]), 8)] == found
    wanted = data.split(b"\n")
    wanted = wanted[:-1] if not wanted[-1] else wanted
    assert found == [line if len(line) <= 8 else None for line in wanted]
