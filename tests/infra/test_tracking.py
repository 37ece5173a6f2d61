"""Runs in a real MLflow: what is logged is there, whatever becomes of the store or of the process."""

from __future__ import annotations

import json
import math
import os
import pickle
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from omniloom.infra.tracking import Tracker, TrackingConfig, close_stale, find_runs, replay, resolve_tracking
from omniloom.infra.tracking.journal import Journal
from omniloom.infra.tracking.runs import PARAM_CHARACTERS, RunHandle


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """One SQLite store for the module: its first use takes seconds of migrations."""
    return resolve_tracking(TrackingConfig(sample_seconds=0.2, flush_seconds=60), str(tmp_path_factory.mktemp("st")))


@pytest.fixture(scope="module")
def client(settings):
    from mlflow import MlflowClient

    return MlflowClient(settings.uri)


def spooled(settings) -> list[Path]:
    return [path for path in Path(settings.spool).glob("*/*.jsonl")]


def test_settings_by_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = resolve_tracking(TrackingConfig(), str(tmp_path / "st"))
    assert local.uri == f"sqlite:///{tmp_path}/st/mlflow.db"
    assert local.artifact_root == f"file://{tmp_path}/st/mlflow/artifacts"
    remote = resolve_tracking(TrackingConfig(), "s3://bucket/run")
    assert remote.uri == f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db"
    assert remote.spool == f"{tmp_path}/runs/mlflow/spool"
    relative = resolve_tracking(TrackingConfig(uri="sqlite:///here.db"), "memory://x")
    assert (relative.uri, relative.artifact_root) == (
        f"sqlite:///{tmp_path}/here.db",
        f"file://{tmp_path}/mlflow-artifacts",
    )
    server = resolve_tracking(TrackingConfig(uri="http://host:5000"), str(tmp_path))
    assert (server.uri, server.artifact_root) == ("http://host:5000", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert resolve_tracking(TrackingConfig(), str(tmp_path)).uri == "http://other:5000"
    assert not list(tmp_path.iterdir()), "resolving makes nothing"


@pytest.mark.parametrize("wrong", [{"uri": "mlruns"}, {"uri": "file:///x"}, {"sample_seconds": 0}, {"exp": "x"}])
def test_settings_refused(wrong):
    with pytest.raises(ValidationError):
        TrackingConfig(**wrong)


def test_import_leaves_mlflow_out():
    code = "import sys, infra.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_logged_is_there(settings, client):
    parent = Tracker(settings).start_pipeline(
        "demo", {"seed": 1, "stages": {"train": {"lr": 0.1, "sizes": [1, 2]}}, "long": "x" * 10_000}, {"who": "test"}
    )
    run = parent.child("train", {"omniloom.fingerprint": "f" * 64}, {"lr": 0.1})
    run.log_metrics({"loss": np.float32(0.5), "bad key!": 2, "none": None}, step=3, seen=4096)
    run.log_metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, step=4)
    run.log_image(np.zeros((8, 8, 3), np.uint8), "val/grid", step=3)
    run.log_text("<p>hello</p>", "reports/report.html")
    run.log_input("ingest", "s3://bucket/artifacts/ingest/abc", "a" * 64)
    run.log_output("train", "/data/artifacts/train/def", "d" * 64)
    assert run.finish() and parent.finish("FAILED")
    assert not spooled(settings)

    top, child = client.get_run(parent.run_id()), client.get_run(run.run_id())
    assert (top.info.status, child.info.status) == ("FAILED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert child.data.tags["omniloom.fingerprint"] == "f" * 64 and top.data.tags["who"] == "test"
    assert top.data.params["stages.train.lr"] == "0.1" and top.data.params["stages.train.sizes"] == "[1, 2]"
    long = top.data.params["long"]
    assert len(long) == PARAM_CHARACTERS and long.endswith("... (10000 characters)")
    assert child.data.metrics["loss"] == 0.5 and child.data.metrics["bad key_"] == 2
    assert "none" not in child.data.metrics
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id(), "versus_seen/loss")] == [(4096, 0.5)]
    assert child.data.metrics["throughput/seen"] == 4096
    for name in ("nan", "up", "down"):
        assert math.isnan(child.data.metrics[name]) and child.data.metrics[f"nonfinite/{name}"] == 1
    inputs = {
        (i.dataset.name, i.dataset.digest, i.tags[0].value, i.dataset.source_type) for i in child.inputs.dataset_inputs
    }
    assert inputs == {("ingest", "a" * 32, "input", "s3"), ("train", "d" * 32, "output", "local")}
    assert [f.path for f in client.list_artifacts(run.run_id(), "reports")] == ["reports/report.html"]
    images = [f.path for f in client.list_artifacts(run.run_id(), "images")]
    assert any("val~grid" in path and "step+3+" in path and path.endswith(".png") for path in images), images
    assert json.loads(Path(client.download_artifacts(top.info.run_id, "config.json")).read_text())["seed"] == 1
    assert run.url().endswith(f"/runs/{run.run_id()}?workflowType=machine_learning")


def test_files_and_folders(settings, client, tmp_path):
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves/loss.csv").write_text("1,2")
    (tmp_path / "note.txt").write_text("kept")
    run = Tracker(settings).start_pipeline("files", {})
    run.log_file(tmp_path / "curves", "plots")
    run.log_file(tmp_path / "note.txt")
    run.log_file(tmp_path / "missing.txt")
    (tmp_path / "note.txt").unlink()
    assert run.finish()
    assert [f.path for f in client.list_artifacts(run.run_id(), "plots/curves")] == ["plots/curves/loss.csv"]
    assert Path(client.download_artifacts(run.run_id(), "note.txt")).read_text() == "kept"


def test_calls_are_cheap_and_batched(settings, client):
    run = Tracker(settings).start_pipeline("speed", {})
    began = time.perf_counter()
    for step in range(500):
        run.log_metrics({"loss": 1 / (step + 1), "lr": 1e-3}, step, seen=step * 256)
    assert (time.perf_counter() - began) / 500 < 5e-3  # 0.05 ms on an idle machine
    assert run.finish()
    history = client.get_metric_history(run.run_id(), "loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 1 / (step + 1)) for step in range(500)]


def test_system_metrics(settings, client):
    parent = Tracker(settings).start_pipeline("system", {})
    run = parent.child("train")
    time.sleep(1.0)
    assert run.finish() and parent.finish()
    metrics = client.get_run(run.run_id()).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(metrics)
    assert len(client.get_metric_history(run.run_id(), "system/cpu_utilization_percentage")) >= 3


def test_a_worker_logs_through_a_pickled_handle(settings, client):
    run = Tracker(settings).start_pipeline("workers", {})
    code = (
        "import pickle, sys; run = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "run.log_metrics({'from_worker': 7.0}, step=1); assert run.close(), 'not delivered'"
    )
    subprocess.run([sys.executable, "-c", code, pickle.dumps(run).hex()], check=True, timeout=60)
    run.log_metrics({"from_driver": 1.0})
    assert run.finish()
    assert {"from_worker": 7.0, "from_driver": 1.0}.items() <= client.get_run(run.run_id()).data.metrics.items()


def test_a_killed_process_loses_nothing(settings, client):
    """Its journal is replayed, and its runs, parent and child, are closed as KILLED; a live one's are not."""
    code = (
        "import os, pickle, sys; from omniloom.infra.tracking import Tracker; "
        "s = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "p = Tracker(s).start_pipeline('victim', {}); c = p.child('train'); assert c.flush(60); "
        "[c.log_metrics({'loss': i}, i) for i in range(50)]; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, pickle.dumps(settings).hex()], timeout=60)
    living = Tracker(settings).start_pipeline("victim", {})
    assert living.flush()
    assert [Journal.adopt(path) for path in spooled(settings) if living.key in str(path)] == [None]
    assert replay(settings) == 0
    assert close_stale(settings, "victim") == 2
    runs = {run["key"]: run for run in find_runs(settings, "victim")}
    assert runs[living.key]["status"] == "RUNNING"
    dead = [run for run in runs.values() if run["status"] == "KILLED"]
    assert len(dead) == 2
    child = next(run for run in dead if run["stage"] == "train")
    assert len(client.get_metric_history(child["run_id"], "loss")) == 50
    assert close_stale(settings, "victim") == 0
    assert living.finish()


def test_a_locked_database_delays_nothing(settings, client):
    run = Tracker(settings).start_pipeline("locked", {})
    assert run.flush()
    lock = sqlite3.connect(settings.uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.perf_counter()
    run.log_metrics({"loss": 1.0})
    assert not run.finish(timeout=0.5)
    assert time.perf_counter() - began < 10  # SQLite itself would wait for minutes
    lock.execute("ROLLBACK")
    lock.close()
    assert run.flush(60)
    assert client.get_run(run.run_id()).data.metrics == {"loss": 1.0}
    assert client.get_run(run.run_id()).info.status == "FINISHED"


def test_one_bad_value_costs_only_itself(settings, client):
    run = Tracker(settings).start_pipeline("refused", {"seed": 1})
    run.log_params({"seed": 2, "other": 3})  # MLflow refuses to change a parameter
    run.log_metrics({"m" * 300: 1.0, "good": 2.0})  # ... and names past 250 characters
    assert run.finish()
    assert client.get_run(run.run_id()).data.params == {"seed": "1", "other": "3"}
    assert client.get_run(run.run_id()).data.metrics == {"good": 2.0}


def test_a_line_cut_short_is_left_out(tmp_path):
    journal = Journal.create(tmp_path)
    journal.append({"kind": "tags", "values": {"a": "1"}})
    with open(journal.path, "ab") as file:
        file.write(b'{"kind": "tags", "val')
    assert [event["values"] for event, _ in journal.pending()] == [{"a": "1"}]


def test_finish_refuses_an_unknown_status(settings):
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        RunHandle(settings, "k", "n", "p").finish("done")


class Server:
    """A real `mlflow server` on 127.0.0.1 that can be stopped and started again."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.process = folder, port, None

    def start(self) -> None:
        import urllib.request

        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, (
                    self.folder / "server.log"
                ).read_text()[-2000:]
                time.sleep(0.2)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(10)


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = Server(tmp_path, port)
    settings = resolve_tracking(
        TrackingConfig(uri=f"http://127.0.0.1:{port}", request_seconds=5, flush_seconds=20, system_metrics=False),
        str(tmp_path / "st"),
    )
    try:
        began = time.perf_counter()
        early = Tracker(settings).start_pipeline("early", {"seed": 1})  # nobody has ever listened there
        stage = early.child("ingest")
        stage.log_metrics({"files": 3})
        assert not stage.finish(timeout=10) and not early.finish(timeout=10)
        assert time.perf_counter() - began < 20
        assert early.run_id(0.1) is None and find_fails(settings)

        server.start()
        run = Tracker(settings).start_pipeline("demo", {"seed": 2})
        run.log_metrics({"loss": 3.0}, 0)
        assert run.flush(60)
        server.stop()
        for step in range(1, 20):
            run.log_metrics({"loss": 3.0 - step / 10, "odd": math.nan}, step)
        run.log_image(np.zeros((4, 4), np.uint8), "grid", 1)
        run.log_text("report", "report.html")
        assert not run.finish(timeout=8)
        assert spooled(settings)

        server.start()
        assert run.flush(60) and replay(settings) == 0 and not spooled(settings)
        from mlflow import MlflowClient

        client = MlflowClient(settings.uri)
        found = client.get_run(run.run_id())
        assert found.info.status == "FINISHED"
        assert len(client.get_metric_history(run.run_id(), "loss")) == 20
        assert math.isnan(found.data.metrics["odd"])
        assert {f.path for f in client.list_artifacts(run.run_id())} == {"config.json", "images", "report.html"}
        by_name = {r["name"]: r for r in find_runs(settings)}
        assert by_name["ingest"]["metrics"] == {"files": 3.0} and by_name["early"]["status"] == "FINISHED"
        assert by_name["ingest"]["tags"]["mlflow.parentRunId"] == by_name["early"]["run_id"]
    finally:
        server.stop()


def find_fails(settings) -> bool:
    with pytest.raises(ConnectionError):
        find_runs(settings)
    return True
