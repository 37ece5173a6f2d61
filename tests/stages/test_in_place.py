"""Media read where they lie: the very bytes, of the very records, and no copy of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import corpora
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.infra import storage
from omniloom.stages.data import changes, records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import _COLUMNS, ClipStore
from omniloom.stages.data.in_place import MappedFile, NotInPlaceError, locate

COLUMNS = [name for name in _COLUMNS if name != "media"]


def record(number: int, kind: str, split: str, size: int) -> dict:
    media = np.random.default_rng(number).bytes(size) if kind in ("image", "video") else None
    text = {"text": "words"} if kind == "text" else {}
    return {
        "id": hashlib.sha256(str(number).encode()).hexdigest(),
        "kind": kind,
        "split": split,
        "media": media,
        "captions": [f"caption {number}"] * (number % 3),
        "source": "s",
        "path": str(number),
        "part": 0,
        "synthetic": False,
        "meta": "{}",
        **text,
    }


rows = st.lists(
    st.tuples(
        st.sampled_from(["image", "image", "video", "text"]),
        st.sampled_from(["train", "validation"]),
        st.sampled_from([0, 1, 3, 4, 5, 1000, 70_000]),
    ),
    max_size=60,
)


@settings(max_examples=30, deadline=None)
@given(rows, st.sampled_from([1 << 24, 100_000]), st.booleans())
def test_every_value_is_found_where_it_lies(tmp_path_factory, drawn, group_bytes, changed):
    folder = tmp_path_factory.mktemp("records")
    uri = str(folder / records.shard_name(0))
    held = [record(number, *one) for number, one in enumerate(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_ROW_GROUP_BYTES", group_bytes)
        records.write_shard(uri, held)
    if changed and held:
        other = changes.Changes({0}, {len(held) - 1: ["another"]}, {len(held) // 2: "validation"})
        changes.write(str(folder), {Path(uri).name: other})
    mapped = MappedFile(Path(uri)) if held else None
    for kind in ("image", "video"):
        for split in ("train", "validation"):
            wanted = list(records.iterate_shard(uri, kinds=[kind], split=split, columns=[*COLUMNS, "media"]))
            table = locate(uri, Path(uri), COLUMNS, kind, split)
            media = [mapped.read(row["at"], row["length"]) for row in table.to_pylist()]
            assert media == [row.pop("media") for row in wanted]
            assert table.select(COLUMNS).to_pylist() == wanted


def test_what_is_compressed_or_by_a_dictionary_is_refused(tmp_path):
    held = [record(number, "image", "train", 5000) for number in range(9)]
    uri = str(tmp_path / records.shard_name(0))
    records.write_shard(uri, held)
    table = pq.read_table(uri)
    for options in ({"compression": "zstd", "use_dictionary": False}, {"compression": "none"}):
        pq.write_table(table, uri, **options)
        with pytest.raises(NotInPlaceError):
            locate(uri, Path(uri), COLUMNS, "image", "train")
    pq.write_table(table, uri, compression="none", use_dictionary=False, data_page_version="2.0")
    with pytest.raises(NotInPlaceError):
        locate(uri, Path(uri), COLUMNS, "image", "train")


def test_clips_of_local_records_are_not_copied_and_equal_those_of_a_store_and_of_an_older_version(
    tmp_path, monkeypatch
):
    corpus = corpora.ingest(tmp_path / "ingest", images=24, videos=6)
    caches = {name: tmp_path / f"cache-{name}" for name in ("local", "remote", "older")}

    def clips(name: str, artifact) -> list[tuple]:
        monkeypatch.setenv("OMNILOOM_CACHE", str(caches[name]))
        found = []
        for kind in ("image", "video"):
            store = ClipStore(artifact, kind, "train", Aspects(("1:1",), 8), 24, 5, 0)
            found += [(store.record(n)["id"], store[n].tobytes()) for n in range(len(store))]
        return found

    local = clips("local", corpus)
    kept = b"".join(path.read_bytes() for path in caches["local"].rglob("*") if path.is_file())
    assert all(path.name.endswith("-places.arrow") for path in caches["local"].rglob("*.arrow"))
    assert not any(row["media"] in kept for row in records.iterate(corpus.uri, kinds=["image", "video"]))
    assert len(local) > 15
    storage.copy_tree(corpus.uri, "memory://clips-in-place")
    remote = type(corpus)(corpus.stage, corpus.fingerprint, "memory://clips-in-place", corpus.manifest)
    assert clips("remote", remote) == local
    for uri in records.shards(corpus.uri):
        pq.write_table(pq.read_table(uri), uri, compression="zstd")
    assert clips("older", corpora.seal(tmp_path / "ingest", "ingest")) == local
    assert any(path.name.endswith("-named.arrow") for path in caches["older"].rglob("*.arrow"))
