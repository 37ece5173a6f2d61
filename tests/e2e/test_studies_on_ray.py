"""The stage `latents` and the study of generations through Ray, at a size that says nothing but that they run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from omniloom.infra import storage
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan

pytestmark = pytest.mark.slow

SMALL = [
    "stages.tokenizer_image.steps=20",
    "stages.tokenizer_image.optimizer.warmup_steps=5",
    "stages.latents={size: 32, pictures: 120, train_pictures: 200}",
    "stages.generation_study.training.steps=10",
    "stages.generation_study.training.optimizer.warmup_steps=5",
    "stages.generation_study.training.validate_every=10",
    "stages.generation_study.generations=2",
    "stages.generation_study.shares=[0.5, 0.0]",
    "stages.generation_study.evaluation.drawings=100",
    "stages.generation_study.evaluation.num_steps=2",
]


def test_generations_learn_from_each_other_and_latents_are_measured(tmp_path):
    overrides = [f"storage={tmp_path}", *SMALL]
    command = [sys.executable, "-m", "omniloom.pipelines.cli", "run", "generations", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plan = make_plan(load("generations", overrides))
    assert not plan.to_execute
    latents = plan["latents"].artifact
    assert latents and latents.metrics["rfid"] > 0 and latents.metrics["bits_codes"] == pytest.approx(9 * 16 / 32**2)
    study = storage.load_json(plan["generation_study"].artifact.file("study.json"))
    assert [(row["share"], row["generation"]) for row in study["rows"]] == [(0.5, 1), (0.5, 2), (0.0, 1), (0.0, 2)]
    assert study["rows"][0]["frechet_pixels8"] == study["rows"][2]["frechet_pixels8"]  # one first generation for all
    assert study["rows"][1]["name"] == "share_50_generation_2" and set(study["worse"]) == {"0.5"}
    html = storage.read_bytes(plan["generation_study"].artifact.file("report.html")).decode()
    assert "50% drawn" in html and "Generations that learn" in html
