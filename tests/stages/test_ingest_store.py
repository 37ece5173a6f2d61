"""Ingest on an object store: the same records as on a disk, and few requests a file."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import s3fs
from sources_read import picture

from omniloom.infra import storage
from omniloom.infra.artifacts import ArtifactStore
from omniloom.infra.integrity import describe_bytes
from omniloom.stages.data import records
from omniloom.stages.ingest import stage as ingest


@pytest.fixture
def here(monkeypatch):
    """Groups are read in this process, whose requests can be counted."""
    monkeypatch.setattr(
        ingest, "_by_ray", lambda groups, *rest: (list(ingest.ingest_group(group, *rest)) for group in groups)
    )


def made(root: str, source: str) -> tuple[list[dict], dict]:
    """Records of an artifact of a folder with pictures and lines, and its manifest."""
    config = ingest.Config.model_validate(
        {
            "sources": [
                {"kind": "image_folder", "uri": f"{source}/pictures"},
                {"kind": "jsonl", "uri": f"{source}/lines", "text_field": "text"},
            ],
            "shard_items": 4,
            "shard_bytes": 4000,
        }
    )
    store = ArtifactStore(f"{root}/store")
    work = store.work_uri("ingest", "f")
    context = SimpleNamespace(
        config=config,
        output=f"{work}/output",
        state=f"{work}/state",
        progress=lambda *a, **k: None,
        predecessor=None,
    )
    metrics = ingest.run(context)
    facts = {"metrics": metrics, "times": {"seconds": 1, "ended_unix": 1}, "pipeline": "p"}
    artifact = store.publish("ingest", "f", work, facts)
    return list(records.iterate(artifact.uri)), artifact.manifest


def fill(source: str) -> None:
    for n in range(30):
        storage.write_bytes(f"{source}/pictures/{n:02d}.png", picture(n))
    lines = "".join(json.dumps({"text": f"line {n} " * 9}) + "\n" for n in range(200))
    storage.write_bytes(f"{source}/lines/a.jsonl", lines.encode())


@pytest.mark.slow
def test_on_s3_comes_out_what_comes_out_on_a_disk_with_three_requests_a_file(s3, tmp_path, here, monkeypatch):
    fill(str(tmp_path / "in"))
    fill(f"{s3}/in")
    rows, manifest = made(str(tmp_path), str(tmp_path / "in"))
    asked: Counter = Counter()
    real = s3fs.S3FileSystem._call_s3

    async def counted(self, method, *args, **kwargs):
        asked[method] += 1
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", s3fs.core.sync_wrapper(counted))
    remote = ArtifactStore(f"{s3}/store")
    found, on_s3 = made(s3, f"{s3}/in")
    assert found == rows and len(rows) == 230
    # What the next run knows a source's files by are times on a disk, and etags on S3.
    same = [
        [f for f in m["files"] if not f["path"].startswith(("resume/files", "resume/items"))] for m in (on_s3, manifest)
    ]
    assert same[0] == same[1] and len(same[0]) > 60
    work = remote.work_uri("ingest", "g")
    for n in range(100):
        storage.write_bytes(f"{work}/output/records/{n:03d}", b"%d" % n)
    known = {f"records/{n:03d}": describe_bytes(b"%d" % n) for n in range(100)}
    storage.write_json(f"{work}/state/written.json", known)
    before = Counter(asked)
    remote.publish("ingest", "g", work, {"metrics": {}, "times": {"seconds": 1, "ended_unix": 1}, "pipeline": "p"})
    published = asked - before
    assert 1 + published.total() / 100 <= 3.3, published  # with the one that wrote it; some requests are of no file
