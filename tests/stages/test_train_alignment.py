"""Alignment through the stages: features that pretokenize keeps, documents that carry them, a training that lowers the
distance, is resumed bit for bit and leaves nothing of it in the model."""

from __future__ import annotations

from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom
from omniloom.models.unified.batch import collate
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.objectives.alignment import features_on_grid
from omniloom.stages.data import records
from omniloom.stages.data.books import RowStream
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.reporting import history
from omniloom.stages.studies import objectives as objective_study
from omniloom.stages.train import config as unified_settings
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker
from omniloom.stages.train.config import unified_config, visual_sizes

BOTH = {"latent_diffusion": 1.0, "pixel_diffusion": 1.0}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, visual):
    """Of pictures and clips, with raw pixels and an encoder's features."""
    corpus = corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=24, videos=6)
    encoder = corpora.vision_encoder(tmp_path_factory.mktemp("encoder") / "siglip")
    folder, text = tmp_path_factory.mktemp("tokens"), corpora.text_tokenizer()
    storage.write_bytes(str(folder / "text.json"), text.to_json().encode())
    settings = pretokenize.Config(image_size=24, video_size=24, frames=5, pixel_patch=4, features=str(encoder))
    actor = ShardTokenizer(settings, visual, str(folder / "text.json"), str(folder / "output"), str(folder / "state"))
    for index, uri in enumerate(records.shards(corpus.uri)):
        actor({"index": index, "uri": uri})
    artifact = corpora.pretokenize(folder / "output", {}, text, visual_digest=visual.digest, pixel_patch=4)
    facts = storage.read_json(artifact.file("tokens.json"))
    storage.write_json(artifact.file("tokens.json"), facts | {"feature_dim": 24})
    return corpora.seal(folder / "output", "pretokenize")


def config(**fields) -> train_unified.Config:
    return train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 3, "heads": 2, "time_dim": 16, "pixel_bottleneck": 8},
            "objectives": BOTH,
            "alignment": {},
            "packing": {"length": 256, "window_rows": 8},
            "batch_rows": 2,
            "steps": 6,
            "seed": 3,
            "optimizer": {"lr": 5e-3, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 1},
            "validate_every": 3,
            "validation_rows": 2,
            "samples": {"count": 1, "num_steps": 2},
            **fields,
        }
    )


def train(folder: Path, tokens, visual, progress=None, **fields) -> tuple[dict, list[dict]]:
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
    rows = history.load(str(folder / "output" / "report" / "history.jsonl"))
    return (
        load_file(folder / "output" / "model" / "unified.safetensors"),
        [{name: value for name, value in row.items() if not name.endswith("per_second")} for row in rows],
    )


def test_targets_of_diffusions_carry_the_features_of_their_picture(tokens):
    found, settings = TokenSet(tokens, "train"), config(objectives={**BOTH, "masked_code": 1.0})
    model = unified_config(settings, found.facts["vocab_size"], visual_sizes(found.facts), found.facts["specials"])
    with_features, without = Documents(found, model, features=True), Documents(found, model)
    planner, seen = Planner(found.index, settings.packing, 0, settings.objectives), set()
    for row in RowStream(planner).take(12):
        built = [with_features.segments(placed) for placed in row]
        for placed, segments in zip(row, built, strict=True):
            token = next(t for t in found.document(placed.index) if t.kind == "visual")
            for segment, plain in zip(segments, without.segments(placed), strict=True):
                assert plain.features is None
                aligned = segment.kind == "visual" and segment.loss and placed.objective in BOTH
                assert (segment.features is not None) == aligned
                if aligned:
                    seen.add((placed.objective, segment.grid))
                    wanted = features_on_grid(torch.from_numpy(token.features.copy()), token.feature_grid, segment.grid)
                    np.testing.assert_array_equal(segment.features, wanted)
        batch = collate([built], 256, model, feature_dim=24)
        assert batch.targets["alignment"] == batch.targets["latent_diffusion"] + batch.targets["pixel_diffusion"]
    assert seen == {
        ("latent_diffusion", (1, 3, 3)),
        ("latent_diffusion", (2, 3, 3)),
        ("pixel_diffusion", (1, 6, 6)),
        ("pixel_diffusion", (5, 6, 6)),
    }


def test_training_lowers_the_distance_and_ends_with_the_same_weights_when_killed(tmp_path, tokens, visual):
    class Kill(corpora.Silent):
        def __call__(self, done, *arguments, **facts):
            if done == 5:
                raise corpora.Killed

    state, rows = train(tmp_path / "straight", tokens, visual)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "broken", tokens, visual, Kill())
    again, curve = train(tmp_path / "broken", tokens, visual)
    assert all(torch.equal(again[name], value) for name, value in state.items()) and curve == rows
    distances = [row["alignment_loss"] for row in rows if "loss" in row]
    assert len(distances) == 6 and distances[-1] < 0.8 * distances[0]
    # Of the visible loss it is one part of several.
    first = next(row for row in rows if "loss" in row)
    parts = first["text_loss"] + 5 * sum(first[f"{name}_loss"] for name in BOTH) + 0.5 * first["alignment_loss"]
    assert first["loss"] == pytest.approx(parts, rel=1e-5)
    metrics = storage.read_json(str(tmp_path / "straight" / "state" / "metrics.json"))
    assert "validation_latent_diffusion_loss" in metrics and "validation_alignment_loss" not in metrics
    assert not any("mlp.4" in name or "alignment" in name for name in state)
    model = OmniLoom.load(tmp_path / "straight" / "output" / "model")
    assert model.text_to_image(["a red square"], VisualSampling(num_steps=1)).shape == (1, 24, 24, 3)


def test_of_weight_0_and_without_it_training_is_the_same(tmp_path, tokens, visual):
    fields = {"steps": 3}
    with_zero, rows = train(tmp_path / "zero", tokens, visual, **fields, alignment={"weight": 0})
    without, plain = train(tmp_path / "without", tokens, visual, **fields, alignment=None)
    assert with_zero.keys() == without.keys()
    # But for rounding: the gradient's norm, by which it is clipped, adds up the projection's zeros too, so that the
    # others are added in another order.
    for name, value in without.items():
        torch.testing.assert_close(with_zero[name], value, rtol=1e-5, atol=1e-6)
    assert "alignment_loss" in rows[0] and not any("alignment_loss" in row for row in plain)
    losses = [row["loss"] for row in plain if "loss" in row]
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": {"zero_stage": 3, "precision": "bf16", "ema_decay": 0.9}},
        {"lr_scale": {"visual": 0.0}, "alignment": {"layer": 3, "weight": 2.0}},
        {"workers": {"count": 1, "accumulate": 2, "log_every": 1}},
    ],
)
def test_it_trains_sharded_frozen_and_accumulated(tmp_path, tokens, visual, fields):
    """With pictures' own parts frozen the projection learns, which it must for hidden states to be told anything."""
    _, rows = train(tmp_path, tokens, visual, steps=12, samples={"count": 0}, **fields)
    distances = [row["alignment_loss"] for row in rows if "loss" in row]
    assert np.mean(distances[-3:]) < 0.8 * distances[0]
    assert rows[0]["grad_norm_visual"] > 0


def test_what_cannot_be_aligned_is_named(tokens, visual):
    with pytest.raises(ValidationError, match="alignment: expected null without a share of latent_diffusion or pixel"):
        config(objectives={"next_code": 1})
    with pytest.raises(ValidationError, match="alignment.layer: expected at most the model's 3, got 4"):
        config(alignment={"layer": 4})
    with pytest.raises(ValidationError, match="nope"):
        config(alignment={"nope": 4})
    train_unified.check_tokens(config(), tokens, visual)
    facts = TokenSet(tokens, "train").facts
    with pytest.raises(InputError, match="hold no features; set stages.pretokenize.features") as caught:
        unified_settings.feature_dim(config(), facts | {"feature_dim": None})
    assert caught.value.field == "alignment"
    assert unified_settings.feature_dim(config(alignment=None), facts) is None
    assert objective_study.budget(config(), "pixel_diffusion").alignment is not None
    assert objective_study.budget(config(), "next_code").alignment is None
