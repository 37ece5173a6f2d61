"""Stages on an object store: what they make on a disk, written where it will lie, with few requests a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
import s3fs
from safetensors.numpy import load_file
from sources_read import picture

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.stages.data import records
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.train.config import Config as TrainConfig
from omniloom.stages.train.job import Job
from omniloom.stages.train.worker import train_worker

MOST = 3.0  # requests a file


class Requests:
    """What an S3 server was asked: (method, key) of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def below(self, folder: str) -> Counter:
        """How often each method was asked of a key below the folder; listings are counted by their prefix."""
        key = folder.removeprefix("s3://bucket/")
        return Counter(method for method, asked in self.asked if asked.startswith(key))

    def methods(self) -> set[str]:
        return {method for method, _ in self.asked}


@pytest.fixture
def requests(monkeypatch) -> Requests:
    found, real = Requests(), s3fs.S3FileSystem._call_s3

    async def counted(self, method, *args, **kwargs):
        found.asked.append((method, kwargs.get("Key") or kwargs.get("Prefix") or ""))
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", s3fs.core.sync_wrapper(counted))
    return found


class Made:
    """One stage's artifact in a store, as the runner makes it, without Ray."""

    def __init__(self, root: str, stage: str, fingerprint: str = "f" * 64):
        self.store, self.stage, self.fingerprint = ArtifactStore(root), stage, fingerprint
        self.work = self.store.work_uri(stage, fingerprint)
        self.output = self.store.begin_work(stage, fingerprint, {})
        self.state = storage.join(self.work, "state")

    def publish(self, metrics: dict) -> Artifact:
        facts = {"metrics": metrics, "times": {"seconds": 1, "ended_unix": 1}, "pipeline": "p"}
        return self.store.publish(self.stage, self.fingerprint, self.work, facts)


def fill(source: str) -> None:
    for n in range(30):
        storage.write_bytes(f"{source}/pictures/{n:02d}.png", picture(n))
    lines = "".join(json.dumps({"text": f"line {n} " * 9}) + "\n" for n in range(200))
    storage.write_bytes(f"{source}/lines/a.jsonl", lines.encode())


def ingested(root: str, source: str) -> Artifact:
    """Of a folder with pictures and lines."""
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
    made = Made(root, "ingest")
    context = SimpleNamespace(
        config=config, output=made.output, state=made.state, progress=corpora.Silent(), predecessor=None
    )
    return made.publish(ingest.run(context))


def files(artifact: Artifact) -> list[dict]:
    # What the next run knows a source's files by are times on a disk, and etags on S3.
    return [f for f in artifact.manifest["files"] if not f["path"].startswith(("resume/files", "resume/items"))]


def check_requests(requests: Requests, artifact: Artifact) -> None:
    """All that was asked below the artifact's folder while it was made; and beside it, below the work folder, where
    what is asked once counts little but in a corpus as small as this."""
    count, work = len(artifact.manifest["files"]), artifact.uri.replace("/artifacts/", "/work/")
    asked, beside = requests.below(artifact.uri), requests.below(work)
    assert asked["put_object"] == count + 1, asked  # each once, and the manifest
    assert asked.total() <= MOST * count, asked
    assert (asked + beside).total() <= MOST * count + 30, (asked, beside)
    assert "copy_object" not in requests.methods()


@pytest.mark.slow
def test_ingest(s3, tmp_path, requests, monkeypatch):
    monkeypatch.setattr(  # groups are read in this process, whose requests can be counted
        ingest, "_by_ray", lambda groups, *rest: (list(ingest.ingest_group(group, *rest)) for group in groups)
    )
    fill(str(tmp_path / "in"))
    fill(f"{s3}/in")
    here = ingested(str(tmp_path), str(tmp_path / "in"))
    requests.asked.clear()
    there = ingested(s3, f"{s3}/in")
    check_requests(requests, there)
    rows = list(records.iterate(here.uri))
    assert list(records.iterate(there.uri)) == rows and len(rows) == 230
    assert files(there) == files(here) and len(files(here)) > 60
    source = requests.below(f"{s3}/in/pictures")
    assert source["get_object"] == 30 and source.total() <= 2 * 30, source  # each is read without a question first


@pytest.mark.slow
def test_pretokenize(s3, tmp_path, requests, monkeypatch):
    def in_this_process(context, shards, text_uri, notes):
        actor = ShardTokenizer(context.config, context.tokenizer, text_uri, context.output, notes)
        for _ in actor.tokenize([{"index": shard.number, "uri": shard.uri} for shard in shards]):
            pass

    monkeypatch.setattr(pretokenize, "_tokenize", in_this_process)
    corpus = corpora.ingest(tmp_path / "ingest", images=240, videos=6)
    visual = corpora.tokenizer(tmp_path / "visual")
    config = pretokenize.Config(image_size=24, video_size=24, frames=5, batch_size=8, vocab_size=300)

    def tokenized(root: str) -> Artifact:
        made = Made(root, "pretokenize")
        context = SimpleNamespace(
            config=config, records=corpus, tokenizer=visual, output=made.output, state=made.state,
            progress=corpora.Silent(), tracker=corpora.Silent(), predecessor=None,
        )  # fmt: skip
        return made.publish(pretokenize.run(context))

    here = tokenized(str(tmp_path))
    requests.asked.clear()
    there = tokenized(s3)
    check_requests(requests, there)
    assert files(there) == files(here)


@pytest.mark.slow
def test_a_trainings_model_folder(s3, tmp_path, requests, process_group):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    rows = corpora.token_rows(text, rng, images=0, videos=0, texts=40, documents=0)
    tokens = corpora.pretokenize(tmp_path / "tokens", {"train": [rows], "validation": [rows]}, text)
    config = TrainConfig.model_validate(
        {
            "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
            "objectives": {},
            "packing": {"length": 64, "window_rows": 8},
            "batch_rows": 2,
            "steps": 2,
            "engine": {"zero_stage": 1},
            "workers": {"count": 1, "checkpoint_every": 2, "log_every": 1},
        }
    )

    def trained(root: str) -> Artifact:
        made = Made(root, "train")
        state = str(Path(tmp_path, "state", root.replace("/", "-")))
        train_worker(Job(config, tokens, None, made.output, state, corpora.Silent(), corpora.Silent()))
        return made.publish(storage.load_json(f"{state}/metrics.json"))

    here = trained(str(tmp_path))
    requests.asked.clear()
    there = trained(s3)
    check_requests(requests, there)
    assert [f["path"] for f in files(there)] == [f["path"] for f in files(here)]
    weights = [load_file(artifact.local() / "model" / "unified.safetensors") for artifact in (here, there)]
    assert weights[0].keys() == weights[1].keys() and all((weights[0][n] == weights[1][n]).all() for n in weights[0])
