"""Training pictures by several objectives in one run: what is planned, packed, trained, resumed and drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import BundleConfig, OmniLoom, to_pixels
from omniloom.models.unified.batch import collate, document_length
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import report as evaluation_report
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.gate import Verdict
from omniloom.stages.evaluate.stage import Config as EvaluateConfig
from omniloom.stages.evaluate.writing import describe, retrieve
from omniloom.stages.reporting import history, report
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker
from omniloom.stages.train.config import unified_config, visual_sizes

ALL = dict.fromkeys(OBJECTIVES, 1.0)
PATCH = 4


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, visual):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    train = corpora.token_rows(text, rng, images=40, videos=4, texts=8, documents=12, pixel_patch=PATCH)
    held_out = corpora.token_rows(text, rng, images=12, videos=1, texts=2, documents=0, pixel_patch=PATCH)
    return corpora.pretokenize(
        tmp_path_factory.mktemp("tokens") / "tokens",
        {"train": [train[:20], train[20:]], "validation": [held_out]},
        text,
        visual_digest=visual.digest,
        pixel_patch=PATCH,
    )


def config(**fields) -> train_unified.Config:
    of_pixels = {"pixel_bottleneck": 8} if "pixel_diffusion" in fields.get("objectives", ALL) else {}
    return train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16, **of_pixels},
            "objectives": ALL,
            "packing": {"length": 256, "window_rows": 8, "noisy_context": 0.5},
            "batch_rows": 4,
            "steps": 8,
            "seed": 3,
            "optimizer": {"lr": 5e-3, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
            "validate_every": 4,
            "validation_rows": 6,
            "samples": {"count": 2, "num_steps": 2},
            **fields,
        }
    )


def train(folder: Path, tokens, visual, progress=None, **fields) -> None:
    unified_worker.train_worker(
        unified_worker.Job(
            config(**fields),
            tokens,
            visual,
            output=str(folder / "output"),
            state=str(folder / "state"),
            tracker=corpora.Silent(),
            progress=progress or corpora.Silent(),
        )
    )


def curve(folder: Path) -> list[dict]:
    rows = history.load(str(folder / "output" / "report" / "history.jsonl"))
    return [{name: value for name, value in row.items() if not name.endswith("per_second")} for row in rows]


def targets_of(tokens, settings) -> dict[str, float]:
    """By what is learnt, the targets of a whole training, of batches that are made once more."""
    found = TokenSet(tokens, "train")
    model = unified_config(settings, found.facts["vocab_size"], visual_sizes(found.facts), found.facts["specials"])
    documents, planner = Documents(found, model), Planner(found.index, settings.packing, settings.seed, ALL)
    total: Counter = Counter()
    for row in RowStream(planner).take(settings.steps * settings.batch_rows):
        targets = collate([[documents.segments(placed) for placed in row]], 256, model).targets
        total.update({name: targets[name] for name in ("text", *ALL)})
    return dict(total)


# ---- the plan ----


def test_shares_are_kept_and_the_arrangement_does_not_depend_on_them(tokens):
    found = TokenSet(tokens, "train")
    packing = PackingConfig(length=256, window_rows=200, noisy_context=0.3)
    mixed, one = (
        [p for row in RowStream(Planner(found.index, packing, 5, shares)).take(180) for p in row if p.view != "text"]
        for shares in ({"next_code": 3, "masked_code": 1}, {"masked_code": 1})
    )
    counts = Counter(p.objective for p in mixed)
    assert counts["next_code"] / len(mixed) == pytest.approx(0.75, abs=0.03) and len(counts) == 2
    noisy = [p.context_time > 0 for p in mixed if p.objective == "masked_code"]
    assert np.mean(noisy) == pytest.approx(0.3, abs=0.06)
    assert not any(p.context_time for p in mixed if p.objective == "next_code")
    assert [(p.index, p.view, p.length, p.dropped) for p in one] == [
        (p.index, p.view, p.length, p.dropped) for p in mixed
    ]


def test_planned_lengths_are_those_of_each_representation(tokens):
    found = TokenSet(tokens, "train")
    settings = config()
    model = unified_config(settings, found.facts["vocab_size"], visual_sizes(found.facts), found.facts["specials"])
    assert (model.latent_dim, model.pixel_dim, model.codebook_size) == (4, 48, 64)
    documents, planner = Documents(found, model), Planner(found.index, settings.packing, 0, ALL)
    seen = Counter()
    for row in RowStream(planner).take(40):
        built = [documents.segments(placed) for placed in row]
        for placed, segments in zip(row, built, strict=True):
            assert document_length(segments) == placed.length
            for segment in segments:
                if segment.kind == "visual":
                    seen[placed.objective, segment.loss, segment.max_time] += 1
                    assert segment.objective == placed.objective
        collate([built], 256, model)
    assert {(name, loss) for name, loss, _ in seen} == {(name, loss) for name in ALL for loss in (True, False)}
    assert {time for _, loss, time in seen if not loss} == {0.0, 0.3}
    assert all(time == 0 for name, loss, time in seen if name == "next_code" and not loss)


# ---- the worker ----


def test_a_mix_of_all_four_trains_draws_and_ends_with_the_same_weights_when_killed(tmp_path, tokens, visual):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(straight, tokens, visual)
    with pytest.raises(corpora.Killed):  # after the checkpoint at 3
        train(broken, tokens, visual, corpora.KilledAt(5))
    train(broken, tokens, visual)
    wanted, found = (load_file(folder / "output" / "model" / "unified.safetensors") for folder in (straight, broken))
    assert set(wanted) == set(found) and {"code_in.weight", "pixel_in.0.weight", "visual_in.weight"} <= set(wanted)
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
    assert curve(broken) == curve(straight)
    losses = {f"{name}_loss" for name in ALL} | {"text_loss"}
    assert all(losses <= set(row) for row in curve(straight) if "loss" in row)
    counted, before = Counter(), 0
    for row in (row for row in curve(straight) if "loss" in row):
        counted.update({name: (row["step"] - before) * row[f"{name}_targets"] for name in ("text", *ALL)})
        before = row["step"]
    assert counted == pytest.approx(targets_of(tokens, config()))
    metrics = storage.read_json(str(straight / "state" / "metrics.json"))
    assert {f"validation_{name}" for name in losses} <= set(metrics)
    names = {path.name for path in (straight / "output" / "report").glob("samples*.png")}
    assert names == {"samples.png", *(f"samples_{name}.png" for name in list(ALL)[1:])}
    model = OmniLoom.load(straight / "output" / "model")
    assert model.config.objectives == tuple(ALL) and model.config.pixel_diffusion.predict == "x"
    for name in ALL:
        images = model.text_to_image(["a red square"], VisualSampling(num_steps=2, objective=name))
        assert images.shape == (1, 24, 24, 3) and images.dtype == np.uint8
        how = VisualSampling(num_steps=1, objective=name)
        assert isinstance(model.image_to_text([images[0]], "", TextSampling(max_new_tokens=3), how)[0], str)
        assert model.text_to_video(["a red square"], how).shape == (1, 5, 24, 24, 3)
    with pytest.raises(ValueError, match="objective: expected one of latent_diffusion"):
        model.text_to_image(["a"], VisualSampling(objective="nope"))


@pytest.mark.parametrize("name", list(ALL))
def test_one_objective_alone_has_its_parts_alone_and_learns(tmp_path, tokens, visual, name):
    train(
        tmp_path,
        tokens,
        visual,
        objectives={name: 1.0},
        steps=24,
        workers={"count": 1, "log_every": 4},
        packing={"length": 256, "window_rows": 8, "mixture": {"image": 1.0}},
    )
    rows = [row for row in curve(tmp_path) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["visual_loss"] > 0
    state = load_file(tmp_path / "output" / "model" / "unified.safetensors")
    prefixes = {key.split("_")[0] for key in state if key.endswith(("_out.weight", "_out.bias"))}
    assert prefixes == {OBJECTIVES[name].representation.prefix}


def test_context_is_shown_in_training_as_in_sampling(tmp_path, tokens, visual):
    train(tmp_path, tokens, visual, steps=1)
    model, found = OmniLoom.load(tmp_path / "output" / "model"), TokenSet(tokens, "train")
    picture = corpora.square("red", (4, 9))
    pixels = to_pixels([picture], (24, 24))
    documents = Documents(found, model.config.unified)
    # What pretokenize keeps of this picture, through the training's reader.
    with torch.no_grad():
        encoded = model.tokenizer.encode(pixels)
    patches = picture.reshape(6, PATCH, 6, PATCH, 3).swapaxes(1, 2).reshape(36, -1)
    token = found.document(0)[0].__class__(
        "visual",
        None,
        encoded.codes.flatten().numpy(),
        encoded.latents.permute(0, 2, 3, 4, 1).reshape(9, 4).numpy(),
        (1, 3, 3),
        True,
        patches,
        (1, 6, 6),
    )
    for name in ALL:
        values, grid = documents.picture(token, name)
        shown = model.encode(pixels, name)
        assert shown.shape[1:4] == grid
        np.testing.assert_allclose(shown.reshape(values.shape), values, atol=1e-5)
        drawn = model.decode(torch.from_numpy(shown), name)
        assert drawn.shape == (1, 1, 24, 24, 3)
        if name == "pixel_diffusion":
            np.testing.assert_array_equal(drawn[0, 0], picture)


def test_what_cannot_be_trained_is_named(tokens):
    facts = {**TokenSet(tokens, "train").facts, "pixel_patch": None}
    with pytest.raises(InputError, match="no raw pixels; set stages.pretokenize.pixel_patch"):
        unified_config(config(), 300, visual_sizes(facts), None)
    with pytest.raises(InputError, match="continuous and has no codes"):
        unified_config(config(objectives={"next_code": 1}), 300, visual_sizes({**facts, "codebook_size": None}), None)
    with pytest.raises(InputError, match="latent_diffusion cannot be trained: the tokens are of texts alone"):
        unified_config(config(), 300, visual_sizes({**facts, "latent_mean": []}), None)
    with pytest.raises(ValidationError, match="packing.mixture: image, video holds pictures, and objectives"):
        config(objectives={"next_code": 0}, packing={"mixture": {"image": 0.5, "video": 0.2, "text": 0.3}})
    with pytest.raises(ValidationError, match="objective_weights: next_code has no share"):
        config(objectives={"masked_code": 1}, loss={"objective_weights": {"next_code": 2}})
    with pytest.raises(ValidationError, match="objectives"):
        config(objectives={"nope": 1})
    assert config(pixel_diffusion={"shift": 2.0}).pixel_diffusion.predict == "x"
    assert config().pixel_diffusion.time_mean == 0.8
    with pytest.raises(ValidationError, match="nope"):
        config(pixel_diffusion={"nope": 1})


# ---- the figures ----


def evaluated(folder: Path, visual, tokens, objectives: tuple[str, ...], **sizes: Any) -> Evaluation:
    """The measurements of an untrained model on coloured squares."""
    text, tokenizer = corpora.text_tokenizer(), load_tokenizer(visual)
    facts = TokenSet(tokens, "train").facts
    torch.manual_seed(0)
    model = UnifiedModel(
        UnifiedConfig(
            vocab_size=text.vocab_size, width=32, layers=1, heads=2, time_dim=16, specials=text.specials, **sizes
        )
    )
    bundle = BundleConfig(
        unified=model.config,
        diffusion=DiffusionConfig(),
        tokenizer=tokenizer.config,
        latent_mean=facts["latent_mean"],
        latent_std=facts["latent_std"],
        image_size=(24, 24),
        num_frames=5,
        objectives=objectives,
        pixel_patch=PATCH,
    )
    OmniLoom(bundle, model, tokenizer, text).save(folder / "train" / "model")
    storage.write_bytes(
        str(folder / "train" / "report" / "history.jsonl"), b'{"step": 1, "text_loss": 2.0, "masked_code_loss": 3.0}\n'
    )
    trained = corpora.seal(folder / "train", "train")
    trained.manifest.update(pipeline="squares", metrics={"parameters": 1}, times={"seconds": 1.0}, code=None)
    storage.write_bytes(str(folder / "joint" / "report" / "history.jsonl"), b"")
    inputs = {
        "records": corpora.ingest(folder / "ingest"),
        "tokenizer": corpora.seal(folder / "joint", "joint"),
        "tokens": tokens,
        "model": trained,
    }
    settings = EvaluateConfig(split="validation", drawings=4, captions=4, num_steps=1, class_examples=2)
    evaluation = Evaluation(settings, inputs, "cpu")
    for part in (draw, describe, retrieve, film):
        part(evaluation)
    return evaluation


def test_figures_are_by_objective_and_stand_in_one_table(tmp_path, visual, tokens):
    every = evaluated(tmp_path, visual, tokens, tuple(ALL), latent_dim=4, pixel_dim=48, codebook_size=64, density={})
    for name in ("image_class_agreement", "caption_accuracy", "caption_exact"):
        assert name not in every.metrics and all(0 <= every.metrics[f"{name}_{o}"] <= 1 for o in ALL)
    assert {f"{kind}_{o}" for o in ALL for kind in ("drawn_images", "described_images", "drawn_videos")} == set(
        every.pictures
    )
    assert {sample["objective"] for sample in every.samples} == set(ALL)
    content = evaluation_report.content(every, Verdict(None))
    table = next(section for section in content["sections"] if section["title"] == "Objectives")["tables"][0]
    assert table["columns"][:3] == ["objective", "image_class_agreement", "caption_accuracy"]
    assert [row[0] for row in table["rows"]] == list(ALL)
    assert [row[2] for row in table["rows"]] == [every.metrics[f"caption_accuracy_{o}"] for o in ALL]
    assert "masked_code_loss" in report.render(content)


def test_one_objective_has_the_plain_names(tmp_path, visual, tokens):
    one = evaluated(tmp_path, visual, tokens, ("masked_code",), codebook_size=64)
    assert {"image_class_agreement", "caption_accuracy", "caption_exact"} <= set(one.metrics)
    assert set(one.pictures) == {"drawn_images", "described_images", "drawn_videos"}
    content = evaluation_report.content(one, Verdict(None))
    assert "Objectives" not in [section["title"] for section in content["sections"]]
