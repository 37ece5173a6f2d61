"""Relative paths on a cluster that is attached, and as a job: workers and jobs stand in folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_fixture import TestCluster, start_cluster

from omniloom.models.text import TextTokenizer

PIPELINE = """
name: texts
storage: runs
tracking: {uri: "sqlite:///runs/ml.db"}
stages:
  ingest: {sources: [{kind: text, uri: corpus}]}
  pretokenize: {text_tokenizer: weights/tokenizer.json}
"""


def command(cluster: TestCluster, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "omniloom.pipelines.cli", *arguments],
        cwd=folder,
        env=cluster.env,
        capture_output=True,
        text=True,
        timeout=280,
    )


def stages(cluster: TestCluster, folder: Path, *arguments: str) -> dict[str, dict]:
    done = command(cluster, folder, "plan", "texts.yaml", *arguments, "--json")
    return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}


@pytest.mark.slow
def test_relative_paths_on_an_attached_cluster_and_as_a_job(tmp_path):
    folder = tmp_path / "mine"
    (folder / "corpus").mkdir(parents=True)
    (folder / "weights").mkdir()
    (folder / "texts.yaml").write_text(PIPELINE)
    for number in range(20):
        (folder / "corpus" / f"{number}.txt").write_text(f"The text of number {number}.\n" * 3)
    tokenizer = folder / "weights/tokenizer.json"
    tokenizer.write_text(TextTokenizer.train(["some text of some number"], 270).to_json())
    with start_cluster(tmp_path / "logs", nodes=1, num_cpus=2) as cluster:
        attached = f"cluster.address={cluster.gcs}"
        done = command(cluster, folder, "run", "texts.yaml", attached)
        assert done.returncode == 0, done.stdout + done.stderr
        before = stages(cluster, folder)
        assert {stage["status"] for stage in before.values()} == {"cached"}

        # The same files with other times: ingest runs, and what it makes is what was there.
        shutil.copytree(folder / "corpus", tmp_path / "copy")
        shutil.rmtree(folder / "corpus")
        shutil.move(tmp_path / "copy", folder / "corpus")
        for file in (folder / "corpus").iterdir():
            os.utime(file, (1_000, 1_000))
        waiting = stages(cluster, folder)["pretokenize"]
        assert waiting["reason"] == "input changed: ingest; stays if ingest comes out the same"
        done = command(cluster, folder, "submit", "texts.yaml", "--address", cluster.dashboard)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ingest came out as before; up to date: pretokenize" in done.stdout + done.stderr
        after = stages(cluster, folder)
        assert {stage["status"] for stage in after.values()} == {"cached"}
        assert after["pretokenize"]["fingerprint"] == before["pretokenize"]["fingerprint"]
    tokenizer.write_text(TextTokenizer.train(["quite another text"], 270).to_json())
    reason = stages(cluster, folder)["pretokenize"]["reason"]
    assert reason == f"file changed: stages.pretokenize.text_tokenizer ({tokenizer})"
