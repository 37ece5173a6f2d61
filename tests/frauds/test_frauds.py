"""Ten planted frauds are each flagged by a gated figure, and the honest model by none. `make frauds`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from frauds import FRAUDS
from honest import trained

from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.exported import export_gap
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.gate import judge
from omniloom.stages.evaluate.novelty import leaked
from omniloom.stages.evaluate.writing import describe, read_text

pytestmark = pytest.mark.slow

# Which part of the evaluation measures what a fraud is flagged by; the others are not run for it.
PARTS = {
    "export_gap": export_gap,
    "read_text": read_text,
    "draw": draw,
    "leaked": leaked,
    "describe": describe,
    "film": film,
}
FLAGGED = {
    "one_class": (
        {"image_class_agreement", "image_coverage", "image_following", "caption_accuracy"},
        ("draw", "describe"),
    ),
    "memorised": ({"image_memorised"}, ("draw",)),
    "prompt_ignored": ({"image_class_agreement", "image_following"}, ("draw",)),
    "swapped_captions": ({"image_class_agreement", "caption_accuracy"}, ("draw", "describe")),
    "leaked_test": ({"leaked_images"}, ("leaked",)),
    "average_forgotten": ({"export_gap"}, ("export_gap",)),
    # Of its pictures the shrunken pixels lie near enough to pass or not, by the training: captions always fail.
    "latents_not_scaled": ({"caption_accuracy"}, ("draw", "describe")),
    "guidance_swapped": ({"image_class_agreement", "image_following"}, ("draw",)),
    "frozen_video": ({"video_motion"}, ("film",)),
    "text_repeated": ({"text_repeated"}, ("read_text",)),
}
GATE = {
    "image_class_agreement": {"min": 0.85},
    "image_coverage": {"min": 0.5},
    "image_following_low": {"min": 0.6},
    "frechet_pixels8": {"max": 2.5},
    "image_memorised": {"max": 0.2},
    "leaked_images": {"max": 0.01},
    "caption_accuracy": {"min": 0.85},
    "bits_per_byte": {"max": 4.0},
    "text_repeated": {"max": 0.3},
    "video_motion": {"min": 0.4},
    "export_gap": {"max": 0.001},
}


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    given = os.environ.get("OMNILOOM_FRAUDS")
    return trained(Path(given) if given else tmp_path_factory.mktemp("frauds") / "demo")


def verdict(artifacts, parts) -> tuple[set[str], dict]:
    """The bounds of the gate that fail, among the figures that these parts measure."""
    torch.set_num_threads(1)
    config = EvaluateConfig(
        drawings=120, captions=80, texts=40, videos=8, counterfactuals=40, seed=3, gate=GATE, cpus=1
    )
    evaluation = Evaluation(config, artifacts, "cpu")
    for part in parts:
        PARTS[part](evaluation)
    evaluation.close()
    failures = judge(config.gate, evaluation.metrics, None).failures
    failed = {failure.split()[0].removesuffix("_low") for failure in failures if "was not measured" not in failure}
    return failed, evaluation.metrics


def test_the_honest_model_is_flagged_by_nothing(honest):
    failed, metrics = verdict(honest, PARTS)
    assert not failed, metrics
    assert all((name in metrics) for name in GATE), "every bound is of something that was measured"


@pytest.mark.parametrize("name", FRAUDS)
def test_a_fraud_is_flagged(name, honest, tmp_path, monkeypatch):
    expected, parts = FLAGGED[name]
    failed, metrics = verdict(FRAUDS[name](honest, tmp_path, monkeypatch), parts)
    assert failed & expected == expected, metrics
