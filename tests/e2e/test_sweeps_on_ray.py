"""A sweep over a tiny language model, really run on Ray: what is shared is made once, a failed trial ends itself alone,
a killed sweep goes on, and a training that falls behind is pruned.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from omniloom.infra import storage
from omniloom.infra.artifacts import ArtifactStore
from omniloom.infra.tracking import find_runs, resolve_tracking
from omniloom.pipelines.config import load

pytestmark = pytest.mark.slow

LR = "stages.train.optimizer.lr"
WORDS = "the a cat dog sees runs under over blue red small large house tree and but then now river stone".split()


class Swept:
    """A folder with texts, a config and a storage."""

    def __init__(self, folder: Path, fields: dict, steps: int = 12, every: int = 6, **settings):
        self.folder, self.store = folder, ArtifactStore(str(folder / "runs"))
        draw = random.Random(1)
        (folder / "text").mkdir()
        for number in range(40):
            lines = "\n\n".join(" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(5))
            (folder / "text" / f"{number}.txt").write_text(lines)
        config = {
            "name": "tiny",
            "storage": "runs",
            "tracking": {"system_metrics": False},
            "cluster": {"num_cpus": 4},
            "stages": {
                "ingest": {"sources": [{"kind": "text", "uri": "text"}]},
                "pretokenize": {"vocab_size": 300},
                "train": {
                    "model": {"width": 16, "layers": 1, "heads": 2},
                    "objectives": {},
                    "packing": {"length": 64},
                    "batch_rows": 2,
                    "steps": steps,
                    "workers": {"count": 1},
                    "validation_rows": 2,
                    "validate_every": every,
                },
                "evaluate": {"texts": 20},
            },
            "sweep": {
                "fields": fields,
                "goal": {"metric": "evaluate.bits_per_byte", "direction": "minimize"},
                **settings,
            },
        }
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "omniloom.pipelines.cli", "run", "tiny.yaml"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "80"},
        )

    def run(self, code: int = 0) -> tuple[str, str]:
        process = self.start()
        out, err = process.communicate(timeout=500)
        assert process.returncode == code, out + err
        return out, err

    @property
    def record(self) -> dict:
        (file,) = (self.folder / "runs" / "sweeps" / "tiny").glob("*/sweep.json")
        return json.loads(file.read_text())

    def made_by_runs(self) -> Counter:
        """By stage, how often a run's record says that it made one."""
        records = [json.loads(file.read_text()) for file in (self.folder / "runs" / "runs").glob("*.json")]
        return Counter(stage for found in records for stage in found["stages"])

    def tracked(self) -> list[dict]:
        previous = os.getcwd()
        os.chdir(self.folder)
        try:
            config = load("tiny.yaml")
        finally:
            os.chdir(previous)
        return find_runs(resolve_tracking(config.tracking, config.storage), "tiny")


def test_shared_stages_are_made_once_and_a_failed_trial_ends_itself_alone(tmp_path):
    swept = Swept(tmp_path, {LR: [1e-3, 1e30, 1e-2]}, concurrent=2)
    out, err = swept.run(code=1)
    assert "1 of 3 trials failed: 2" in err and "trial 2 (lr 0.001 -> 1e+30) failed: stage train failed" in out
    rows = swept.record["trials"]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    made = Counter(stage for row in rows for stage in row["executed"])
    assert made == {"ingest": 1, "pretokenize": 1, "train": 2, "evaluate": 2}
    assert swept.made_by_runs() == {"ingest": 1, "pretokenize": 1, "train": 3, "evaluate": 2}
    runs = swept.tracked()
    names = Counter(run["stage"] or "above" for run in runs)
    assert names == {"ingest": 1, "pretokenize": 1, "train": 3, "evaluate": 2, "above": 4}
    by_id = {run["run_id"]: run for run in runs}
    (parent,) = [run for run in runs if not run["stage"] and "omniloom.trial" not in run["tags"]]
    trials = {run["tags"]["omniloom.trial"]: run for run in runs if "omniloom.trial" in run["tags"]}
    assert {run["tags"]["mlflow.parentRunId"] for run in trials.values()} == {parent["run_id"]}
    assert trials["3"]["name"] == "tiny: trial 3: lr 0.001 -> 0.01" and parent["name"] == "tiny: sweep of 3 trials"
    assert [run["status"] for run in (parent, *(trials[n] for n in "123"))] == [
        "FAILED", "FINISHED", "FAILED", "FINISHED"
    ]  # fmt: skip
    assert all(by_id[run["tags"]["mlflow.parentRunId"]] in trials.values() for run in runs if run["stage"])
    # The best is what the figures say, and what the pipeline has from then on.
    figures = {row["trial"]: row["figure"] for row in rows if row["figure"]}
    best = min(figures, key=figures.__getitem__)
    assert swept.record["best"] == best and f"best:   trial {best}:" in out
    last = swept.store.last_used("tiny", "train")
    assert last is not None and last.fingerprint == rows[best - 1]["artifacts"]["train"]
    assert max(map(len, out.split("best:")[0].splitlines()[:5])) <= 80
    # Once more: what is done stays, and what failed is tried again.
    swept.run(code=1)
    assert swept.made_by_runs() == {"ingest": 1, "pretokenize": 1, "train": 4, "evaluate": 2}


def test_a_sweep_whose_driver_is_killed_goes_on(tmp_path):
    swept = Swept(tmp_path, {LR: [1e-3, 1e-2, 3e-2]})
    process = swept.start()
    deadline = time.monotonic() + 400
    while (
        len(swept.store.all("evaluate")) < 1 or len(storage.list_files(str(tmp_path / "runs" / "work" / "train"))) < 1
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = {(made.stage, made.fingerprint): made.manifest["run"] for made in swept.store.all()}
    assert {stage for stage, _ in before} == {"ingest", "pretokenize", "train", "evaluate"}
    out, _ = swept.run()
    after = {(made.stage, made.fingerprint): made.manifest["run"] for made in swept.store.all()}
    assert all(after[made] == run for made, run in before.items())  # nothing of it was made again
    assert Counter(stage for stage, _ in after) == {"ingest": 1, "pretokenize": 1, "train": 3, "evaluate": 3}
    assert [row["status"] for row in swept.record["trials"]] == ["finished"] * 3
    assert "ingest" not in swept.record["trials"][0]["executed"]
    parents = [run for run in swept.tracked() if not run["stage"] and "omniloom.trial" not in run["tags"]]
    assert Counter(run["status"] for run in parents) == {"KILLED": 1, "FINISHED": 1}


def test_a_training_that_falls_behind_is_pruned_and_stays_so(tmp_path):
    prune = {"metric": "train.validation_text_loss", "after": 20, "factor": 2}
    swept = Swept(tmp_path, {LR: [1e-2, 1e-9]}, steps=1500, every=20, prune=prune)
    out, err = swept.run()
    first, second = swept.record["trials"]
    assert (first["status"], second["status"]) == ("finished", "pruned")
    assert "is behind the best part of the trials so far" in second["why"] and f"pruned: {second['why']}" in out
    assert "2/train: is pruned: validation_text_loss" in err
    stage, fingerprint = second["pruned"]
    state = swept.store.work_uri(stage, fingerprint)
    kept = [name for name in storage.list_files(state) if "checkpoint" in name]
    assert kept and swept.store.find(stage, fingerprint) is None
    steps = [step for step, _ in second["validations"]]
    assert steps == list(range(20, steps[-1] + 1, 20)) and steps[-1] < 1500
    trial = next(run for run in swept.tracked() if run["tags"].get("omniloom.trial") == "2")
    assert trial["status"] == "KILLED" and trial["tags"]["omniloom.pruned"] == second["why"]
    made = swept.made_by_runs()
    out, _ = swept.run()
    assert swept.made_by_runs() == made and swept.record["trials"][1]["status"] == "pruned" and "pruned:" in out
