"""The study of objectives: one budget for all, `train`'s own worker, `evaluate`'s own figures."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import numpy as np
import pytest
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.models.model import OmniLoom
from omniloom.models.unified.density.config import CouplingConfig
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.reporting import history, report
from omniloom.stages.studies import objectives as objective_study
from omniloom.stages.studies.objectives import Config, Measurement, budget, measure_worker, table
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker

PATCH = 8

USUAL = [name for name, row in OBJECTIVES.items() if not row.by_density]

TRAINING = {
    "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16, "pixel_bottleneck": 8},
    "objectives": dict.fromkeys(USUAL, 1.0),
    "loss": {"objective_weights": {"next_code": 2.0}},
    "packing": {"length": 96, "window_rows": 8, "mixture": {"video": 0.0}},
    "batch_rows": 2,
    "steps": 4,
    "optimizer": {"warmup_steps": 2},
    "engine": {"ema_decay": 0.9},
    "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
    "validate_every": 4,
    "validation_rows": 2,
    "samples": {"count": 2, "num_steps": 1},
}
EVALUATION = {"split": "validation", "drawings": 4, "captions": 4, "texts": 2, "num_steps": 1, "class_examples": 2}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("study")
    visual, text, rng = corpora.tokenizer(folder / "joint"), corpora.text_tokenizer(), np.random.default_rng(0)
    rows = {
        split: [corpora.token_rows(text, rng, images, 2, 6, 0, pixel_patch=PATCH)]
        for split, images in (("train", 24), ("validation", 8))
    }
    return {
        "records": corpora.ingest(folder / "ingest"),
        "tokenizer": visual,
        "tokens": corpora.pretokenize(folder / "tokens", rows, text, visual_digest=visual.digest, pixel_patch=PATCH),
    }


def test_each_objective_alone_has_the_same_budget_and_the_same_documents(inputs):
    config = Config.model_validate({"training": TRAINING})
    assert config.objectives == {name: name for name in USUAL}
    alone = {name: budget(config.training, name) for name in USUAL}
    tokens = TokenSet(inputs["tokens"], "train")
    plans = {}
    for name, training in alone.items():
        assert training.trained == (name,)
        assert training.loss.objective_weights == ({"next_code": 2.0} if name == "next_code" else {})
        same = {"objectives", "loss"}
        assert training.model_dump(exclude=same) == config.training.model_dump(exclude=same)
        # It stands the checks of a config that was written so.
        train_unified.Config.model_validate(training.model_dump(mode="json"))
        train_unified.check_tokens(training, inputs["tokens"], inputs["tokenizer"])
        plans[name] = [
            (p.index, p.view, p.start, p.stop, p.dropped)
            for row in RowStream(Planner(tokens.index, training.packing, training.seed, training.objectives)).take(
                training.packing.window_rows
            )
            for p in row
        ]
    assert plans["pixel_diffusion"] == plans["next_code"] == plans["masked_code"] == plans["latent_diffusion"]


# Without what pixels alone have an option of.
SHARED = {key: value for key, value in TRAINING.items() if key not in ("objectives", "loss")}
SHARED["model"] = {key: value for key, value in TRAINING["model"].items() if key != "pixel_bottleneck"}
HEADS = {name: {"objective": "next_latent", "model": {"density": {"head": name}}} for name in ("mixture", "flow")}


def test_a_row_may_have_fields_of_the_model_of_its_own(inputs):
    config = Config.model_validate({"training": SHARED, "objectives": {**HEADS, "codes": "next_code"}})
    assert set(config.training.trained) == {"next_latent", "next_code"}
    alone = {name: budget(config.training, studied) for name, studied in config.objectives.items()}
    assert {name: training.trained for name, training in alone.items()} == {
        "mixture": ("next_latent",),
        "flow": ("next_latent",),
        "codes": ("next_code",),
    }
    for name, training in alone.items():
        train_unified.check_tokens(training, inputs["tokens"], inputs["tokenizer"])
        assert training.model.width == 32
        assert (training.model.density and training.model.density.head) == (None if name == "codes" else name)
    assert canonical(config)["objectives"] == {**HEADS, "codes": "next_code"}
    for model, message in (
        ({"nope": 3}, "objectives.a.model.nope: Extra inputs are not permitted"),
        ({"density": {"head": "nope"}}, "objectives.a.model.density"),
        ({"unet_width": 3}, "objectives.a.model.unet_width: has no effect here"),
        ({"axes": 7}, "objectives.a.model.axes: expected 1, 2 or 3, got 7"),
    ):
        row = {"objective": "next_latent", "model": model}
        with pytest.raises(ValidationError, match=message):
            Config.model_validate({"training": SHARED, "objectives": {"a": row}})
    with pytest.raises(
        ValidationError, match="objectives.a.model.density: has no effect here; .* of the objective next"
    ):
        row = {"objective": "latent_diffusion", "model": {"density": {}}}
        Config.model_validate({"training": SHARED, "objectives": {"a": row}})


def test_a_weight_by_objective_needs_no_shares_beside_it():
    config = Config.model_validate(
        {"training": {"loss": {"objective_weights": {"next_code": 2.0}}}, "objectives": {"codes": "next_code"}}
    )
    assert budget(config.training, "next_code").loss.objective_weights == {"next_code": 2.0}
    with pytest.raises(ValidationError, match="masked_code has no share"):
        Config.model_validate(
            {"training": {"loss": {"objective_weights": {"masked_code": 2.0}}}, "objectives": {"codes": "next_code"}}
        )


def test_a_density_is_trained_and_its_bits_are_measured(tmp_path, inputs):
    config = Config.model_validate({"training": SHARED, "evaluation": EVALUATION, "objectives": HEADS})
    training = budget(config.training, config.objectives["flow"])
    output, state = str(tmp_path / "flow"), str(tmp_path / "state")
    places = inputs["tokens"], inputs["tokenizer"], output, state, corpora.Silent(), corpora.Silent()
    unified_worker.train_worker(unified_worker.Job(training, *places))
    measure_worker(Measurement(config.evaluation, training, inputs, *places[2:]))
    found = storage.read_json(f"{state}/measured.json")
    loom = OmniLoom.load(f"{output}/model")
    assert loom.config.unified.density == CouplingConfig() and loom.config.objectives == ("next_latent",)
    # Of unit normals in 16 numbers a position a model that knows nothing yet is near the entropy of such a normal.
    entropy = 0.5 * np.log2(2 * np.pi * np.e)
    assert found["image_bits_per_dimension"] == pytest.approx(entropy, abs=0.7)
    assert found["image_bits_per_dimension_low"] < found["image_bits_per_dimension"]
    numbers, pixels = loom.grid(1, 16, 16)[1] ** 2 * loom.config.unified.latent_dim, 16 * 16
    rate = (found["image_bits_per_dimension"] - 0.5 * np.log2(2 * np.pi * np.e * 0.05**2)) * numbers / pixels
    assert found["image_bits_per_pixel"] == pytest.approx(rate, rel=1e-6)
    assert 0 < found["image_bits_per_pixel_webp"] and 0 < found["image_bits_per_pixel_png"]
    assert found["seconds_to_draw"] > 0


def test_a_model_is_trained_and_measured_and_has_its_row(tmp_path, inputs):
    config = Config.model_validate(
        {"training": TRAINING, "evaluation": EVALUATION, "objectives": {"codes": "masked_code"}}
    )
    output, state = str(tmp_path / "codes"), str(tmp_path / "state")
    unified_worker.train_worker(
        unified_worker.Job(
            budget(config.training, "masked_code"),
            inputs["tokens"],
            inputs["tokenizer"],
            output,
            state,
            corpora.Silent(),
            corpora.Silent(),
        )
    )
    training = budget(config.training, "masked_code")
    measure_worker(Measurement(config.evaluation, training, inputs, output, state, corpora.Silent(), corpora.Silent()))
    found = storage.read_json(f"{state}/measured.json")
    assert {"image_class_agreement", "caption_accuracy", "caption_exact", "bits_per_byte"} <= set(found)
    cost = objective_study._cost(storage.read_json(f"{state}/metrics.json"), output)
    rows = [row for row in history.load(f"{output}/report/history.jsonl") if "tokens_per_second" in row]
    assert cost["parameters"] == sum(p.numel() for p in OmniLoom.load(f"{output}/model").model.parameters())
    rates = [row["tokens_per_second"] for row in rows]
    assert len(rows) == 3 and min(rates) <= cost["tokens_per_second"] <= max(rates)
    assert rows[-1]["units"] / max(rates) <= cost["training_seconds"] <= rows[-1]["units"] / min(rates)
    assert {"drawn_images.png", "described_images.png", "samples.png", "samples.jsonl", "history.jsonl"} <= {
        path.name for path in Path(output, "report").iterdir()
    }
    samples = [json.loads(line) for line in Path(output, "report", "samples.jsonl").read_text().splitlines()]
    assert {sample["objective"] for sample in samples if "objective" in sample} == {"masked_code"}
    row = {"name": "codes", "objective": "masked_code", **found, **cost}
    study = {"steps": 4, "split": "validation", "rows": [row]}
    html = objective_study._report(study, str(tmp_path))
    assert "Models after 4 steps each, on the validation split" in html and "codes: drawn" in html


def test_the_table_has_what_was_measured():
    study = {
        "steps": 7,
        "split": "test",
        "rows": [
            {
                "name": "a",
                "objective": "next_code",
                "caption_accuracy": 0.5,
                "frechet_pixels8": 2.0,
                "frechet_pixels8_train": 1.0,
                "parameters": 10,
                "tokens_per_second": 3.0,
                "training_seconds": 9.0,
            },
            {
                "name": "masked_code",
                "objective": "masked_code",
                "caption_exact": 0.25,
                "parameters": 11,
                "tokens_per_second": 4.0,
                "training_seconds": 8.0,
            },
        ],
    }
    assert table(study) == {
        "caption": "Models after 7 steps each, on the test split",
        "columns": [
            "objective",
            "caption accuracy",
            "exact captions",
            "frechet pixels8",
            "parameters",
            "tokens per second",
            "training seconds",
        ],
        "rows": [["a (next_code)", 0.5, None, 2.0, 10, 3.0, 9.0], ["masked_code", None, 0.25, None, 11, 4.0, 8.0]],
    }
    assert "frechet pixels8" in report.render({"title": "", "sections": [{"title": "", "tables": [table(study)]}]})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"objectives": {}}, "at least 1 item"),
        ({"objectives": {"a b": "next_code"}}, "letters, digits and _, got 'a b'"),
        ({"objectives": {"a": "nope"}}, "latent_diffusion"),
        ({"evaluation": {"gate": {}}}, "gate"),
    ],
)
def test_what_is_no_study(fields, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"training": TRAINING, **fields})
