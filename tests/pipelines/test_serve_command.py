"""`omniloom serve`: what is refused before anything starts."""

from __future__ import annotations

import socket
import sys

import pytest
from serving_cases import small_model

from omniloom.pipelines.trained import model_name
from omniloom.stages.serving import deployment


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    small_model().save(folder)
    return str(folder)


@pytest.fixture
def installed(monkeypatch):
    """As where the extra is."""
    monkeypatch.setattr(deployment, "_LIBRARIES", ())


def test_a_missing_extra_is_named(omniloom, model, monkeypatch):
    monkeypatch.setattr(deployment, "_LIBRARIES", ("json", "no_such_library"))
    code, _, told = omniloom("serve", model)
    assert code == 2 and told == "error: serving needs no_such_library: pip install 'omniloom[serve]'\n"


def test_a_port_that_is_taken_is_refused(omniloom, model, installed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, told = omniloom("serve", model, "--port", str(port))
    assert code == 2 and told.startswith(f"error: --port: port {port} of 127.0.0.1 cannot be had")


def test_an_address_of_another_machine_is_refused(omniloom, model, installed, monkeypatch):
    monkeypatch.setenv("OMNILOOM_SERVE_TOKEN", "long-enough")
    code, _, told = omniloom("serve", model, "--host", "192.0.2.1")
    assert code == 2 and told.startswith("error: --host")


def test_others_need_a_token(omniloom, model, installed, monkeypatch):
    monkeypatch.delenv("OMNILOOM_SERVE_TOKEN", raising=False)
    code, _, told = omniloom("serve", model, "--host", "0.0.0.0")
    assert code == 2 and told.startswith("error: --host: others than this machine reach 0.0.0.0: give a token")


@pytest.mark.parametrize("token", ["", "short", "with a space in it", "nicht-für-Köpfe"])
def test_a_token_that_is_none(omniloom, model, installed, tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token)
    code, _, told = omniloom("serve", model, "--token-file", str(file))
    assert code == 2 and told.startswith(f"error: {file}: --token-file: expected a token of at least 8")
    assert not token or token not in told
    code, _, told = omniloom("serve", model, "--token-file", str(tmp_path / "none"))
    assert code == 2 and "cannot be read" in told


def test_a_token_is_in_nothing_that_is_printed():
    assert "secret" not in repr(deployment.Settings(token="secret-token"))


def test_a_model_that_is_none_is_told_before_ray_starts(omniloom, tmp_path, installed):
    code, _, told = omniloom("serve", str(tmp_path), "--port", "8765")
    assert code == 2 and "MODEL" in told and "holds no model" in told
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("option", ["--max-batch", "--max-tokens", "--timeout"])
def test_a_limit_of_nothing(omniloom, model, installed, option):
    code, _, told = omniloom("serve", model, option, "0")
    assert code == 2 and option in told


def test_what_a_server_calls_a_model(tmp_path, monkeypatch):
    artifact = tmp_path / "artifacts" / "train" / ("0123456789abcdef" * 4)
    (artifact / "model").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    assert model_name("models:/digits@champion") == model_name("models:/digits/3") == "digits"
    assert model_name(str(artifact)) == model_name(str(artifact / "model")) == "train-0123456789ab"
    assert model_name(str(tmp_path / "mine") + "/") == "mine"
    assert model_name("demo") == "demo"
