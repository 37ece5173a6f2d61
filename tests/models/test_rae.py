"""The representation autoencoder: latents of a frozen encoder, a decoder that noise trains, its config."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from omniloom.models.tokenizer.base import VisualTokenizer
from omniloom.models.tokenizer.build import build_tokenizer, config_from_dict
from omniloom.models.tokenizer.config import RAEConfig
from omniloom.models.tokenizer.losses import TokenizerObjective
from omniloom.models.tokenizer.losses_config import TokenizerLossConfig
from omniloom.models.tokenizer.rae import RAE, NoisyLatents
from omniloom.models.tokenizer.vit import load_vit
from omniloom.models.tokenizer.vit_config import ViTConfig

VIT = ViTConfig(width=24, layers=2, heads=2, mlp_width=32, patch_size=8, grid=3, prefix=2, mean=(0.4, 0.5, 0.6))


def config(**fields) -> RAEConfig:
    return RAEConfig(**{"encoder": VIT, "width": 32, "heads": 2, "head_dim": 16, "decoder_layers": 2, **fields})


def rae(seed: int = 0, **fields) -> RAE:
    """With an encoder that tells pixels apart: a fresh one has no positions and no patch to speak of."""
    torch.manual_seed(seed)
    model = build_tokenizer(config(**fields))
    torch.manual_seed(seed)  # the same encoder whatever the decoder
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def pixels(batch: int = 2, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) - 0.5


def test_latents_are_dinov2s_last_hidden_state_normalised_without_scale_and_shift(tmp_path):
    """As the paper has it: the checkpoint's model with a last norm of weight 1 and bias 0."""
    torch.manual_seed(0)
    reference = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=24, patch_size=8
        )
    ).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
        reference.save_pretrained(tmp_path)
        reference.layernorm.weight.fill_(1.0), reference.layernorm.bias.zero_()
        encoder = load_vit(tmp_path)
        model = RAE(config(encoder=encoder.config)).eval()
        model.take_encoder(encoder)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        wanted = reference((pixels() + 0.5 - mean) / std).last_hidden_state[:, 5:].mT.unflatten(2, (1, 3, 4))
        encoded = model.encode(pixels())
    assert (encoded.latents - wanted).abs().max() < 1e-4
    torch.testing.assert_close(encoded.latents.mean(1), torch.zeros(2, 1, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.latents.var(1, unbiased=False), torch.ones(2, 1, 3, 4), atol=1e-3, rtol=0)


@given(h=st.integers(1, 5), w=st.integers(1, 5), patch=st.sampled_from([None, 8, 6]))
def test_any_size_that_the_patch_divides(h, w, patch):
    model = rae(patch_size=patch)
    assert isinstance(model, VisualTokenizer) and (model.codebook_size, model.latent_dim) == (None, 24)
    side = patch or 8
    with torch.no_grad():
        recon, encoded = model(pixels(2, h * side, w * side))
    assert encoded.codes is None and encoded.latents.shape == (2, 24, 1, h, w) and not encoded.loss
    assert model.grid(1, h * side, w * side) == (1, h, w) and recon.shape == (2, 3, h * side, w * side)
    assert torch.equal(encoded.latents, encoded.z_q)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(latents=encoded.latents, quantize=False)[:, :, 0], recon)


def test_another_patch_shows_the_encoder_a_scaled_picture():
    """12 pixels a latent and an encoder of patch 8: it sees what it would see of the picture at two thirds."""
    wide, plain = rae(patch_size=12), rae()
    x = pixels(1, 36, 48)
    scaled = torch.nn.functional.interpolate(x, size=(24, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(wide.encode(x).latents, plain.encode(scaled).latents)


def test_the_decoder_alone_learns():
    model = rae().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(name.startswith("encoder.") != p.requires_grad for name, p in model.named_parameters())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    recon, _ = model(pixels(), update_codebook=True)
    (recon - pixels()).square().mean().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name


def test_training_on_pixels_raises_the_psnr():
    torch.manual_seed(0)
    objective = TokenizerObjective(config(), TokenizerLossConfig())
    objective.tokenizer.load_state_dict(rae().state_dict())
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=5e-3)
    history = []
    for _ in range(60):
        loss, logs, _ = objective(pixels(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((float(logs["loss"]), float(logs["psnr"])))
    assert history[-1][0] < 0.8 * history[0][0] and history[-1][1] > history[0][1] + 1
    assert objective._last_weight(video=False).shape == (3 * 64, 32)


def test_noise_in_training_alone_and_of_a_half_normal_deviation():
    """Per image the noise's deviation is |N(0, tau^2)|: mean tau * sqrt(2 / pi), mean square tau^2."""
    bottleneck, z = NoisyLatents(8, 0.8), torch.randn(4000, 1, 4, 4, 8)
    assert torch.equal(bottleneck.eval()(z).z_q, z)
    torch.manual_seed(0)
    out = bottleneck.train()(z)
    assert torch.equal(out.latents, z) and float(out.loss) == 0
    deviations = (out.z_q - z).flatten(1).std(1)
    assert float(deviations.mean()) == pytest.approx(0.8 * math.sqrt(2 / math.pi), rel=0.05)
    assert float(deviations.square().mean()) == pytest.approx(0.64, rel=0.05)
    assert torch.equal(NoisyLatents(8, 0.0).train()(z).z_q, z)


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = rae(noise_tau=0.0).train()
        model.set_activation_checkpointing(on)
        model(pixels())[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_saved_config_comes_back():
    for wanted in (config(), config(patch_size=12, noise_tau=0.0)):
        assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(wanted)))) == wanted
    assert config().patch_size == 8 and config(encoder="s3://bucket/vit").patch_size is None
    other = rae(seed=1)
    other.load_from(rae().state_dict())
    torch.testing.assert_close(other(pixels())[0], rae()(pixels())[0])
    with pytest.raises(ValueError, match="tokenizer state: missing: encoder.prefix"):
        other.load_from({name: value for name, value in rae().state_dict().items() if name != "encoder.prefix"})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"encoder": ""}, "RAEConfig.encoder: expected the URI"),
        ({"encoder": 3}, "RAEConfig.encoder: expected the URI"),
        ({"patch_size": 0}, "RAEConfig.patch_size"),
        ({"head_dim": 6}, "RAEConfig.head_dim: expected a multiple of 4"),
        ({"decoder_layers": 0}, "RAEConfig.decoder_layers"),
        ({"noise_tau": -1.0}, "RAEConfig.noise_tau"),
        ({"architecture": "omni"}, "RAEConfig.architecture"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"encoder": {"width": 8}}, "a.json.encoder: ViTConfig"),
        ({"encoder": {"depth": 8}}, "a.json.encoder.depth: unk"),
        ({"encoder": "s3://x"}, "a.json.encoder: expected an object"),
        ({}, "a.json: RAEConfig"),
    ],
)
def test_saved_configs_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({"architecture": "rae", **values}, "a.json")


def test_what_it_cannot_encode_or_decode():
    model = rae()
    for shape, message in (((1, 3, 20, 24), "multiples of 8, got 20x24"), ((1, 3, 5, 24, 24), "single images, got 5")):
        with pytest.raises(ValueError, match=message):
            model.encode(torch.zeros(shape))
    for given_, message in (
        ({"codes": torch.zeros(1, 1, 3, 3, dtype=torch.int64)}, "an RAE has no codes"),
        ({}, "give its latents"),
        ({"latents": torch.zeros(1, 8, 1, 3, 3)}, "expected .B, 24, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(**given_)
    with pytest.raises(ValueError, match="RAEConfig.encoder: expected the shape of the encoder, got '"):
        build_tokenizer(config(encoder="s3://bucket/vit"))
