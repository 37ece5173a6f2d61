"""Stage `distill` in the worker of `train`: what it starts from and writes, how it is resumed, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.distill import stage as distill
from omniloom.stages.evaluate.config import Config as EvaluateConfig
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.exported import export_gap
from omniloom.stages.replay import Replay, replay
from omniloom.stages.reporting import history
from omniloom.stages.train import ledger, replayed, worker
from omniloom.stages.train import stage as train

OWN = {"num_steps": 3, "guidance_scale": 1.0, "sampler": "ddim"}
STEPS = {"reflow": 3, "consistency": 3, "shortcut": 2}
METHODS = {method: {"method": method, "num_steps": steps} for method, steps in STEPS.items()}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, visual):
    rng, text = np.random.default_rng(0), corpora.text_tokenizer()
    rows = corpora.token_rows(text, rng, images=16, videos=2, texts=6, documents=2)
    held_out = corpora.token_rows(text, rng, images=4, videos=1, texts=1, documents=0)
    splits = {"train": [rows], "validation": [held_out]}
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    return corpora.pretokenize(folder, splits, text, visual_digest=visual.digest)


SHARED = {
    "steps": 4,
    "seed": 3,
    "optimizer": {"lr": 5e-3, "warmup_steps": 2},
    "engine": {"zero_stage": 1, "ema_decay": 0.9},
    "workers": {"count": 1, "checkpoint_every": 2, "log_every": 1},
    "validate_every": 4,
    "validation_rows": 2,
    "samples": {"count": 1},
}


def trained_as(**fields) -> train.Config:
    shape = {"width": 32, "layers": 2, "heads": 2, "time_dim": 16}
    packing = {"length": 64, "window_rows": 6}
    return train.Config.model_validate({**SHARED, "model": shape, "packing": packing, "batch_rows": 4, **fields})


def config(**fields) -> distill.Config:
    own = {"method": "consistency", "num_steps": 3, "teacher_steps": 5}
    return distill.Config.model_validate({**SHARED, **own, **fields})


def run(folder: Path, training, tokens, visual, distillation=None, progress=None):
    known = {"format": ledger.FORMAT, "stage": "train", "pipeline": "p", "training": "0" * 64}
    known["periods"] = [ledger.period(training, "0" * 64, tokens)]
    job = worker.Job(
        training,
        tokens,
        visual,
        output=str(folder / "output"),
        state=str(folder / "state"),
        progress=progress or corpora.Silent(),
        tracker=corpora.Silent(),
        ledger=known,
        distillation=distillation,
    )
    worker.train_worker(job)
    metrics = storage.load_json(str(folder / "state" / "metrics.json"))
    artifact = corpora.seal(folder / "output", "distill" if distillation else "train", training)
    artifact.manifest["metrics"] = metrics
    return artifact


def distilled(folder: Path, teacher, tokens, visual, progress=None, **fields):
    settings = config(**fields)
    training = settings.training(distill.teacher_of(teacher), teacher.file("model"))
    return run(folder, training, tokens, visual, settings.distillation, progress)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokens, visual):
    return run(tmp_path_factory.mktemp("teacher"), trained_as(), tokens, visual)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_starts_as_its_teacher_and_says_how_it_is_sampled(tmp_path, teacher, tokens, visual, method):
    frozen = distilled(
        tmp_path / "frozen", teacher, tokens, visual, **METHODS[method], optimizer={"lr": 1e-12, "weight_decay": 0}
    )
    before = load_file(teacher.file("model", "unified.safetensors"))
    started = load_file(frozen.file("model", "unified.safetensors"))
    own = {name for name in started if name.startswith("step.")}  # what it is told of steps, which says nothing yet
    assert own == set(started) - set(before) and bool(own) == (method == "shortcut")
    assert not own or started["step.mlp.2.weight"].abs().max() < 1e-8
    for name, value in before.items():
        torch.testing.assert_close(started[name], value, rtol=0, atol=1e-8)
    moved = distilled(tmp_path / "moved", teacher, tokens, visual, **METHODS[method])
    after = load_file(moved.file("model", "unified.safetensors"))
    assert any(not torch.equal(value, before[name]) for name, value in after.items() if name in before)
    assert not own or after["step.mlp.2.weight"].abs().max() > 1e-4
    loom, usual = OmniLoom.load(moved.file("model")), VisualSampling(**OWN | {"num_steps": STEPS[method]})
    assert loom.usual == usual and OmniLoom.load(teacher.file("model")).usual == VisualSampling()
    drawn = loom.text_to_image(["a red square"], seeds=5)
    asked = loom.text_to_image(["a red square"], usual, seeds=5)
    np.testing.assert_array_equal(drawn, asked)
    rows = history.load(moved.file("report", "history.jsonl"))
    assert all(np.isfinite(row["visual_loss"]) for row in rows if "visual_loss" in row)
    assert moved.manifest["metrics"]["validation_text_loss"] > 0


class _Stop(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_distillation_goes_on_bit_for_bit(tmp_path, teacher, tokens, visual, method):
    straight = distilled(tmp_path / "straight", teacher, tokens, visual, **METHODS[method])

    class Killer(corpora.Silent):
        def __call__(self, done=0, *arguments, **facts):
            if done == 3:
                raise _Stop

    with pytest.raises(_Stop):
        distilled(tmp_path / "killed", teacher, tokens, visual, Killer(), **METHODS[method])
    again = distilled(tmp_path / "killed", teacher, tokens, visual, **METHODS[method])
    ours, theirs = (load_file(a.file("model", "unified.safetensors")) for a in (straight, again))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_step_is_replayed_bit_for_bit(tmp_path, teacher, tokens, visual):
    """With its teacher; each document has its own loss, drawn pictures that which is distilled."""
    settings = config()
    training = distill.training_of(settings, teacher)
    run(tmp_path, training, tokens, visual, settings.distillation)
    curve = [row for row in history.load(str(tmp_path / "output" / "report" / "history.jsonl")) if "loss" in row]
    silent = corpora.Silent()
    job = worker.Job(training, tokens, visual, "", "", silent, silent, distillation=settings.distillation)
    found = replay(Replay(replayed.parts, job, str(tmp_path / "state"), 2, curve, [], 1, 2))
    assert (found["from"], found["equal"], found["row"]["step"]) == (2, True, 3)
    assert all(document["grad_norm"] > 0 for document in found["documents"])
    plain = replace(job, distillation=None)
    other = replay(Replay(replayed.parts, plain, str(tmp_path / "state"), 2, curve, [], 1, 2))
    assert other["equal"] is False
    told = [{d["id"]: d["loss"] for d in each["documents"] if d["task"] == "text"} for each in (found, other)]
    assert told[0] == told[1] != {}


def test_evaluate_draws_as_the_model_says_unless_it_is_told(tmp_path, teacher, tokens, visual):
    made = distilled(tmp_path, teacher, tokens, visual)
    inputs = {"model": made, "tokens": tokens, "tokenizer": visual}
    unasked = Evaluation(EvaluateConfig(), inputs, "cpu")
    assert unasked.visual() == VisualSampling(**OWN)
    assert unasked.training["objectives"] == {"latent_diffusion": 1.0} and unasked.packing.length == 64
    asked = Evaluation(EvaluateConfig(num_steps=20), inputs, "cpu")
    assert asked.visual() == VisualSampling(**OWN | {"num_steps": 20})
    plain = Evaluation(EvaluateConfig(num_steps=20), {**inputs, "model": teacher}, "cpu")
    assert plain.visual() == VisualSampling()
    # The validation losses are those of any training, so that the exported weights can be told from others.
    export_gap(unasked)
    assert unasked.metrics["export_gap"] < 1e-4


def test_what_was_written_down_counts_where_it_is_the_default():
    plain, written, other = EvaluateConfig(), EvaluateConfig(num_steps=20), EvaluateConfig(num_steps=7)
    assert plain.enters_fingerprint == {} == other.enters_fingerprint
    assert written.enters_fingerprint == {"written": "num_steps"}


def test_the_training_is_the_teachers_with_what_is_said():
    teacher = trained_as(
        objectives={"latent_diffusion": 0.7, "masked_code": 0.3},
        loss={"visual_weight": 3.0},
        diffusion={"formulation": "vp", "predict": "noise"},
        packing={"length": 64, "mixture": {"schedule": [
            {"step": 0, "shares": {"text": 0.5}}, {"step": 2, "shares": {"text": 0.2}},
        ]}},
    )  # fmt: skip
    found = config(steps=9, batch_rows=2).training(teacher, "/models/one")
    assert (found.steps, found.batch_rows, found.init_from) == (9, 2, "/models/one")
    assert found.packing.mixture == {"text": 0.2} and found.packing.length == 64
    assert (found.trained, found.diffusion, found.loss) == (teacher.trained, teacher.diffusion, teacher.loss)
    upstream = {"model": teacher}
    resolved = distill.resolved(config(), upstream)
    assert resolved.trained == teacher.trained and resolved.model == teacher.model and resolved.init_from is None
    assert distill.resolved(config(), {"model": None}) is None


def test_a_teacher_from_before_the_model_had_some_of_its_fields(teacher):
    known = storage.read_json(teacher.file("ledger.json"))
    del known["periods"][-1]["config"]["model"]["long_skips"]
    earlier = ledger.config_of(known["periods"][-1])
    assert earlier == distill.teacher_of(teacher) and not earlier.model.long_skips


@pytest.mark.parametrize(
    "teacher, fields, field, told",
    [
        ({"objectives": {"next_code": 1.0}}, {}, "method", "draws by next_code, which is no diffusion"),
        ({"objectives": {}, "packing": {"length": 64}}, {}, "method", "knows text alone"),
        ({}, {"engine": {"sequence_parallel": 2}, "workers": {"count": 2}}, "engine.sequence_parallel", "expected 1"),
        ({}, {"workers": {"count": 3}}, "batch_rows", "4 does not divide by workers.count"),
        ({"diffusion": {"formulation": "edm"}}, METHODS["shortcut"], "method", "sampling_grid edm has no times"),
        ({"diffusion": {"predict": "noise"}}, METHODS["shortcut"], "method", "predicts noise"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_anything_starts(teacher, fields, field, told):
    with pytest.raises(InputError, match=told) as error:
        distill.check(config(**fields), {"model": trained_as(**teacher)})
    assert error.value.field == field


def test_a_shortcut_halves_its_steps():
    with pytest.raises(ValueError, match="num_steps: expected a power of two with method: shortcut, got 3"):
        config(method="shortcut")
    assert config(num_steps=3).num_steps == 3
    other = {"diffusion": {"formulation": "edm"}, "objectives": {"pixel_diffusion": 1.0}}
    assert config(**METHODS["shortcut"]).training(trained_as(**other)).trained == ("pixel_diffusion",)


def test_what_is_trained_from_a_shortcut_is_told_no_steps(tmp_path, teacher, tokens, visual):
    """It goes on with the diffusion that the shortcut is at size 0, and can be distilled again."""
    made = distilled(tmp_path / "made", teacher, tokens, visual, **METHODS["shortcut"])
    known = load_file(made.file("model", "unified.safetensors"))
    again = trained_as(model={}, init_from=made.file("model"), optimizer={"lr": 1e-12, "weight_decay": 0})
    found = load_file(run(tmp_path / "again", again, tokens, visual).file("model", "unified.safetensors"))
    assert set(found) == {name for name in known if not name.startswith("step.")}
    for name, value in found.items():
        torch.testing.assert_close(value, known[name], rtol=0, atol=1e-8)


def test_zero_3_trains_what_zero_1_does(tmp_path, teacher, tokens, visual):
    """The student is asked twice in a step, once without a gradient."""
    found = [
        distilled(tmp_path / str(stage), teacher, tokens, visual, engine={"zero_stage": stage, "ema_decay": 0.9})
        for stage in (1, 3)
    ]
    ours, theirs = (load_file(a.file("model", "unified.safetensors")) for a in found)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)
