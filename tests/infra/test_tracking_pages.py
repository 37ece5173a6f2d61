"""MLflow's pages: the view they open in, and what the server is refused for."""

from __future__ import annotations

import dataclasses
import os
import socket

import pytest

from omniloom.infra.errors import InputError
from omniloom.infra.tracking import Tracker, TrackingConfig, resolve_tracking, server
from omniloom.infra.tracking import pages as module
from omniloom.infra.tracking.pages import experiment_page, serve


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return resolve_tracking(TrackingConfig(system_metrics=False, experiment="mine"), str(tmp_path))


def test_a_port_that_is_taken_and_a_storage_without_runs_are_refused(settings):
    with pytest.raises(InputError, match="has no runs yet") as caught:
        serve(settings, 5000)
    assert caught.value.exit_code == 2 and not settings.database.exists()
    settings.database.touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port: port {port} of 127.0.0.1 cannot be had"):
            serve(settings, port)
    with pytest.raises(InputError, match="--port"):
        serve(settings, 700_000)


@pytest.mark.parametrize("kind", ["none", "custom_model_development"])
def test_the_printed_page_opens_in_the_view_for_training(settings, monkeypatch, capsys, kind):
    """Before MLflow, which is slow to import, is there to answer, the page is printed and its port listens."""
    import mlflow

    client = mlflow.MlflowClient(settings.uri)
    experiment = client.create_experiment("mine", settings.artifact_root)  # an earlier version's has no kind
    if kind != "none":
        client.set_experiment_tag(experiment, "mlflow.experimentKind", kind)
        monkeypatch.setattr(module, "experiment_page", pytest.fail)
    seen = []

    def serves(given, listening):
        with socket.create_connection(listening.getsockname(), timeout=5):
            seen.append((given, listening.getsockname()))

    monkeypatch.setattr(server, "run", serves)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(settings, port)
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert capsys.readouterr().out.rstrip().endswith(page)
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    assert seen == [(settings, ("127.0.0.1", port))]


def test_a_file_that_is_no_database_is_told(settings, monkeypatch, capsys):
    settings.database.write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", settings.uri)
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "")
    with pytest.raises(SystemExit) as ended:
        server.application()
    assert ended.value.code == 2 and "mlflow.db does not answer: " in capsys.readouterr().err


def test_a_password_is_on_no_command_line(settings, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.socket() as listening:
        server.run(dataclasses.replace(settings, uri="postgresql://user:secret@host/x"), listening)
        assert listening.get_inheritable()
    assert os.environ["MLFLOW_BACKEND_STORE_URI"].endswith("secret@host/x") and "secret" not in str(started)


def test_a_new_experiment_is_of_training(settings):
    import mlflow

    run = Tracker(settings).start_pipeline("mine", {}, {"mlflow.user": "ada"}, "mine: lr 1 -> 2")
    assert run.finish()
    client = mlflow.MlflowClient(settings.uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    made = client.get_run(run.run_id())
    assert made.info.run_name == "mine: lr 1 -> 2" and made.data.tags["mlflow.user"] == "ada"


def test_a_store_that_is_away_still_has_a_page(tmp_path):
    away = resolve_tracking(TrackingConfig(uri="http://127.0.0.1:1", request_seconds=0.5), str(tmp_path))
    assert experiment_page(away, away.uri) == "http://127.0.0.1:1/#/experiments?workflowType=machine_learning"
    assert (
        module.page("http://host/", "3", "abc") == "http://host/#/experiments/3/runs/abc?workflowType=machine_learning"
    )
