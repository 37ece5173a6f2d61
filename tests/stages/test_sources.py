"""Listings stand for content, and splits and chunks keep what they promise for any input."""

from __future__ import annotations

import hashlib
import os
import time

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniloom.infra import storage
from omniloom.stages.data import changes, records
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.ingest.annotations import fields, names
from omniloom.stages.ingest.texts import chunk_text, decode_text

IDS = st.binary(max_size=8).map(lambda content: hashlib.sha256(content).hexdigest())
SHARES = (
    st.tuples(*[st.integers(0, 20)] * 3)
    .filter(any)
    .map(lambda parts: dict(zip(records.SPLITS, (part / sum(parts) for part in parts), strict=True)))
)


def text_config(uri: str, **fields) -> ingest.Config:
    return ingest.Config.model_validate({"sources": [{"kind": "text", "uri": uri, **fields}]})


# ---- listings ----


def test_a_listing_depends_on_content_and_not_on_the_place(tmp_path):
    for folder in ("a", "b"):
        storage.write_bytes(str(tmp_path / folder / "x.txt"), b"one")
        storage.write_bytes(str(tmp_path / folder / "sub" / "y.txt"), b"two")
        storage.write_bytes(str(tmp_path / folder / "other.png"), b"no text")
        for path in ("x.txt", "sub/y.txt"):
            os.utime(tmp_path / folder / path, (1e9, 1e9))
    first, second = (ingest.listing(text_config(str(tmp_path / folder))) for folder in ("a", "b"))
    assert first == second and [fact["path"] for fact in first] == ["sub/y.txt", "x.txt"]
    os.utime(tmp_path / "b" / "x.txt", (2e9, 2e9))
    assert ingest.listing(text_config(str(tmp_path / "b"))) != first
    by_content = [ingest.listing(text_config(str(tmp_path / folder), hash="content")) for folder in ("a", "b")]
    assert by_content[0] == by_content[1]
    assert by_content[0][1]["identity"] == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    storage.write_bytes(str(tmp_path / "b" / "x.txt"), b"neo")
    assert ingest.listing(text_config(str(tmp_path / "b"), hash="content")) != by_content[0]


def test_the_manifest_is_part_of_the_listing(tmp_path):
    row = b'{"file": "x.png", "caption": "x"}'
    storage.write_bytes(str(tmp_path / "in" / "x.png"), b"?")
    storage.write_bytes(str(tmp_path / "in" / "m.jsonl"), row)
    storage.write_bytes(str(tmp_path / "m.jsonl"), row)
    for manifest in ("m.jsonl", str(tmp_path / "m.jsonl")):
        cfg = ingest.Config.model_validate(
            {"sources": [{"kind": "image_folder", "uri": str(tmp_path / "in"), "captions": {"manifest": manifest}}]}
        )
        before = ingest.listing(cfg)
        assert sorted(fact["path"] for fact in before) == ["m.jsonl", "x.png"]
        storage.write_bytes(
            manifest if manifest.startswith("/") else str(tmp_path / "in" / manifest), row + b"\n" + row
        )
        assert ingest.listing(cfg) != before


def test_include_and_exclude(tmp_path):
    for path in ("a.txt", "sub/b.txt", "sub/deep/c.txt", "d.log"):
        storage.write_bytes(str(tmp_path / path), b"x")

    def listed(**fields):
        return [fact["path"] for fact in ingest.listing(text_config(str(tmp_path), **fields))]

    assert listed() == ["a.txt", "sub/b.txt", "sub/deep/c.txt"]
    assert listed(include="sub/*") == ["sub/b.txt", "sub/deep/c.txt"]
    assert listed(include="**/*.log") == ["d.log"]
    assert listed(exclude=["*deep*", "a.*"]) == ["sub/b.txt"]


def test_thousands_of_files_are_listed_within_a_second(tmp_path):
    for i in range(3000):
        (tmp_path / f"{i}.txt").write_bytes(b"x")
    started = time.process_time()  # of CPU: a busy machine takes no more of it
    assert len(ingest.listing(text_config(str(tmp_path)))) == 3000
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize(
    "path, clean",
    [
        ("a/b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("a/../b.png", "b.png"),
        ("a\\b.png", "a/b.png"),
        ("../a", None),
        ("a/../../b", None),
        ("/etc/passwd", None),
        ("..", None),
        (".", None),
        ("a\0b", None),
        ("..\\a", None),
        ("\ud800", None),
    ],
)
def test_paths_stay_below_the_root(path, clean):
    assert names.normal_path(path) == clean


def test_templates_fill_in_fields_and_never_look_into_them():
    assert fields.fill("{a}: {b} {{}}", {"a": "{b}", "b": 2}) == "{b}: 2 {{}}"
    assert fields.fill("{a.__class__} {a}", {"a": "x"}) == "{a.__class__} x"
    with pytest.raises(ValueError, match="b: expected text"):
        fields.fill("{b}", {"a": 1})


# ---- splits ----


@given(IDS, SHARES)
def test_the_split_is_a_function_of_the_id_and_has_a_share(record_id, shares):
    split = records.split_of(record_id, shares)
    assert shares[split] > 0 and split == records.split_of(record_id, dict(reversed(shares.items())))


@given(IDS, st.integers(0, 50), st.integers(0, 50))
def test_a_larger_test_share_keeps_what_is_in_test(record_id, low, more):
    small = {"train": 1 - low / 100, "validation": 0, "test": low / 100}
    large = {"train": 1 - (low + more) / 100, "validation": 0, "test": (low + more) / 100}
    if records.split_of(record_id, small) == "test":
        assert records.split_of(record_id, large) == "test"


def test_shares_are_met():
    shares = {"train": 0.7, "validation": 0.2, "test": 0.1}
    splits = [records.split_of(hashlib.sha256(str(i).encode()).hexdigest(), shares) for i in range(20_000)]
    for split, share in shares.items():  # five standard deviations of a binomial
        assert abs(splits.count(split) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
    with pytest.raises(ValueError, match="sum to"):
        records.split_of("0" * 64, {"train": 0.5})


# ---- records ----


def test_shards_can_be_read_in_parts(tmp_path):
    rows = [
        {
            "id": f"{i:064x}",
            "kind": ("image", "text")[i % 2],
            "split": records.SPLITS[i % 3],
            "media": bytes(9_000_000) if i < 4 else None,
            "source": "s",
            "path": f"{i}",
            "part": 0,
            "synthetic": False,
            "meta": "{}",
        }
        for i in range(12)
    ]
    records.write_shard(str(tmp_path / records.shard_name(0)), rows)
    records.write_shard(str(tmp_path / records.shard_name(1)), [])
    assert [row["path"] for row in records.iterate(str(tmp_path))] == [str(i) for i in range(12)]
    found = records.iterate(str(tmp_path), kinds=["text"], split="train", columns=["path"])
    assert list(found) == [{"path": "3"}, {"path": "9"}]
    shard = str(tmp_path / records.shard_name(0))
    assert pq.ParquetFile(shard).num_row_groups > 1
    own = changes.Changes({2, 11}, {4: ["new", "newer"]}, {9: "test"})
    changes.write(str(tmp_path), {"shard-000000-0000.parquet": own})
    for batch in (1, 5, 64):
        rows = list(records.iterate(str(tmp_path), batch_size=batch))
        assert [row["path"] for row in rows] == [str(i) for i in range(11) if i != 2]
        said = {row["path"]: (row["caption"], row["captions"], row["split"]) for row in rows}
        assert said["4"] == ("new", ["new", "newer"], "validation") and said["9"] == (None, None, "test")
        assert said["3"] == (None, None, "train")
    assert list(records.iterate(str(tmp_path), kinds=["text"], split="test", columns=["path"])) == [
        {"path": "5"},
        {"path": "9"},
    ]
    assert next(records.iterate(str(tmp_path), split="validation", kinds=["image"], columns=["caption"])) == {
        "caption": "new"
    }
    records.rewrite_without(shard, str(tmp_path / records.shard_name(2)), {0, 5, 11})
    assert [row["path"] for row in records.iterate_shard(str(tmp_path / records.shard_name(2)))] == [
        str(i) for i in range(12) if i not in (0, 5, 11)
    ]


def test_records_of_another_version_are_refused(tmp_path):
    other = records.SCHEMA.with_metadata({"omniloom.records": "0"})
    pq.write_table(other.empty_table(), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="version 0"):
        list(records.iterate_shard(str(tmp_path / "x.parquet")))


# ---- text ----

TEXTS = st.text(alphabet=st.sampled_from("ab \n\t.é\u2028"), max_size=400)


@given(TEXTS, st.integers(1, 60))
def test_chunks_join_to_the_whole_and_none_is_blank(text, size):
    chunks = chunk_text(text, size)
    assert "".join(chunks) == text
    if text.strip():
        assert all(chunk.strip() for chunk in chunks)


@given(st.text(alphabet="ab \n", max_size=400).map(str.strip), st.integers(4, 60))
def test_chunks_are_about_as_long_as_asked(text, size):
    chunks = [chunk for chunk in chunk_text(text, size)]
    words = [chunk.rstrip() for chunk in chunks]  # blank runs ride along with the piece before them
    assert all(len(word.lstrip()) < 3 * size for word in words)


def test_chunks_end_with_paragraphs():
    paragraphs = [f"{i} " + "word " * 20 + "\n\n" for i in range(30)]
    chunks = chunk_text("".join(paragraphs), 300)
    assert all(chunk.endswith("\n\n") and len(chunk) >= 300 for chunk in chunks[:-1])


@given(st.text())
def test_text_survives_its_encoding(text):
    text = text.replace("\0", "").replace("\r", "")
    if text.strip("\ufeff").strip():
        assert decode_text(text.encode()) == text.removeprefix("\ufeff")
        assert decode_text(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == text


def test_a_row_that_no_shard_can_hold_is_a_reject_and_the_others_stay(tmp_path):
    rows = [
        {
            "id": f"{i:064x}",
            "kind": "image",
            "split": "train",
            "media": b"x",
            "caption": caption,
            "width": width,
            "source": "s",
            "path": f"{i}.png",
            "part": 0,
            "synthetic": False,
            "meta": "{}",
        }
        for i, (caption, width) in enumerate([("fine", 1), ("\ud800", 1), ("wide", 2**40), ("well", 1)])
    ]
    with records.shard_writer(str(tmp_path / records.shard_name(0))) as writer:
        for row in rows:
            writer.add(row)
    assert [row["path"] for row in records.iterate(str(tmp_path))] == ["0.png", "3.png"]
    bad = writer.refused
    assert [(row["source"], row["path"], row["code"]) for row in bad] == [
        ("s", "1.png", "failed"),
        ("s", "2.png", "failed"),
    ]
    assert all(row["message"].encode() for row in bad)
    with pytest.raises(ValueError, match="2 rows do not fit"):
        records.write_shard(str(tmp_path / "other.parquet"), rows)
    assert not (tmp_path / "other.parquet").exists()
