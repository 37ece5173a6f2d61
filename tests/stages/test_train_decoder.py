"""A tokenizer's decoder trained alone, against a discriminator by each loss: codes stay what they are."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra.errors import InputError
from omniloom.models.pixels import to_pixels
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.reporting import history
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker

MODEL = {
    "patch_size": 8,
    "width": 16,
    "heads": 2,
    "head_dim": 8,
    "spatial_layers": "t",
    "decoder_spatial_layers": "t",
    "temporal_layers": 1,
    "quantizer": {"kind": "vq", "codebook_size": 16, "latent_dim": 4},
}
ADVERSARIES = {
    "hinge": {},
    "wasserstein": {"loss": "wasserstein", "r1_every": 1},
    "relativistic": {"loss": "relativistic", "r1_gamma": 0.1, "r1_every": 1},
}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=16, videos=0)


def config(**fields) -> train_tokenizer.Config:
    return train_tokenizer.Config.model_validate(
        {
            "data": {"kinds": ["image"], "sizes": [24], "image_batch": 4},
            "steps": 6,
            "optimizer": {"lr": 5e-3, "warmup_steps": 1, "weight_decay": 0.1},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 6,
            "validation_examples": 2,
            "workers": {"count": 1, "checkpoint_every": 100, "log_every": 1},
            **fields,
        }
    )


def train(folder: Path, pictures, settings, model, start_from=None):
    places = str(folder / "output"), str(folder / "state")
    job = tokenizer_worker.Job(settings, model, pictures, start_from, *places, corpora.Silent(), corpora.Silent())
    tokenizer_worker.train_worker(job)
    return corpora.seal(folder / "output", "tokenizer_joint" if start_from else "tokenizer_image", settings)


@pytest.fixture(scope="module")
def first(tmp_path_factory, pictures):
    settings = config(model=MODEL)
    return train(tmp_path_factory.mktemp("first"), pictures, settings, settings.model)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_decoder_alone_moves(tmp_path, pictures, first, name):
    discriminator = {"channels": 4, "layers": 1, **ADVERSARIES[name]}
    settings = config(train_only="decoder", discriminator=discriminator, loss={"image_adversarial": 0.1})
    made = train(tmp_path, pictures, settings, load_tokenizer(first).config, first)
    before, after = (load_file(a.file("tokenizer", "tokenizer.safetensors")) for a in (first, made))
    moved = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == {"decoder", "post_vq"}
    seen = to_pixels([corpora.square(colour, (4, 4)) for colour in corpora.COLOURS], (24, 24))
    codes = [load_tokenizer(artifact).encode(seen).codes for artifact in (first, made)]
    assert torch.equal(*codes)
    row = next(row for row in history.load(made.file("report", "history.jsonl")) if "loss" in row)
    taken = {"hinge": set(), "wasserstein": {"gradient_penalty"}, "relativistic": {"r1", "r2"}}[name]
    figures = {f"image_{figure}" for figure in (f"generator_{name}", "discriminator_loss", *taken)}
    assert figures <= row.keys() and all(abs(row[figure]) < 1e3 for figure in figures)


def test_muon_steps_the_matrices_of_blocks_and_adamw_the_rest_and_the_discriminator(pictures):
    own = {"lr": 5e-3, "warmup_steps": 1, "muon": {}}
    settings = config(model=MODEL, optimizer=own, discriminator={"channels": 4, "layers": 1}, engine={"zero_stage": 0})
    places = "", "", corpora.Silent(), corpora.Silent()
    engines = tokenizer_worker.engines_of(tokenizer_worker.Job(settings, settings.model, pictures, None, *places), 1)
    names = {id(parameter): name for name, parameter in engines["generator"].module.named_parameters()}
    chosen = {
        names[id(parameter)]
        for group in engines["generator"].engine.optimizer.param_groups
        if "momentum" in group
        for parameter in group["params"]
    }
    parts = ("attention.to_qkv", "attention.to_out", "feedforward.up", "feedforward.down")
    blocks = ("encoder.enc_spatial", "encoder.enc_temporal", "decoder.dec_temporal", "decoder.dec_spatial")
    assert chosen == {f"tokenizer.{block}_transformer.layers.0.{part}.weight" for block in blocks for part in parts}
    assert not any("momentum" in group for group in engines["discriminator"].engine.optimizer.param_groups)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no stage before this one") as error:
        train_tokenizer.check(config(model=MODEL, train_only="decoder"), {})
    assert error.value.field == "train_only"
    with pytest.raises(ValidationError, match="quantizer: expected null with train_only"):
        config(train_only="decoder", quantizer={"kind": "kl", "latent_dim": 4})
    with pytest.raises(ValidationError, match="train_only: expected null in the warm-up"):
        config(
            train_only="decoder",
            model={"architecture": "titok", "image_size": 24, "patch_size": 8, "num_latents": 4, "proxy_codes": 16},
        )
    for wrong in ({"loss": "relativistic"}, {"gradient_penalty": 0.0}, {"loss": "hing"}):
        with pytest.raises(ValidationError):
            config(model=MODEL, discriminator=wrong)
    with pytest.raises(ValidationError, match="gradient_penalty: has no effect here"):
        config(model=MODEL, discriminator={"gradient_penalty": 1.0})
