"""Where runs are tracked: addresses as users write them, odd folders, a storage that was moved, processes at once."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from omniloom.infra.errors import InputError
from omniloom.infra.tracking import Tracker, TrackingConfig, probe, relocate, replay, resolve_tracking
from omniloom.infra.tracking.address import sqlite_path, sqlite_uri
from omniloom.infra.tracking.failures import Unreachable


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(settings):
    from mlflow import MlflowClient

    return MlflowClient(settings.uri)


@pytest.mark.parametrize(
    "uri, expected",
    [
        ("file:///x", "sqlite:////PATH/mlflow.db"),
        ("./mlruns", "sqlite:////PATH/mlflow.db"),
        ("/abs", "expected one of"),
        ("ftp://u:hunter2@h", "expected one of"),
        ("http://", "a server"),
        ("https://:5000", "a server"),
        ("http://h:99999", "a server"),
        ("sqlite://", "a file"),
        ("sqlite:///:memory:", "a file"),
        ("http", "expected one of"),
        ("mysql+pymysql://u:hunter2@h/d", "pymysql"),
        ("mssql+pyodbc://u:hunter2@h/d", "pyodbc"),
        ("mysql+unknown://u:hunter2@h/d", "mysql.unknown"),
        ("postgresql://u:hunter2@h:port/d", "'port'"),
    ],
)
def test_addresses_that_no_run_may_have(monkeypatch, tmp_path, uri, expected):
    """The same refusal from the variable and from the config, and it names which; no password in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError) as raised:
        resolve_tracking(TrackingConfig(), str(tmp_path))
    assert raised.value.field == "$MLFLOW_TRACKING_URI" and raised.value.exit_code == 2
    assert expected in str(raised.value) and "hunter2" not in str(raised.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises((InputError, ValueError), match=expected.replace("+", ".")) as raised:
        resolve_tracking(TrackingConfig(uri=uri), str(tmp_path))


@pytest.mark.parametrize("uri", ["http://h:5000", "https://u:p@h/prefix", "databricks", "databricks://profile"])
def test_addresses_that_a_run_may_have(monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert resolve_tracking(TrackingConfig(), str(tmp_path)).uri == uri


@pytest.mark.parametrize("folder", ["plain", "sp ace", "50%25", "100%", "what?", "a#b", "é + ü&=;", "%41?#"])
def test_sqlite_addresses_are_read_as_sqlalchemy_reads_them(tmp_path, folder):
    from sqlalchemy.engine import make_url

    path = tmp_path / folder / "mlflow.db"
    assert make_url(sqlite_uri(path)).database == str(path) and sqlite_path(sqlite_uri(path)) == path
    settings = resolve_tracking(TrackingConfig(), str(tmp_path / folder))
    assert settings.database == path
    again = resolve_tracking(TrackingConfig(uri=settings.uri + "?timeout=3"), "memory://x")
    assert (again.database, again.uri) == (path, settings.uri + "?timeout=3")


def test_everything_of_an_odd_storage_lies_in_it(tmp_path, migrated_database):
    storage = tmp_path / "sp ace #1?x 50%25 é"
    storage.mkdir()
    shutil.copy(migrated_database, storage / "mlflow.db")
    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(storage))
    run = Tracker(settings).start_pipeline("odd", {"seed": 1})
    run.log_text("hello", "note.txt")
    assert run.finish(timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [storage.name]
    (file,) = storage.glob("mlflow/artifacts/*/artifacts/note.txt")
    assert file.read_text() == "hello"
    assert Path(client_of(settings).download_artifacts(run.run_id(), "note.txt")).read_text() == "hello"


def logged(settings, text: str) -> str:
    """A run with a file and a registered model version of a logged model; its id."""
    import mlflow

    run = Tracker(settings).start_pipeline("moving", {})
    run.log_text(text, "note.txt")
    assert run.finish(timeout=60)
    client, run_id = client_of(settings), run.run_id()
    mlflow.set_tracking_uri(settings.uri)
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    folder = settings.database.parent / "scratch"
    folder.mkdir(exist_ok=True)
    (folder / "weights.txt").write_text(text)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models():
        client.create_registered_model("m")
    client.create_model_version("m", f"models:/{model.model_id}", run_id, model_id=model.model_id)
    mlflow.set_tracking_uri(None)
    return run_id


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_files_follow_a_storage(tracked, tmp_path, how):
    before = logged(tracked, "before")
    bare = Tracker(tracked).start_pipeline("moving", {})  # its config.json alone, which somebody removes
    assert bare.finish(timeout=60)
    shutil.rmtree(tracked.database.parent / "mlflow/artifacts" / bare.run_id())
    old, new = tracked.database.parent, tmp_path / "elsewhere" / "st 2"
    new.parent.mkdir()
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    files = sorted(path for path in old.rglob("*")) if how == "copied" else []
    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(new))
    after = logged(settings, "after")
    client = client_of(settings)
    for run_id, text in ((before, "before"), (after, "after")):
        location = client.get_run(run_id).info.artifact_uri
        assert location.startswith((new / "mlflow/artifacts").as_uri() + "/")
        assert Path(client.download_artifacts(run_id, "note.txt")).read_text() == text
    for version, text in (("1", "before"), ("2", "after")):
        place = Path(client.get_model_version_download_uri("m", version).removeprefix("file://").replace("%20", " "))
        assert (place / "weights.txt").read_text() == text
    assert client.get_run(bare.run_id()).info.artifact_uri.startswith(new.as_uri())
    models = client.search_logged_models([client.get_run(after).info.experiment_id])
    assert len(models) == 2 and all(model.artifact_location.startswith(new.as_uri()) for model in models)
    assert not (how == "moved" and old.exists()), "nothing is made at the old place"
    if how == "copied":
        assert sorted(path for path in old.rglob("*")) == files, "nor written to it"


def test_what_waits_moves_along(tmp_path, migrated_database):
    away = resolve_tracking(
        TrackingConfig(uri="http://127.0.0.1:1", system_metrics=False, request_seconds=1, flush_seconds=1),
        str(tmp_path / "st"),
    )
    code = (
        "import pickle, sys; from omniloom.infra.tracking import Tracker; "
        "s = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "r = Tracker(s).start_pipeline('p', {}); r.log_text('kept', 'note.txt'); r.finish(timeout=1)"
    )
    subprocess.run([sys.executable, "-c", code, pickle.dumps(away).hex()], check=True)
    (tmp_path / "st").rename(tmp_path / "st2")
    shutil.copy(migrated_database, tmp_path / "st2/mlflow.db")
    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(tmp_path / "st2"))
    assert replay(settings, timeout=60) == 0
    client = client_of(settings)
    (run,) = client.search_runs([client.get_experiment_by_name("omniloom").experiment_id])
    assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "kept"


def test_files_that_stayed_behind_keep_their_place(tracked, tmp_path):
    """The database alone was copied, and a place that a user chose is the user's."""
    before = logged(tracked, "before")
    new = tmp_path / "st2"
    new.mkdir()
    shutil.copy(tracked.database, new / "mlflow.db")
    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(new))
    client = client_of(settings)
    client.create_experiment("own", f"file://{tmp_path}/own/files")
    relocate(settings)
    assert Path(client.download_artifacts(before, "note.txt")).read_text() == "before"
    places = {e.name: e.artifact_location for e in client.search_experiments()}
    assert places["omniloom"] == (new / "mlflow/artifacts").as_uri()
    assert places["own"] == f"file://{tmp_path}/own/files"
    chosen = resolve_tracking(TrackingConfig(artifact_root=f"file://{tmp_path}/chosen/mlflow/artifacts"), str(new))
    relocate(chosen)
    assert {e.name: e.artifact_location for e in client.search_experiments()} == places


def test_relocating_what_is_no_database_does_nothing(tmp_path):
    for content in (None, b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 500):
        settings = resolve_tracking(TrackingConfig(request_seconds=1), str(tmp_path))
        if content is not None:
            settings.database.write_bytes(content)
        relocate(settings)
        assert (settings.database.read_bytes() if content is not None else None) == content


def test_probe_looks_and_changes_nothing(tracked, tmp_path):
    from omniloom.infra.tracking.connection import open_client

    assert probe(tracked)[0] and "0 runs" in probe(tracked)[1]
    fresh = resolve_tracking(TrackingConfig(), str(tmp_path / "new" / "st"))
    assert probe(fresh)[0] and not (tmp_path / "new").exists()
    for content in (b"no database at all", b"SQLite format 3\0" + b"\xff" * 500):
        (tmp_path / "bad.db").write_bytes(content)
        bad = resolve_tracking(TrackingConfig(uri=f"sqlite:///{tmp_path}/bad.db"), str(tmp_path))
        usable, says = probe(bad)
        assert not usable and "database" in says
        with pytest.raises(Unreachable):
            open_client(bad)
    usable, says = probe(resolve_tracking(TrackingConfig(uri="http://127.0.0.1:1"), str(tmp_path)))
    assert not usable and "refused" in says


BOTH = """
import logging, pickle, sys, time
logging.basicConfig(level=logging.WARNING)
from omniloom.infra.tracking import Tracker
settings = pickle.loads(bytes.fromhex(sys.argv[1]))
import mlflow  # the slow part before the start, so that both meet at the database
while time.time() < float(sys.argv[2]):
    pass
run = Tracker(settings).start_pipeline("both", {})
run.log_metrics({"loss": 1.0})
assert run.finish(timeout=100)
"""


@pytest.mark.slow
def test_processes_that_start_at_once_on_a_new_storage(tmp_path):
    """One makes the database, the other waits for it; the schema is the one that a single process makes."""
    import time

    def schema(path: Path) -> dict:
        """Tables and indexes by name, with their columns; MLflow itself writes their parts in changing orders."""
        with sqlite3.connect(path) as connection:
            names = connection.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            return {
                (kind, name): sorted(row[1] for row in connection.execute(f"PRAGMA table_info('{name}')"))
                for kind, name in names
            }

    found = []
    for attempt, count in enumerate((1, 2, 2, 3)):
        settings = resolve_tracking(TrackingConfig(system_metrics=False), str(tmp_path / str(attempt) / "st"))
        start = time.time() + 15
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", BOTH, pickle.dumps(settings).hex(), str(start)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for _ in range(count)
        ]
        for run in runs:
            output = run.communicate(timeout=120)[0]
            assert run.returncode == 0 and "Traceback" not in output and "WARNING" not in output, output
        client = client_of(settings)
        assert len(client.search_runs([client.get_experiment_by_name("omniloom").experiment_id])) == count
        found.append(schema(settings.database))
    assert all(tables == found[0] for tables in found)
