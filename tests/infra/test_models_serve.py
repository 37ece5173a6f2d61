"""`mlflow models serve` in an environment that has what the registered model asks for and nothing else: the pixels that
it answers with are those of `omniloom sample`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import venv
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
from cluster_fixture import free_port
from packaging.requirements import Requirement
from test_tracking_models import SERVING, bundle  # noqa: F401

from omniloom.infra.tracking import Tracker, TrackingConfig, register_model, resolve_tracking
from omniloom.stages.data.media.decode import decode_image
from omniloom.stages.inference.requests import Options, Request
from omniloom.stages.inference.sampling import sample

pytestmark = pytest.mark.slow
PROMPTS, SEED, STEPS = ("a handwritten seven", "a handwritten two"), 5, 4


def environment(folder: Path, requirements: list[str]) -> Path:
    """A new virtual environment's python, with these distributions and what they require, as an installer would choose
    them: linked from this installation, which has the versions that were asked for."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    packages = next((folder / "lib").glob("python*/site-packages"))
    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if (wanted.name.lower(), frozenset(extras)) in seen:
            continue
        seen.add((wanted.name.lower(), frozenset(extras)))
        installed = list(distributions(name=wanted.name))
        if not installed:  # of another system
            continue
        found = next((one for one in installed if one.version in wanted.specifier), None)
        assert found, f"{wanted}: installed is {[one.version for one in installed]}"
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
        for script in found.entry_points.select(group="console_scripts"):
            file = folder / "bin" / script.name
            file.write_text(f"#!{folder}/bin/python\nimport {script.module}\n{script.module}.{script.attr}()\n")
            file.chmod(0o755)
        for line in found.requires or ():
            required = Requirement(line)
            if not required.marker or any(required.marker.evaluate({"extra": extra}) for extra in extras):
                required.marker = None
                waiting.append(required)
    return folder / "bin" / "python"


def answer(port: int, body: dict, process: subprocess.Popen, log: Path) -> dict:
    """The server's, as soon as it listens."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    until = time.monotonic() + 150
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[-2000:]) from error
        except OSError:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)


def test_served_pixels_are_those_of_sample(tmp_path, bundle):  # noqa: F811
    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(tmp_path / "st"))
    run = Tracker(settings).start_pipeline("digits", {})
    registered, why = register_model(run, bundle, SERVING, "digits", "a" * 64)
    assert registered and why is None and run.finish()

    import mlflow

    mlflow.set_tracking_uri(settings.uri)
    try:
        asked = Path(mlflow.artifacts.download_artifacts("models:/digits/1/requirements.txt", dst_path=str(tmp_path)))
    finally:
        mlflow.set_tracking_uri(None)  # it is in the environment, too, and would lead other tests here
    wanted = [line for line in asked.read_text().splitlines() if line.strip()]
    assert not [line for line in wanted if "omniloom" in line.lower()], "what is on no index"
    python = environment(tmp_path / "env", wanted)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    clean |= {"PATH": f"{python.parent}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": settings.uri}
    clean |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    alone = (
        "import importlib.util as u; print([n for n in ('omniloom', 'ray', 'deepspeed', 'pytest') if u.find_spec(n)])"
    )
    found = subprocess.run([python, "-c", alone], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", "the environment has no more than was asked for"

    port, log = free_port(), tmp_path / "serve.log"
    command = [python, "-m", "mlflow", "models", "serve", "-m", "models:/digits/1", "--env-manager", "local"]
    with log.open("wb") as told:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=clean,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        rows = [{"prompt": prompt} for prompt in PROMPTS]
        body = {"dataframe_records": rows, "params": {"seed": SEED, "num_steps": STEPS}}
        served = answer(port, body, process, log)["predictions"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    requests = [Request(prompt, seed=SEED + row) for row, prompt in enumerate(PROMPTS)]
    files = sample(str(bundle), requests, Options(sampling={"num_steps": STEPS}), tmp_path / "drawn")
    drawn = [decode_image(Path(path).read_bytes()) for path in files]
    pixels = [decode_image(base64.b64decode(row["image"])) for row in served]
    assert len(pixels) == len(drawn) == 2 and not np.array_equal(drawn[0], drawn[1])
    for mine, theirs in zip(drawn, pixels, strict=True):
        assert np.array_equal(mine, theirs)
