"""Tokens: what pretokenize wrote comes back unchanged, from any shard and batch, without copying the corpus."""

from __future__ import annotations

import dataclasses
import os
import time

import corpora
import numpy as np
import pyarrow as pa
import pytest

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.stages.data import index as index_module
from omniloom.stages.data import shards
from omniloom.stages.data.arrow import map_table
from omniloom.stages.data.token_shards import write_shard
from omniloom.stages.data.tokens import TokenSet

TEXT = corpora.text_tokenizer()


def rows(codes: bool = True, texts: int = 7) -> list[dict]:
    return corpora.token_rows(TEXT, np.random.default_rng(1), images=9, videos=3, texts=texts, documents=6, codes=codes)


def check(tokens: TokenSet, written: list[dict]) -> None:
    assert len(tokens) == len(written)
    for index, row in enumerate(written):
        assert tokens.row(index) == {name: row[name] for name in ("id", "kind", "label", "bytes")}
        document = tokens.document(index)
        for token, segment in zip(document, row["segments"], strict=True):
            assert (token.kind, token.loss) == (segment["kind"], segment["loss"])
            if token.kind == "text":
                assert token.ids.tolist() == segment["ids"] and token.latents is None and token.grid is None
                continue
            assert token.grid == tuple(segment["grid"]) and token.ids is None
            np.testing.assert_array_equal(token.latents.ravel(), segment["latents"])
            assert token.latents.shape == (np.prod(segment["grid"]), 4)
            assert token.feature_grid == (tuple(segment["feature_grid"]) if "feature_grid" in segment else None)
            if token.feature_grid:
                assert token.features.dtype == np.float16 and token.features.shape == (token.feature_grid[1] * 2, 5)
                np.testing.assert_array_equal(token.features.ravel(), segment["features"])
            else:
                assert token.features is None
            if segment["codes"] is None:
                assert token.codes is None
            else:
                np.testing.assert_array_equal(token.codes, segment["codes"])
    for kind in ("image", "video", "text", "document"):
        assert tokens.indices(kind).tolist() == [i for i, row in enumerate(written) if row["kind"] == kind]


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "continuous"])
def test_round_trip_over_several_shards(tmp_path, codes):
    written = rows(codes)
    written[4]["segments"][0]["loss"] = False
    artifact = corpora.pretokenize(
        tmp_path / "tokens", {"train": [written[:5], written[5:6], written[6:]], "test": [written[:2]]}, TEXT
    )
    check(TokenSet(artifact, "train"), written)
    check(TokenSet(artifact, "test"), written[:2])
    assert [len(d) for d in TokenSet(artifact, "train")] == [len(row["segments"]) for row in written]


def test_features_come_back_beside_the_latents(tmp_path):
    written, rng = rows(), np.random.default_rng(2)
    for number, segment in enumerate(s for row in written for s in row["segments"] if s["kind"] == "visual"):
        if number % 3:  # features of some, as of a corpus that is given them later
            grid = [1, 1 + number % 4, 2]
            segment |= {"features": rng.normal(size=grid[1] * 2 * 5).astype(np.float16), "feature_grid": grid}
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [written[:9], written[9:]]}, TEXT), "train")
    check(tokens, written)
    assert not any(t.features.flags.owndata for document in tokens for t in document if t.feature_grid)


def test_many_record_batches(tmp_path):
    written = rows(texts=1500)
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [written]}, TEXT), "train")
    assert len(map_table(next((tmp_path / "tokens").rglob("*.arrow"))).to_batches()) > 1
    for index in (0, 1023, 1024, len(written) - 1):
        assert tokens.row(index)["id"] == written[index]["id"]
        assert [t.length for t in tokens.document(index) if t.kind == "text"] == [
            len(s["ids"]) for s in written[index]["segments"] if s["kind"] == "text"
        ]
    with pytest.raises(IndexError):
        tokens.document(len(written))


def test_a_split_without_documents(tmp_path):
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [rows()], "validation": [[]]}, TEXT)
    for split in ("validation", "test"):  # a shard without rows, and no shard at all
        tokens = TokenSet(artifact, split)
        assert len(tokens) == 0 and list(tokens) == [] and tokens.indices("image").tolist() == []


def test_contents_stay_in_the_mapped_file(tmp_path):
    written = rows()
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [written[:9], written[9:]]}, TEXT), "train")
    tokens.document(0), tokens.document(len(written) - 1)  # opens both
    before = pa.total_allocated_bytes()
    documents = list(tokens)
    assert pa.total_allocated_bytes() == before
    assert all(not token.latents.flags.owndata for document in documents for token in document if token.grid)


def test_another_schema_version_is_refused(tmp_path):
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [rows()]}, TEXT)
    facts = storage.read_json(artifact.file("tokens.json"))
    for other in (3, 9):
        storage.write_json(artifact.file("tokens.json"), {**facts, "schema_version": other})
        with pytest.raises(ValueError, match=f"tokens of schema version {other}, expected 5"):
            TokenSet(artifact, "train")


def test_a_row_of_another_type_leaves_no_file(tmp_path):
    row = rows()[0]
    with pytest.raises(pa.ArrowTypeError):
        write_shard(str(tmp_path / "shard.arrow"), [{**row, "kind": 3}])
    assert not (tmp_path / "shard.arrow").exists()


@pytest.mark.parametrize("size", [0, 40])
def test_a_shard_that_is_cut_is_named(tmp_path, size):
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [rows()]}, TEXT)
    [shard] = (tmp_path / "tokens").rglob("shard-*.arrow")
    os.truncate(shard, size)
    with pytest.raises(InputError, match=f"{size} bytes.*omniloom verify") as caught:
        TokenSet(artifact, "train").document(0)
    assert caught.value.file == str(shard)


def remote(tmp_path, artifact) -> Artifact:
    """The artifact as an object store has it."""
    uri = f"memory://{tmp_path.name}-{os.getpid()}"
    storage.copy_tree(artifact.uri, uri)
    return dataclasses.replace(artifact, uri=uri)


def test_a_remote_artifact_brings_what_is_asked_for_once_and_no_more_than_its_room(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    written = rows()
    parts = [written[at : at + 2] for at in range(0, len(written), 2)]
    artifact = remote(tmp_path, corpora.pretokenize(tmp_path / "tokens", {"train": parts}, TEXT))
    copied, copy = [], storage.copy_file
    monkeypatch.setattr(storage, "copy_file", lambda source, target: (copied.append(source), copy(source, target)))
    tokens = TokenSet(artifact, "train")
    assert len(tokens) == len(written) and not any(".arrow" in name for name in copied)  # lengths alone
    tokens.document(5)
    tokens.document(4)
    assert [name for name in copied if ".arrow" in name] == [artifact.file("tokens/train/shard-00002.arrow")]
    check(tokens, written)
    again = TokenSet(artifact, "train")
    before = len(copied)
    check(again, written)
    assert len(copied) == before  # as another process of the machine
    size = max(entry["bytes"] for entry in artifact.manifest["files"] if entry["path"].endswith(".arrow"))
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "small"))
    small = TokenSet(artifact, "train", cache_bytes=3 * size)
    check(small, written)
    held = [p for p in (tmp_path / "small").rglob("*.arrow")]
    assert 0 < sum(p.stat().st_size for p in held) <= 3 * size
    fresh = TokenSet(artifact, "train", cache_bytes=3 * size)
    missing = next(n for n in range(len(parts)) if not any(f"shard-{n:05d}" in p.name for p in held))
    fresh.ahead(np.array([2 * missing]))
    for _ in range(100):
        if any(f"shard-{missing:05d}" in p.name for p in (tmp_path / "small").rglob("*.arrow")):
            break
        time.sleep(0.02)
    before = len(copied)
    assert fresh.row(2 * missing)["id"] == written[2 * missing]["id"] and len(copied) == before


def test_a_copy_that_is_not_what_was_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    artifact = remote(tmp_path, corpora.pretokenize(tmp_path / "tokens", {"train": [rows()]}, TEXT))
    shard = artifact.file("tokens/train/shard-00000.arrow")
    storage.write_bytes(shard, storage.read_bytes(shard)[:-1] + b"x")
    with pytest.raises(OmniLoomError, match="shard-00000.arrow is not as the manifest says.*verify"):
        TokenSet(artifact, "train").document(0)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("far", [False, True])
def test_tokens_from_before_there_was_an_index_get_one_when_they_are_opened(tmp_path, monkeypatch, far):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    written = rows()
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [written[:9], written[9:]]}, TEXT)
    with_index = TokenSet(artifact, "train").index
    for file in with_index.folder.glob("*.npy"):
        with_index.column(file.stem)
    storage.remove(artifact.file("index"))
    artifact = corpora.seal(tmp_path / "tokens", "pretokenize")
    tokens = TokenSet(remote(tmp_path, artifact) if far else artifact, "train")
    check(tokens, written)
    assert not with_index.folder.exists() and len(list(tokens.index.folder.glob("*.npy"))) > 8
    for file in tokens.index.folder.glob("*.npy"):
        np.testing.assert_array_equal(tokens.index.column(file.stem), with_index.column(file.stem))


def test_an_index_of_many_texts_is_sorted_and_summed(tmp_path):
    """Longer ones than a counter holds, over several pieces of the counting."""
    rng = np.random.default_rng(0)
    documents = [("text", [("text", int(n))]) for n in rng.lognormal(6, 3, 3000).astype(np.int64) + 1]
    documents[7] = ("image", [("text", 3), ("visual", 9)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_CHUNK", 700)
        made = corpora.index_of(documents, shards=5)
    lengths = [held[0][1] + 2 for kind, held in documents if kind == "text"]
    assert max(lengths) > 1 << 17 and made.column("text.documents")["tokens"].tolist() == sorted(lengths)
    assert int(made.column("text.tokens")[0]) == sum(lengths)
    for place in (0, 1, 1500, 2997, 2998):
        document = int(made.documents("text", np.array([place]))[0])
        assert documents[document][1][0][1] + 2 == made.column("text.documents")["tokens"][place]
    assert len(made) == 3000 and np.sort(made.documents("text")).tolist() == [i for i in range(3000) if i != 7]
    found, row = made.shard_of(np.array([0, 599, 600, 2999]))
    assert found.tolist() == [0, 0, 1, 4] and row.tolist() == [0, 599, 0, 599]


@pytest.mark.parametrize("large", [False, True])
def test_what_an_index_gives_of_some_places_is_what_its_files_hold(monkeypatch, large):
    rng = np.random.default_rng(1)
    documents = [("text", [("text", int(n))]) for n in rng.integers(1, 900, 400)]
    documents += [("document", [("text", int(n)), ("visual", 4)] * int(n % 3 + 1)) for n in rng.integers(1, 90, 300)]
    if large:
        monkeypatch.setattr(index_module, "_SMALL", 0)
    index = corpora.index_of([documents[i] for i in rng.permutation(len(documents))], shards=3)
    assert isinstance(index._maps["shards"], np.memmap) is large
    texts, others = index.column("text.documents"), index.column("document.documents")
    segments = index.column("document.segments")
    some = [[], [0], [299], [5, 6, 7], [7, 6, 5], [4, 4, 9], list(range(300)), rng.integers(0, 300, 50).tolist()]
    for places in (np.array(held, np.int64) for held in some):
        assert index.documents("text", places).tolist() == texts["document"][places].tolist()
        assert index.tokens(places).tolist() == texts["tokens"][places].tolist()
        assert index.documents("document", places).tolist() == others["document"][places].tolist()
        runs = [segments[others["start"][at] : others["start"][at + 1]].tolist() for at in places]
        counts, values = index.segments("document", places)
        assert counts.tolist() == list(map(len, runs)) and values.tolist() == sum(runs, [])


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN", 4)
    written = rows()
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [[row] for row in written]}, TEXT), "train")
    check(tokens, written)
    assert len(tokens._shards._held) == 4


def test_tokens_without_their_facts_name_the_file(tmp_path):
    artifact = corpora.pretokenize(tmp_path / "tokens", {"train": [rows()]}, TEXT)
    (artifact.local() / "tokens.json").unlink()
    with pytest.raises(InputError, match="is missing") as caught:
        TokenSet(artifact, "train")
    assert caught.value.file == str(artifact.local() / "tokens.json")


def test_a_picture_is_not_read_as_a_text(tmp_path):
    written = rows()
    tokens = TokenSet(corpora.pretokenize(tmp_path / "tokens", {"train": [written]}, TEXT), "train")
    found = [token for index in range(len(tokens)) for token in tokens.document(index)]
    segments = [segment for row in written for segment in row["segments"]]
    assert {token.kind for token in found} == {"text", "visual"}
    for token, segment in zip(found, segments, strict=True):
        if token.kind == "text":
            assert token.text_ids.tolist() == segment["ids"] and token.length == len(segment["ids"])
            continue
        assert token.length == np.prod(segment["grid"])
        with pytest.raises(ValueError, match="expected a text, got a visual segment"):
            _ = token.text_ids
