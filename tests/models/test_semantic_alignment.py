"""Alignment of latents with a frozen encoder: VA-VAE's two terms number by number, and where gradients go."""

from __future__ import annotations

import math

import pytest
import torch

from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.losses import TokenizerObjective, reconstruction_loss
from omniloom.models.tokenizer.losses_config import TokenizerLossConfig
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.models.tokenizer.semantic import SemanticAlignment, marginal_cosine, marginal_distance
from omniloom.models.tokenizer.vit import ViT
from omniloom.models.tokenizer.vit_config import ViTConfig


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.9])
def test_both_terms_number_by_number(margin):
    """Equations 4 and 5 of arXiv 2501.01423, in loops."""
    generator = torch.Generator().manual_seed(0)
    z, projected = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 5, 4, generator=generator)
    features = torch.randn(2, 5, 4, generator=generator)
    near, far = [], []
    for own, mapped, wanted in zip(z.tolist(), projected.tolist(), features.tolist()):
        near += [max(0.0, 1 - margin - cosine(a, b)) for a, b in zip(mapped, wanted)]
        for i in range(5):
            for j in range(5):
                far.append(max(0.0, abs(cosine(own[i], own[j]) - cosine(wanted[i], wanted[j])) - margin))
    assert float(marginal_cosine(projected, features, margin)) == pytest.approx(sum(near) / 10, rel=1e-5)
    assert float(marginal_distance(z, features, margin)) == pytest.approx(sum(far) / 50, rel=1e-5)


def test_what_is_alike_costs_nothing_and_nothing_is_pulled_within_the_margins():
    features = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    assert float(marginal_cosine(3 * features, features, 0.0)) == pytest.approx(0, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    assert float(marginal_distance(2 * features @ turn, features, 0.0)) == pytest.approx(0, abs=1e-6)
    close = (features + 0.01 * torch.randn_like(features)).requires_grad_()
    (marginal_cosine(close, features, 0.5) + marginal_distance(close, features, 0.25)).backward()
    assert not close.grad.any()


def encoder() -> ViT:
    torch.manual_seed(3)
    vit = ViT(ViTConfig(width=24, layers=1, heads=2, mlp_width=32, patch_size=4, grid=4, prefix=1, pre_norm=True))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
    return vit


def objective(weight: float, kl_weight: float = 0.0, aligned: bool = True) -> TokenizerObjective:
    shape = {"patch_size": 8, "width": 32, "heads": 2, "head_dim": 16, "temporal_layers": 0}
    layers = {"spatial_layers": "t", "decoder_spatial_layers": "t"}
    config = TokenizerConfig(**shape, **layers, quantizer=GaussianConfig(latent_dim=4, kl_weight=kl_weight))
    torch.manual_seed(0)
    make = (lambda dim: SemanticAlignment(encoder(), dim, weight, 0.1, 0.05)) if aligned else None
    return TokenizerObjective(config, TokenizerLossConfig(), None, make).eval()  # a posterior's mean: no noise


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 32, 24, generator=torch.Generator().manual_seed(5)) - 0.5


def gradient(model: TokenizerObjective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, logs, _ = model(pixels())
    loss.backward()
    return model.tokenizer.pre_vq.weight.grad.clone(), logs


def test_its_gradient_is_as_long_as_that_of_the_reconstruction_times_the_weight():
    """At the encoder's last matrix: equation 7. The rest of the loss is what it is without."""
    plain, _ = gradient(objective(0.0, aligned=False))
    for weight in (0.1, 2.0):
        model = objective(weight)
        both, logs = gradient(model)
        assert float((both - plain).norm()) == pytest.approx(weight * float(plain.norm()), rel=1e-2)
        recon, _ = model.tokenizer(pixels())
        terms = logs["alignment_cosine"] + logs["alignment_distance"]
        wanted = 4.0 * reconstruction_loss(recon, pixels(), model.loss) + weight * logs["alignment_weight"] * terms
        torch.testing.assert_close(logs["loss"], wanted.detach(), rtol=1e-4, atol=1e-5)


def test_the_encoder_is_frozen_and_the_matrix_is_trained_beside_the_tokenizer():
    model = objective(0.5)
    gradient(model)
    assert all(p.grad is None and not p.requires_grad for p in model.alignment.encoder.parameters())
    assert model.alignment.project.weight.grad.abs().sum() > 0
    assert all("alignment" not in name for name in model.tokenizer.state_dict())


def test_the_encoder_sees_a_patch_for_each_latent():
    """Latents of 8 pixels and patches of 4: a picture of half the size has the features."""
    model, x = objective(0.5), pixels()
    half = torch.nn.functional.interpolate(x, size=(16, 12), mode="bicubic", antialias=True)
    features = model.alignment.encoder(half).flatten(1, 2)
    z = model.tokenizer.encode(x).z_q[:, :, 0]
    found = model.alignment(x, z)
    tokens = z.flatten(2).mT
    torch.testing.assert_close(found[0], marginal_cosine(model.alignment.project(tokens), features, 0.1))
    torch.testing.assert_close(found[1], marginal_distance(tokens, features, 0.05))


def test_training_brings_latents_nearer_to_the_features():
    model = objective(2.0).train()
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    seen = []
    for _ in range(25):
        loss, logs, _ = model(pixels())
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append(float(logs["alignment_cosine"] + logs["alignment_distance"]))
    assert seen[-1] < 0.8 * seen[0]
