"""Tokens: what pretokenize wrote comes back unchanged, from any shard and batch, without copying the corpus."""

from __future__ import annotations

import os

import corpora
import numpy as np
import pyarrow as pa
import pytest

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data.tokens import TokenSet, write_shard

TEXT = corpora.text_tokenizer()


def rows(codes: bool = True, texts: int = 7) -> list[dict]:
    return corpora.token_rows(TEXT, np.random.default_rng(1), images=9, videos=3, texts=texts, documents=6, codes=codes)


def check(tokens: TokenSet, written: list[dict]) -> None:
    assert len(tokens) == len(written)
    for index, row in enumerate(written):
        assert tokens.row(index) == {name: row[name] for name in ("id", "kind", "label", "bytes")}
        document = tokens.document(index)
        assert tokens.lengths(index) == [(token.kind, token.length) for token in document]
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
    assert tokens.table["id"].num_chunks > 1
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
        TokenSet(artifact, "train")
    assert caught.value.file == str(shard)


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
