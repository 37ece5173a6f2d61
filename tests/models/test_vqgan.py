"""The picture tokenizer of a Janus: codes and pixels of `transformers` on random weights; what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import open_models
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from omniloom.models.tokenizer.build import build_tokenizer, config_from_dict
from omniloom.models.tokenizer.vqgan_checkpoint import load_vqgan, vqgan_config

VQ = {"embed_dim": 6, "num_embeddings": 50, "latent_channels": 12, "base_channels": 32, "channel_multiplier": [1, 2, 1]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A folder of three resolutions, of which the middle one has other channels, and its model."""
    folder = tmp_path_factory.mktemp("janus")
    torch.manual_seed(0)
    model = open_models.janus(vq=VQ).eval()
    with torch.no_grad():
        for name, parameter in model.model.vqmodel.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        # Codes that lie among the latents, or one would be the nearest of all.
        vq = model.model.vqmodel
        latents = vq.quant_conv(vq.encoder(2 * torch.rand(4, 3, 16, 16) - 1)).movedim(1, -1).flatten(0, -2)
        vq.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:50]])
    model.save_pretrained(folder)
    return folder, model.model.vqmodel


def pixels(height: int = 24, width: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) - 0.5


@pytest.mark.parametrize("size", [(24, 16), (16, 16), (4, 12)])
@torch.no_grad()
def test_codes_are_those_of_transformers(saved, size):
    folder, reference = saved
    model = load_vqgan(folder)
    x = pixels(*size)
    encoded, theirs = model.encode(x), reference.encode(2 * x, return_dict=True)
    t, h, w = model.grid(1, *size)
    assert encoded.codes.shape == (2, t, h, w) == (2, 1, size[0] // 4, size[1] // 4)
    assert torch.equal(encoded.codes.flatten(), theirs.image_tokens)
    assert len(encoded.codes.unique()) >= 3
    latents = reference.quant_conv(theirs.last_hidden_state)
    torch.testing.assert_close(encoded.latents[:, :, 0], latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pixels_are_those_of_transformers(saved):
    folder, reference = saved
    model, x = load_vqgan(folder), pixels(8, 8)
    reference.quantize.quant_state_dims = [2, 2]  # it decodes one size
    codes = model.encode(x).codes
    theirs = reference.decode(codes.flatten(1)) / 2
    assert theirs.std() > 0.01
    torch.testing.assert_close(model.decode(codes)[:, :, 0], theirs, atol=1e-4, rtol=1e-4)
    recon, encoded = model(x)
    torch.testing.assert_close(recon, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(latents=encoded.latents)[:, :, 0], theirs, atol=1e-4, rtol=1e-4)
    raw = reference.decoder(reference.post_quant_conv(encoded.latents[:, :, 0])) / 2
    torch.testing.assert_close(
        model.decode(latents=encoded.latents, quantize=False)[:, :, 0], raw, atol=1e-4, rtol=1e-4
    )


def test_it_is_a_tokenizer_as_any(saved):
    folder, _ = saved
    model = load_vqgan(folder)
    config = model.config
    assert (config.patch_size, config.latent_dim, config.codebook_size) == (4, 6, 50)
    assert (model.latent_dim, model.codebook_size) == (6, 50)
    again = build_tokenizer(config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))))).eval()
    again.load_from(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(pixels())[0], model(pixels())[0])
        assert model.half().encode(pixels()).codes.shape == (2, 1, 6, 4)  # the codebook keeps its type
    assert model.codebook.embeddings.dtype == torch.float32
    counted = sum(p.numel() for p in build_tokenizer(config).parameters()) + 50 * 6
    assert again.num_params == counted
    for size, message in (((24, 18), "multiples of 4"), ((2, 4), "multiples of 4")):
        with pytest.raises(ValueError, match=message):
            again.encode(pixels(*size))
    with pytest.raises(ValueError, match="single images"):
        again.encode(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(ValueError, match="codes: expected a grid"):
        again.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 50\)"):
        again.decode(torch.full((1, 1, 2, 2), 50))


def test_what_is_not_read_is_named(saved, tmp_path):
    folder, _ = saved
    values = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"architectures": ["ChameleonForConditionalGeneration"]}, "c.json: architectures: expected .*Janus"),
        ({"vq_config": None}, "c.json: vq_config: expected an object"),
        ({"vq_config": {**values["vq_config"], "double_latent": True}}, "vq_config: double_latent: expected False"),
        ({"vq_config": {**values["vq_config"], "channel_multiplier": [1, 0]}}, "channel_multiplier: expected a list"),
        (
            {"vq_config": {**values["vq_config"], "base_channels": 48}},
            "VQGANConfig.channels: expected a multiple of 32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            vqgan_config({**values, **changed}, "c.json")
    held = load_file(folder / "model.safetensors")
    held.pop("model.vqmodel.encoder.mid.attn_1.q.bias")
    save_file(held, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="model.vqmodel.encoder.mid.attn_1.q.bias: missing"):
        load_vqgan(tmp_path)


def test_defaults_are_those_of_transformers():
    config = transformers.JanusVQVAEConfig()
    ours = vqgan_config({"architectures": ["JanusForConditionalGeneration"], "vq_config": {}}, "config.json")
    assert (ours.channels, ours.multipliers) == (config.base_channels, tuple(config.channel_multiplier))
    assert (ours.blocks, ours.width) == (config.num_res_blocks, config.latent_channels)
    assert (ours.latent_dim, ours.codebook_size, ours.patch_size) == (config.embed_dim, config.num_embeddings, 16)
