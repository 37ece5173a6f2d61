"""PostgreSQL as the store of several pipelines at once: nothing is lost, nothing is there twice, versions are in order,
and the champion is the best of those that were registered at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import needs_postgres, postgres

from omniloom.infra.tracking import TrackingConfig, resolve_tracking

pytestmark = [pytest.mark.slow, needs_postgres]
WRITERS, STEPS, MODELS = 3, 1500, 2

# What a run of a pipeline logs, by the same way: a parent, two stages that log at once, a model for the registry.
WRITER = """
import json, sys, threading, time
import numpy as np
from omniloom.infra.tracking import Tracker, TrackingSettings, register_model

fields, number, steps, models, bundle, code, start = json.loads(sys.argv[1])
settings = TrackingSettings(**fields)
while time.time() < start:
    time.sleep(0.01)
parent = Tracker(settings).start_pipeline(f"writer-{number}", {"seed": number, "nested": {"a": 1}}, {"number": number})
parent.log_input("ingest", f"/data/{number}", f"{number}" * 32)

def log(stage):
    run = parent.child(stage, {"part": stage}, {"lr": 0.1 * number})
    run.log_input("ingest", f"/data/{number}", f"{number}" * 32)
    for step in range(steps):
        run.log_metrics({"train/loss": step * 10 + number, "train/other": -step}, step=step, seen=step * 100)
        if step % 500 == 0:
            run.log_image(np.full((8, 8, 3), number, np.uint8), "drawn", step)
            run.set_tags({f"at-{step}": step})
    run.log_text("x" * 2000, "report.html")
    run.log_output(stage, f"/out/{number}", f"{stage[0]}{number}" * 16)
    assert run.finish(timeout=200), "not all has arrived"
    ids[stage] = run.run_id()

ids = {}
threads = [threading.Thread(target=log, args=(stage,)) for stage in ("tokenizer", "train")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
found = []
for index in range(models):
    run = parent.child(f"evaluate-{index}")
    score = number + 10 * index
    version, why = register_model(run, bundle, code, "shared", f"{number}{index}" * 32, alias="champion",
                                  metrics={"score": float(score)}, no_worse={"score": "higher"}, timeout=200)
    assert version, why
    found.append([version.version, score])
    assert run.finish(timeout=200)
assert parent.finish(timeout=200)
print(json.dumps({"parent": parent.run_id(), "children": ids, "versions": found}))
"""
CODE = """
import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
LIBRARIES = ["numpy"]
def signature():
    return ModelSignature(inputs=Schema([ColSpec("string", "prompt")]), outputs=Schema([ColSpec("string", "text")]))
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
mlflow.models.set_model(Echo())
"""


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with postgres() as uri:
        yield uri


def settings_of(uri: str, folder: Path):
    config = TrackingConfig(uri=uri, artifact_root=(folder / "files").as_uri(), system_metrics=False, experiment="one")
    return resolve_tracking(config, str(folder / "store"))


@pytest.fixture(scope="module")
def written(store, tmp_path_factory) -> tuple[str, list[dict]]:
    """The store's URI, and what each writer says that it wrote. Each has a storage, so a spool, of its own."""
    import dataclasses
    import time

    folder = tmp_path_factory.mktemp("writers")
    (folder / "bundle").mkdir()
    (folder / "bundle/weights").write_bytes(b"w" * 1000)
    (folder / "code.py").write_text(CODE)
    start, processes = time.time() + 8, []
    for number in range(1, WRITERS + 1):
        fields = dataclasses.asdict(settings_of(store, folder / f"writer-{number}"))
        fields["artifact_root"] = (folder / "files").as_uri()
        told = [fields, number, STEPS, MODELS, str(folder / "bundle"), str(folder / "code.py"), start]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, json.dumps(told)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-3000:]
        answers.append(json.loads(out.splitlines()[-1]))
    return store, answers


def test_every_point_tag_file_and_dataset_has_arrived_once(written):
    import mlflow

    client = mlflow.MlflowClient(written[0])
    (experiment,) = [found for found in client.search_experiments() if found.name == "one"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == WRITERS * (1 + 2 + MODELS) and {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["omniloom.run_key"] for run in runs}) == len(runs)
    for number, answer in enumerate(written[1], 1):
        parent = client.get_run(answer["parent"])
        assert parent.data.params["seed"] == str(number) and parent.data.tags["number"] == str(number)
        for stage, run_id in answer["children"].items():
            run = client.get_run(run_id)
            assert run.data.tags["mlflow.parentRunId"] == answer["parent"]
            tags = {name for name in run.data.tags if name.startswith("at-")}
            assert tags == {f"at-{step}" for step in range(0, STEPS, 500)}
            loss = client.get_metric_history(run_id, "train/loss")
            assert sorted((m.step, m.value) for m in loss) == [(s, float(s * 10 + number)) for s in range(STEPS)]
            assert len(client.get_metric_history(run_id, "versus_seen/other")) == STEPS
            datasets = {(d.dataset.name, d.tags[0].value) for d in run.inputs.dataset_inputs}
            assert datasets == {("ingest", "input"), (stage, "output")}
            files = {file.path for file in client.list_artifacts(run_id)}
            assert "report.html" in files
            pictures = [f.path for f in client.list_artifacts(run_id, "images") if f.path.endswith(".png")]
            assert len(pictures) == STEPS // 500


def test_versions_are_consecutive_and_the_best_is_champion(written):
    import mlflow

    client = mlflow.MlflowClient(written[0])
    versions = client.search_model_versions("name = 'shared'")
    numbers = sorted(int(version.version) for version in versions)
    assert numbers == list(range(1, WRITERS * MODELS + 1))
    told = {number: score for answer in written[1] for number, score in answer["versions"]}
    assert sorted(map(int, told)) == numbers, "each writer was told a version of its own"
    assert len({version.tags["omniloom.fingerprint"] for version in versions}) == len(versions)
    champion = client.get_model_version_by_alias("shared", "champion").version
    assert told[str(champion)] == max(told.values())
    for version in versions:
        model = client.get_logged_model(version.source.removeprefix("models:/"))
        assert {metric.value for metric in model.metrics} == {float(told[str(version.version)])}
