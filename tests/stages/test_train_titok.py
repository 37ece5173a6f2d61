"""TiTok through the stages: trained on images, carried on, its rows of codes packed, drawn and described."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom, to_pixels
from omniloom.models.tokenizer.config import TiTokConfig
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data import records
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.stage import Config as EvaluateConfig
from omniloom.stages.evaluate.tokenizer import codebook, reconstruct
from omniloom.stages.evaluate.writing import describe
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.reporting import history
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker
from omniloom.stages.tokenizer.architecture import architecture
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker

LATENTS = 6


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=24, videos=0)


def config(**fields) -> train_tokenizer.Config:
    return train_tokenizer.Config.model_validate(
        {
            "loss": {"adversarial_start": 40, "adversarial_ramp": 10},
            "discriminator": {"channels": 4, "layers": 1},
            "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
            "steps": 80,
            "seed": 2,
            "optimizer": {"lr": 5e-3, "warmup_steps": 5, "weight_decay": 0.0},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 40,
            "validation_examples": 4,
            "workers": {"count": 1, "checkpoint_every": 100, "log_every": 20},
            **fields,
        }
    )


MODEL = {
    "architecture": "titok",
    "image_size": 24,
    "patch_size": 8,
    "num_latents": LATENTS,
    "width": 32,
    "heads": 2,
    "head_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "quantizer": {"kind": "vq", "codebook_size": 32, "latent_dim": 4},
}


def train(folder: Path, stage: str, pictures, settings, model, start_from=None):
    tokenizer_worker.train_worker(
        tokenizer_worker.Job(
            settings,
            model,
            pictures,
            start_from,
            str(folder / "output"),
            str(folder / "state"),
            corpora.Silent(),
            corpora.Silent(),
        )
    )
    return corpora.seal(folder / "output", stage, settings)


@pytest.fixture(scope="module")
def image_stage(tmp_path_factory, pictures):
    settings = config(model=MODEL)
    return train(tmp_path_factory.mktemp("image"), "tokenizer_image", pictures, settings, settings.model)


@pytest.fixture(scope="module")
def joint_stage(tmp_path_factory, pictures, image_stage):
    """A second stage on images, its architecture known from the first."""
    model = load_tokenizer(image_stage).config
    settings = config(steps=2, optimizer={"lr": 1e-9, "warmup_steps": 0}, engine={"zero_stage": 0, "ema_decay": 0.0})
    return train(tmp_path_factory.mktemp("joint"), "tokenizer_joint", pictures, settings, model, image_stage)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, pictures, joint_stage):
    folder, text = tmp_path_factory.mktemp("tokens"), corpora.text_tokenizer()
    (folder / "text.json").write_text(text.to_json(), encoding="utf-8")
    settings = pretokenize.Config(image_size=24, batch_size=5)
    actor = ShardTokenizer(
        settings, joint_stage, str(folder / "text.json"), str(folder / "output"), str(folder / "state")
    )
    for index, uri in enumerate(records.shards(pictures.uri)):
        actor({"index": index, "uri": uri})
    return corpora.pretokenize(folder / "output", {}, text, visual_digest=joint_stage.digest)


def as_pixels(images: list[np.ndarray]) -> torch.Tensor:
    return to_pixels(images, (24, 24))


SQUARES = [corpora.square(colour, (4, 4)) for colour in corpora.COLOURS]


def test_the_image_stage_trains_against_its_discriminator(image_stage):
    rows = history.load(image_stage.file("report", "history.jsonl"))
    losses = [row for row in rows if "loss" in row]
    assert losses[-1]["image_psnr"] > losses[0]["image_psnr"] + 2
    assert "image_discriminator_loss" in losses[-1] and "image_generator_hinge" in losses[-1]
    assert any("validation_psnr_image" in row for row in rows)
    model = load_tokenizer(image_stage)
    assert isinstance(model.config, TiTokConfig) and model.config == config(model=MODEL).model


def test_the_joint_stage_carries_it_on(image_stage, joint_stage):
    first, second = (load_tokenizer(stage) for stage in (image_stage, joint_stage))
    assert second.config == first.config
    pixels = as_pixels(SQUARES)
    with torch.no_grad():
        (wanted, codes), (found, again) = ((m(pixels)[0], m.encode(pixels).codes) for m in (first, second))
    assert (codes == again).float().mean() > 0.8  # of 24; the codebook moved by two batches
    assert (wanted - found).abs().mean() < 0.05


def test_rows_of_codes_go_through_training_to_pictures_and_captions(tmp_path, pictures, joint_stage, tokens):
    documents = TokenSet(tokens, "train")
    visual = load_tokenizer(joint_stage)
    for index in range(3):
        segment = next(s for s in documents.document(index) if s.kind == "visual")
        assert segment.grid == (1, 1, LATENTS) and segment.codes.shape == (LATENTS,)
        snapped = visual.codebook.decode_codes(torch.from_numpy(segment.codes.astype(np.int64)))
        assert torch.equal(snapped, visual.codebook.snap(torch.from_numpy(segment.latents.copy())))
    settings = train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 2,
            "steps": 3,
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "workers": {"count": 1, "checkpoint_every": 10, "log_every": 1},
            "validate_every": 10,
            "validation_rows": 2,
            "samples": {"count": 2, "num_steps": 2},
        }
    )
    unified_worker.train_worker(
        unified_worker.Job(
            settings,
            tokens,
            joint_stage,
            str(tmp_path / "output"),
            str(tmp_path / "state"),
            corpora.Silent(),
            corpora.Silent(),
        )
    )
    loom = OmniLoom.load(tmp_path / "output" / "model")
    assert loom.config.tokenizer == visual.config and loom.config.image_size == (24, 24)
    drawn = loom.text_to_image(["a red square"], VisualSampling(num_steps=2))
    assert drawn.shape == (1, 24, 24, 3) and drawn.dtype == np.uint8
    assert isinstance(loom.image_to_text([drawn[0]], text=TextSampling(max_new_tokens=3))[0], str)
    with pytest.raises(ValueError, match="this TiTok encodes 24x24, got 32x32"):
        loom.text_to_image(["a red square"], VisualSampling(size=(32, 32)))
    with pytest.raises(ValueError, match="single images, got 5 frames"):
        loom.text_to_video(["a red square"], VisualSampling(num_frames=5))
    # Encoded and decoded by the bundle as by the tokenizer itself.
    pixels = as_pixels(SQUARES)
    latents = loom.encode(pixels)
    assert latents.shape == (4, 1, 1, LATENTS, 4)
    with torch.no_grad():
        recon = visual(pixels)[0]
    decoded = loom.decode(torch.from_numpy(latents))[:, 0].astype(float)
    assert np.abs(decoded - ((recon.permute(0, 2, 3, 1).numpy() + 0.5) * 255).clip(0, 255)).max() <= 0.51
    # And judged on the held-out split.
    model = corpora.seal(tmp_path / "output", "train")
    inputs = {"records": pictures, "tokenizer": joint_stage, "tokens": tokens, "model": model}
    evaluation = Evaluation(EvaluateConfig(reconstructions=4, drawings=2, captions=2, num_steps=2), inputs, "cpu")
    for part in (reconstruct, codebook, describe, film):
        part(evaluation)
    assert evaluation.metrics["recon_psnr_image"] > 10 and 0 < evaluation.metrics["codebook_usage"] <= 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {"kinds": ["image", "video"], "sizes": [24]}}, "data.kinds: a TiTok is for images alone"),
        (
            {"data": {"sizes": [24, 32]}},
            "data.sizes: 32 at aspect 1:1 makes pictures of 32x32, model.image_size is 24x24",
        ),
        ({"data": {"sizes": [24], "aspects": ["1:1", "3:2"]}}, "data.sizes: 24 at aspect 3:2 makes pictures of 16x32"),
        ({"data": {"sizes": [20]}}, "20 is no multiple of patch_size 8"),
    ],
)
def test_what_a_titok_cannot_train_on(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**{"model": MODEL, **changes})


def test_an_oblong_titok_takes_its_aspect():
    oblong = config(model=MODEL | {"image_size": [16, 32]}, data={"sizes": [24], "aspects": ["3:2"], "image_batch": 8})
    assert oblong.model.size == (16, 32) and dataclasses.asdict(oblong.model)["image_size"] == (16, 32)


# ---- the paper's two stages ----

PROXY = {
    "patch_size": 8,
    "width": 32,
    "heads": 2,
    "head_dim": 16,
    "temporal_layers": 0,
    "spatial_layers": "t",
    "decoder_spatial_layers": "t",
    "quantizer": {"kind": "vq", "codebook_size": 16, "latent_dim": 4},
}
ALONE = {"loss": {}, "discriminator": None}  # a warm-up learns no pixels
WARM_UP = MODEL | {"num_latents": 12, "proxy_codes": 16}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, pictures):
    settings = config(model=PROXY, steps=40, **ALONE)
    return train(tmp_path_factory.mktemp("proxy"), "tokenizer_image", pictures, settings, settings.model)


@pytest.fixture(scope="module")
def warm_up(tmp_path_factory, pictures, proxy):
    optimizer = {"lr": 2e-3, "warmup_steps": 5, "weight_decay": 0.0}
    settings = config(model=WARM_UP, steps=150, validate_every=50, optimizer=optimizer, **ALONE)
    model = architecture(settings, load_tokenizer(proxy).config)
    return train(tmp_path_factory.mktemp("warm_up"), "tokenizer_joint", pictures, settings, model, proxy)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, pictures, warm_up):
    """The second stage, whose architecture is known from the first."""
    settings = train_tokenizer.KLConfig.model_validate(
        config(steps=80, validate_every=20).model_dump() | {"quantizer": None}
    )
    model = architecture(settings, load_tokenizer(warm_up).config)
    return train(tmp_path_factory.mktemp("decoder"), "tokenizer_kl", pictures, settings, model, warm_up)


def test_a_titok_learns_a_tokenizers_codes_and_then_pixels(proxy, warm_up, decoder):
    rows = history.load(warm_up.file("report", "history.jsonl"))
    logged = [row for row in rows if "loss" in row]
    first, last = logged[0], logged[-1]
    assert last["image_proxy_accuracy"] > first["image_proxy_accuracy"] + 0.15
    assert last["image_proxy_cross_entropy"] < 0.6 * first["image_proxy_cross_entropy"]
    by_proxy = [row["validation_psnr_image"] for row in rows if "validation_psnr_image" in row][-1]
    of_proxy = history.load(proxy.file("report", "history.jsonl"))[-1]["validation_psnr_image"]
    assert by_proxy > of_proxy - 1.5, "its decoder draws the codes that are predicted"
    codes, pixels = load_tokenizer(warm_up), load_tokenizer(decoder)
    assert codes.config == config(model=WARM_UP, **ALONE).model
    assert pixels.config == dataclasses.replace(codes.config, proxy_codes=None)
    before, after = codes.state_dict(), pixels.state_dict()
    kept = [name for name in after if name.startswith(("encoder.", "pre_vq.", "codebook."))]
    assert all(torch.equal(before[name], after[name]) for name in kept) and len(kept) < len(after)
    assert all(name in kept or name not in before or not torch.equal(before[name], after[name]) for name in after)
    rows = history.load(decoder.file("report", "history.jsonl"))
    psnr = [row["validation_psnr_image"] for row in rows if "validation_psnr_image" in row]
    assert psnr[-1] > psnr[0] + 4
    squares = as_pixels(SQUARES)
    with torch.no_grad():
        assert torch.equal(codes.encode(squares).codes, pixels.encode(squares).codes)


def test_a_warm_up_goes_on_where_it_was_cut_off(tmp_path, pictures, proxy):
    settings = config(model=WARM_UP, steps=8, workers={"count": 1, "checkpoint_every": 4, "log_every": 1}, **ALONE)
    whole = train(tmp_path / "whole", "tokenizer_joint", pictures, settings, settings.model, proxy)
    job = tokenizer_worker.Job(
        settings,
        settings.model,
        pictures,
        proxy,
        str(tmp_path / "cut/output"),
        str(tmp_path / "cut/state"),
        corpora.KilledAt(6),
        corpora.Silent(),
    )
    with pytest.raises(corpora.Killed):
        tokenizer_worker.train_worker(job)
    cut = train(tmp_path / "cut", "tokenizer_joint", pictures, settings, settings.model, proxy)
    first, second = (load_tokenizer(stage).state_dict() for stage in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def stages(**configs) -> dict[str, dict]:
    """A pipeline of these tokenizer stages on pictures, by the demo's sources."""
    data = {"kinds": ["image"], "sizes": [24], "image_batch": 8}
    return {name: {"data": data, "steps": 2, **config} for name, config in configs.items()}


def check(**configs) -> None:
    """Each stage by its config and those before it, as planning does."""
    upstream = {}
    for name, given in stages(**configs).items():
        kind = train_tokenizer.KLConfig if name == "tokenizer_kl" else train_tokenizer.Config
        settings = kind.model_validate(given)
        train_tokenizer.check(settings, upstream, files=False)
        upstream["tokenizer"] = train_tokenizer.resolved(settings, upstream)
    pretokenize.check(pretokenize.Config(image_size=24), upstream, files=False)


def test_the_two_stages_fit_in_a_plan():
    check(tokenizer_image={"model": PROXY}, tokenizer_joint={"model": WARM_UP}, tokenizer_kl={"quantizer": None})
    whole = {"model": WARM_UP | {"proxy_codes": None}, "quantizer": WARM_UP["quantizer"]}
    check(tokenizer_image={"model": PROXY}, tokenizer_joint={"model": WARM_UP}, tokenizer_kl=whole)
    check(tokenizer_image={"official": "released.ckpt", "model": WARM_UP}, tokenizer_joint={})


@pytest.mark.parametrize(
    "configs, message",
    [
        ({"tokenizer_image": {"model": WARM_UP}}, "model.proxy_codes: no stage before this one makes a tokenizer"),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP | {"proxy_codes": 8}}},
            "model.proxy_codes: the tokenizer that training starts from has 16 codes, got 8",
        ),
        (
            {
                "tokenizer_image": {"model": PROXY | {"quantizer": {"kind": "kl", "latent_dim": 4}}},
                "tokenizer_joint": {"model": WARM_UP},
            },
            "model.proxy_codes: the tokenizer that training starts from has no codes",
        ),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP | {"patch_size": 4}}},
            "model.patch_size: expected 8, that of the tokenizer whose codes a warm-up learns, got 4",
        ),
        (
            {"tokenizer_image": {"model": MODEL}, "tokenizer_joint": {"model": WARM_UP | {"proxy_codes": 32}}},
            "model.proxy_codes: a warm-up learns the codes of an OmniTokenizer, .* the architecture 'titok'",
        ),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP}},
            "the tokenizer is a TiTok's warm-up, which has no pixels yet",
        ),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP, "steps": 0}},
            "steps: expected at least 1",
        ),
        (
            {
                "tokenizer_image": {"model": PROXY},
                "tokenizer_joint": {"model": WARM_UP},
                "tokenizer_kl": {"quantizer": None, "steps": 0},
            },
            "steps: expected at least 1",
        ),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP}, "tokenizer_kl": {}},
            "quantizer: training goes on from a TiTok's warm-up, whose encoder and codes stay",
        ),
        (
            {
                "tokenizer_image": {"model": PROXY},
                "tokenizer_joint": {"model": WARM_UP},
                "tokenizer_kl": {"quantizer": None, "model": MODEL},
            },
            "model: training goes on from a TiTok's warm-up; expected null, or the same TiTok",
        ),
        (
            {"tokenizer_image": {"official": "released.ckpt", "model": PROXY}},
            "official: the checkpoint has its architecture with it",
        ),
        (
            {"tokenizer_image": {"model": PROXY}, "tokenizer_joint": {"model": WARM_UP, "discriminator": {}}},
            "discriminator: has no effect in the warm-up of a TiTok",
        ),
        (
            {
                "tokenizer_image": {"model": PROXY},
                "tokenizer_joint": {"model": WARM_UP, "loss": {"reconstruction": "l2"}},
            },
            "loss: has no effect in the warm-up of a TiTok",
        ),
    ],
)
def test_what_the_two_stages_refuse(configs, message):
    with pytest.raises((InputError, ValidationError)) as caught:
        check(**configs)
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize("kind", ["omni", "rae"])
def test_only_a_titok_has_a_warm_up(kind):
    with pytest.raises(ValidationError, match="proxy_codes"):
        config(model={"architecture": kind, "proxy_codes": 16} | ({"encoder": "somewhere"} if kind == "rae" else {}))
