"""A bundle in the registry, loaded by `mlflow.pyfunc` in a process that knows only the store and the name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import corpora
import numpy as np
import pytest
from PIL import Image

from omniloom.infra.tracking import (
    RegisteredModel,
    Tracker,
    TrackingConfig,
    champion,
    register_model,
    replay,
    resolve_tracking,
)
from omniloom.infra.tracking.registry import versions

SERVING = Path(__file__).parents[2] / "stages/inference/serving.py"

LOADED = """
import base64, io, json, sys
import mlflow, pandas
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits@champion")
red = io.BytesIO(); Image.new("RGB", (20, 20), "red").save(red, "PNG")
rows = pandas.DataFrame([
    {"prompt": "a handwritten seven", "task": None, "image": None},
    {"prompt": "", "task": None, "image": red.getvalue()},
    {"prompt": "once", "task": "text_to_text", "image": None},
    {"prompt": "a handwritten two", "task": "text_to_video", "image": None}])
first = model.predict(rows, params={"num_steps": 2, "max_new_tokens": 5, "seed": 3})
again = model.predict(rows, params={"num_steps": 2, "max_new_tokens": 5, "seed": 3})
assert first.equals(again), "a seed gives the same answer"
assert model.predict(pandas.DataFrame({"prompt": ["two", "three"]}), params={"num_steps": 1}).shape == (2, 2)
def refused(data, **params):
    try:
        model.predict(data, params=params)
    except (ValueError, mlflow.MlflowException) as error:
        return str(error)
    raise AssertionError(f"{data} {params} was taken")
for wrong in ({"prompt": "x", "task": "paint"}, {"prompt": "x", "task": "image_to_text"}, {"prompt": ""},
              {"prompt": "", "image": b"no picture"}):
    assert refused(pandas.DataFrame([wrong])).startswith("row 0: ")
for wrong in (pandas.DataFrame({"promt": ["a handwritten six"]}), [{"promt": "a handwritten six"}],
              ["a handwritten six"], pandas.DataFrame([{"image": b"no picture"}])):
    assert "prompt" in refused(wrong)
for params, word in (({"size": [16]}, "size"), ({"size": [17, 16]}, "16"), ({"sampler": "best"}, "sampler"),
                     ({"num_frames": 4}, "frames"), ({"top_p": 2.0}, "top_p"), ({"num_steps": "x"}, "num_steps")):
    task = "text_to_text" if "top_p" in params else "text_to_video"
    assert word in refused(pandas.DataFrame([{"prompt": "x", "task": task}]), **params), (params, word)

import os
from omniloom.pipelines.trained import find_model
os.environ["MLFLOW_TRACKING_URI"] = sys.argv[1]
for name in ("models:/digits@champion", "models:/digits/1"):
    assert sorted(os.listdir(find_model(name))) == sorted(os.listdir(sys.argv[2]))
try:
    find_model("models:/digits@challenger")
except Exception as error:
    assert type(error).__name__ == "InputError" and "models:/digits@challenger: MODEL: " in str(error), error
def picture(value):
    return Image.open(io.BytesIO(value)).size
one = pandas.DataFrame([{"prompt": "a handwritten seven"}])
assert picture(model.predict(one, params={"num_steps": 2, "size": [24, 32]})["image"][0]) == (32, 24)
likeliest = model.predict(one.assign(task="text_to_text"))["text"][0]
assert model.predict(one.assign(task="text_to_text"), params={"top_k": 1, "temperature": 5.0})["text"][0] == likeliest
drawn = [model.predict(one, params={"num_steps": 3, "sampler": name})["image"][0] for name in ("euler", "heun")]
assert drawn[0] != drawn[1]
after = one.assign(image=[red.getvalue()], task="text_to_image")
guided = [model.predict(after, params={"num_steps": 2, "image_guidance_scale": scale})["image"][0]
          for scale in (-1.0, 40.0)]
plain = model.predict(one, params={"num_steps": 2})["image"][0]
assert plain not in guided, "the picture was not shown"
assert guided[0] != guided[1], "the scale was not used"
print(json.dumps([{name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
                   for name, value in row.items()} for row in first.to_dict("records")]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A real model of the smallest size, untrained."""
    import torch

    from omniloom.models.model import BundleConfig, OmniLoom
    from omniloom.models.text import TextTokenizer
    from omniloom.models.tokenizer.omni import OmniTokenizer
    from omniloom.models.unified.config import UnifiedConfig
    from omniloom.models.unified.diffusion.config import DiffusionConfig
    from omniloom.models.unified.model import UnifiedModel

    torch.manual_seed(0)
    text = TextTokenizer.train(["a handwritten seven", "a handwritten two"] * 20, 280)
    config = BundleConfig(
        unified=UnifiedConfig(vocab_size=text.vocab_size, latent_dim=4, width=48, layers=1, heads=4),
        diffusion=DiffusionConfig(),
        tokenizer=corpora.small_tokenizer(),
        latent_mean=(0.0,) * 4,
        latent_std=(1.0,) * 4,
        image_size=(16, 16),
        num_frames=5,
    )
    tokenizer = OmniTokenizer(config.tokenizer)
    tokenizer.train().encode(torch.rand(16, 3, 16, 16) - 0.5, update_codebook=True)
    folder = tmp_path_factory.mktemp("model") / "bundle"
    model = UnifiedModel(config.unified)
    with torch.no_grad():  # as it starts, it answers the same whatever it is asked
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    OmniLoom(config, model, tokenizer, text).save(folder)
    return folder


@pytest.mark.slow
def test_a_registered_model_answers_elsewhere(tmp_path, bundle):
    from omniloom.stages.data.media.decode import probe_image, probe_video

    settings = resolve_tracking(TrackingConfig(system_metrics=False, flush_seconds=60), str(tmp_path / "st"))
    run = Tracker(settings).start_pipeline("digits", {})
    train = run.child("train")
    run.log_input("ingest", "file:/records", "d" * 64)
    first, why = register_model(
        run,
        bundle,
        SERVING,
        "digits",
        "a" * 64,
        metrics={"recon_psnr_image": 24.5, "none": float("nan"), "null": None},
        example=[{"prompt": "a handwritten seven"}],
        dataset=("ingest", "d" * 64),
        trained_by=train.run_id(),
        description="Sample from it",
    )
    assert why is None and first.uri == "models:/digits/1"
    same = register_model(run, bundle, SERVING, "digits", "a" * 64, alias="champion")
    assert same == (first, None), "content that is there already is not copied again"
    broken = tmp_path / "broken"
    broken.mkdir()
    (tmp_path / "no.py").touch()
    none, why = register_model(run, broken, tmp_path / "no.py", "digits", "b" * 64)
    assert none is None and "could not be made a model" in why, "a model that cannot be made costs only itself"
    assert run.finish() and replay(settings) == 0
    with pytest.raises(ValueError, match="bundle: .* does not exist"):
        register_model(run, tmp_path / "missing", SERVING, "digits", "c" * 64)

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    version = client.get_model_version_by_alias("digits", "champion")
    assert (version.version, version.run_id) == (1, run.run_id())
    assert version.tags["omniloom.fingerprint"] == "a" * 64 and version.description == "Sample from it"
    (output,) = client.get_run(run.run_id()).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert {metric.key: metric.value for metric in logged.metrics} == {"evaluation/recon_psnr_image": 24.5}
    (measured,) = logged.metrics
    assert (measured.dataset_name, measured.dataset_digest) == ("ingest", "d" * 32)
    assert [output.model_id for output in client.get_run(train.run_id()).outputs.model_outputs] == [logged.model_id]
    assert champion(run, "digits", "champion").metrics == {"recon_psnr_image": 24.5}, "by the names of the gate"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "digits", "version": "1"}]

    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, settings.uri, str(bundle)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    import base64

    drawn, read, written, filmed = json.loads(done.stdout.splitlines()[-1])
    png, mp4 = base64.b64decode(drawn["image"]), base64.b64decode(filmed["image"])
    assert np.asarray(Image.open(io.BytesIO(png))).shape == (16, 16, 3) and drawn["text"] is None
    assert isinstance(read["text"], str) and isinstance(written["text"], str) and read["image"] is None
    assert probe_image(png).mark and probe_video(mp4).mark, "what a model made says so"
    assert probe_video(mp4).frames == 5


# With -S no .pth is read, neither one of an editable install: the libraries are there, omniloom is not.
ELSEWHERE = """
import importlib.util, json, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
sys.path += json.loads(sys.argv[1])
assert importlib.util.find_spec("omniloom") is None
import mlflow, pandas
from mlflow.models import Model
without = set(sys.modules)
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model("models:/elsewhere/1")
rows = pandas.DataFrame([{"prompt": "a handwritten seven"}, {"prompt": "once", "task": "text_to_text"},
                         {"prompt": "two", "task": "text_to_video"}])
made = model.predict(rows, params={"num_steps": 1, "max_new_tokens": 3})
owners = packages_distributions()
used = {name.lower() for module in set(sys.modules) - without for name in owners.get(module.split(".")[0], ())}
def needed(name):
    return {re.match("[A-Za-z0-9-]+", text)[0].lower() for text in requires(name) or () if "extra ==" not in text}
of_mlflow, waiting = {"mlflow"}, ["mlflow"]
while waiting:
    try:
        new = needed(waiting.pop()) - of_mlflow
    except PackageNotFoundError:  # of another system
        continue
    of_mlflow |= new
    waiting += new
used &= needed("omniloom") - of_mlflow
print(json.dumps({"file": sys.modules["omniloom"].__file__, "text": made["text"][1], "used": sorted(used),
                  "bytes": [len(made["image"][row]) for row in (0, 2)]}))
"""


@pytest.mark.slow
def test_a_registered_model_answers_where_no_omniloom_is(tmp_path, bundle, tracked):
    run = Tracker(tracked).start_pipeline("elsewhere", {})
    _, why = register_model(run, bundle, SERVING, "elsewhere", "a" * 64)
    assert why is None and run.finish()
    libraries = [path for path in sys.path if path.endswith("-packages")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", ELSEWHERE, json.dumps(libraries), tracked.uri],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["file"]).is_relative_to(tracked.database.parent) and told["file"].endswith(
        "/code/omniloom/__init__.py"
    )
    assert isinstance(told["text"], str) and min(told["bytes"]) > 0
    (folder,) = tracked.database.parent.glob("mlflow/artifacts/models/*/artifacts")
    wanted = dict(line.split("==") for line in (folder / "requirements.txt").read_text().splitlines())
    assert "torch" in told["used"] and set(told["used"]) <= set(wanted) and "omniloom" not in wanted
    assert not [version for version in wanted.values() if "+" in version], "no index knows the names of builds"


@pytest.mark.slow
def test_a_refused_registration_says_why_and_leaves_no_copy(bundle, tracked):
    from mlflow import MlflowClient

    client = MlflowClient(tracked.uri)
    run = Tracker(tracked).start_pipeline("digits", {})
    for name, reason in (("team/model", "Invalid model name"), ("cat:v1", "Invalid model name")):
        found, why = register_model(run, bundle, SERVING, name, "a" * 64)
        assert found is None and reason in why
    found, why = register_model(run, bundle, SERVING, "it's", "a" * 64, alias="champion")
    assert why is None and found == RegisteredModel("it's", "1"), "quotes are MLflow's to search for"
    assert register_model(run, bundle, SERVING, "it's", "a" * 64) == (found, None)
    assert run.finish()
    experiment = client.get_run(run.run_id()).info.experiment_id
    assert len(client.search_logged_models([experiment])) == 1
    copies = list(tracked.database.parent.glob("mlflow/artifacts/models/*/artifacts/MLmodel"))
    assert len(copies) == 1 and "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_a_version_that_is_refused_takes_its_copy_along(bundle, tracked):
    """The registry's table of versions takes none: as of a server that lets runs be logged and no model registered."""
    import sqlite3

    from mlflow import MlflowClient

    with sqlite3.connect(tracked.database) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON model_versions BEGIN SELECT RAISE(ABORT, 'full'); END")
    run = Tracker(tracked).start_pipeline("digits", {})
    found, why = register_model(run, bundle, SERVING, "digits", "a" * 64)
    assert found is None and "Version creation error" in why and run.finish()
    client = MlflowClient(tracked.uri)
    assert not client.search_logged_models([client.get_run(run.run_id()).info.experiment_id])
    assert not [path for path in tracked.database.parent.glob("mlflow/artifacts/models/*") if any(path.rglob("*.*"))]


@pytest.mark.parametrize(
    "name",
    ["team/model", "cat:v1", "it's", 'so "so"', "a\\b", "", "  ", ".", "..x", "a@b", "50%", "a#b", "why?", "line\nend"],
)
def test_names_that_the_registry_would_refuse_are_refused_when_the_config_is_read(name):
    with pytest.raises(ValueError, match="register_as"):
        TrackingConfig(register_as=name)


@pytest.mark.parametrize("name", ["digits", "Größe 2", "a.b-c_d", "x" * 300, "猫", None])
def test_names_that_the_registry_takes(name):
    assert TrackingConfig(register_as=name).register_as == name


@pytest.mark.slow
def test_versions_are_found_by_what_they_hold(tmp_path):
    from mlflow import MlflowClient

    settings = resolve_tracking(TrackingConfig(system_metrics=False), str(tmp_path / "st"))
    (tmp_path / "st").mkdir()
    client = MlflowClient(settings.uri)
    for name, fingerprint in (("digits", "a" * 64), ("digits", "b" * 64), ("others", "a" * 64)):
        with contextlib.suppress(Exception):  # it is there
            client.create_registered_model(name)
        client.create_model_version(name, str(tmp_path), tags={"omniloom.fingerprint": fingerprint})
    client.set_registered_model_alias("digits", "champion", "1")
    assert versions(settings, ["a" * 64, "c" * 64]) == {
        "a" * 64: [
            {"name": "digits", "version": "1", "aliases": ["champion"]},
            {"name": "others", "version": "1", "aliases": []},
        ]
    }
