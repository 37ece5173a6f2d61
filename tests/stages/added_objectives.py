"""Two objectives of other distributions, `uniform_code` of examples/ and a `latent_guess`, from training to sampling.

tests/examples/test_uniform_objective.py runs this in a process that has both installed: a config takes the names of
those that are there when Python starts, so that this module is no test file of its own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from test_train_objectives import curve, train
from test_train_objectives import group as group
from test_train_objectives import tokens as tokens

from omniloom.infra import storage
from omniloom.models.model import OmniLoom
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.pipelines.cli import main
from omniloom.stages.base import StageContext
from omniloom.stages.evaluate import stage as evaluate

ADDED = ("uniform_code", "latent_guess")
MIX = {"objectives": {"masked_code": 1.0, **dict.fromkeys(ADDED, 1.0)}, "steps": 16}


class Report(corpora.Silent):
    """A tracker that keeps texts, and registers nothing."""

    settings = SimpleNamespace(register_as=None)

    def log_text(self, text, name):
        self.notes.append(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokens, visual) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, tokens, visual, **MIX)
    return folder


@pytest.fixture(scope="module")
def model(trained):
    """The train stage's artifact."""
    artifact = corpora.seal(trained / "output", "train")
    artifact.manifest.update(pipeline="squares", metrics={"parameters": 1}, times={"seconds": 1.0}, code=None)
    return artifact


def test_they_are_trained_beside_ours_and_resumed(tmp_path, tokens, visual, trained):
    assert list(OBJECTIVES)[5:] == list(ADDED)
    rows = [row for row in curve(trained) if "loss" in row]
    for name in MIX["objectives"]:
        assert rows[-1][f"{name}_loss"] < rows[0][f"{name}_loss"], name
    metrics = storage.read_json(str(trained / "state" / "metrics.json"))
    assert {f"validation_{name}_loss" for name in ADDED} <= set(metrics)
    drawn = {path.name for path in (trained / "output" / "report").glob("samples*.png")}
    assert drawn == {"samples.png", *(f"samples_{name}.png" for name in ADDED)}
    with pytest.raises(corpora.Killed):
        train(tmp_path, tokens, visual, corpora.KilledAt(14), **MIX)
    train(tmp_path, tokens, visual, **MIX)
    weights = [load_file(folder / "output" / "model" / "unified.safetensors") for folder in (trained, tmp_path)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("name", ADDED)
def test_it_draws_and_describes(model, name):
    loom = OmniLoom.load(Path(model.uri) / "model")
    how = VisualSampling(num_steps=3, guidance_scale=2.0, objective=name)
    pictures = loom.text_to_image(["a red square", "a blue square"], how, seeds=[1, 2])
    assert pictures.shape == (2, 24, 24, 3) and pictures.dtype == np.uint8
    alone = loom.text_to_image(["a blue square"], how, seeds=[2])
    np.testing.assert_array_equal(alone[0], pictures[1])
    assert loom.text_to_video(["a red square"], how).shape == (1, 5, 24, 24, 3)
    texts = loom.image_to_text(list(pictures), "", TextSampling(max_new_tokens=3), how)
    assert [type(text) for text in texts] == [str, str]


def test_the_stage_evaluate_measures_each(tmp_path, tokens, visual, model):
    storage.write_bytes(str(Path(visual.uri) / "report" / "history.jsonl"), b"")
    figures = [f"image_class_agreement_{name}" for name in ADDED]
    config = evaluate.Config.model_validate(
        {
            "split": "validation",
            "reconstructions": 2,
            "drawings": 4,
            "captions": 4,
            "texts": 2,
            "num_steps": 2,
            "class_examples": 2,
            "cpus": 1,
            "gate": {figure: {"min": 0.0} for figure in figures},
        }
    )
    inputs = {
        "records": corpora.ingest(tmp_path / "ingest"),
        "tokenizer": visual,
        "tokens": tokens,
        "model": model,
    }
    work = str(tmp_path / "work")
    context = StageContext(
        "evaluate", hashlib.sha256(b"").hexdigest(), config, inputs, work, corpora.Silent(), Report()
    )
    metrics = evaluate.run(context)
    assert all(0 <= metrics[figure] <= 1 for figure in figures) and metrics["gate_passed"] == 1
    assert all(0 <= metrics[f"caption_accuracy_{name}"] <= 1 for name in ADDED)
    report = (Path(work) / "output" / "report.html").read_text()
    assert all(f"{name}_loss" in report for name in ADDED)
    samples = [json.loads(line) for line in (Path(work) / "output" / "samples.jsonl").read_text().splitlines()]
    assert set(ADDED) < {sample.get("objective") for sample in samples}


@pytest.mark.parametrize("name", ADDED)
def test_omniloom_sample_draws_by_it(model, tmp_path, monkeypatch, capsys, name):
    arguments = ["--prompt", "a red square", "--objective", name, "--steps", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["omniloom", "sample", model.uri, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    (picture,) = (tmp_path / "out").glob("*.png")
    assert Image.open(picture).size == (24, 24)
