"""Adversarial training parts: losses against closed forms, and who may change whom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.models.tokenizer.adversarial import DiscriminatorObjective, feature_matching_loss
from omniloom.models.tokenizer.adversarial_losses import hinge_discriminator_loss, hinge_generator_loss
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.discriminator import Discriminator, frozen_judgement
from omniloom.models.tokenizer.losses import TokenizerObjective, adaptive_weight, psnr, reconstruction_loss
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.tokenizer.quantizers.config import VQConfig

TINY = DiscriminatorConfig(channels=8, layers=2)
CALMED = DiscriminatorConfig(channels=8, layers=2, r1_gamma=1.0, r1_every=1, lecam_weight=0.1)
CONFIG = TokenizerConfig(
    width=32,
    heads=2,
    head_dim=16,
    spatial_layers="t",
    decoder_spatial_layers="t",
    temporal_layers=1,
    quantizer=VQConfig(codebook_size=32, latent_dim=4),
)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def pair(critic: DiscriminatorConfig = TINY, **loss) -> tuple[TokenizerObjective, DiscriminatorObjective]:
    torch.manual_seed(0)
    return TokenizerObjective(CONFIG, TokenizerLossConfig(**loss)), DiscriminatorObjective(critic)


def grads(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@settings(max_examples=15, deadline=None)
@given(h=st.integers(1, 20), w=st.integers(1, 20), frames=st.sampled_from([0, 1, 2, 5, 9]))
def test_discriminator_takes_any_size(h, w, frames):
    torch.manual_seed(0)
    network = Discriminator(TINY)
    shape = (2, 3, frames, h, w) if frames else (2, 3, h, w)
    judged = network(pixels(*shape))
    assert judged.logits.shape[:2] == (2, 1) and judged.logits.numel() >= 2
    assert judged.logits.ndim == (5 if frames > 1 else 4) and len(judged.features) == 3
    assert judged.logits.isfinite().all()


def test_discriminator_has_the_published_size():
    with torch.device("meta"):
        network = Discriminator()
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.image, network.video)]
    assert counts == [pytest.approx(2.8, abs=0.05), pytest.approx(11.1, abs=0.1)]  # FORMULAS, section 1


def test_discriminator_names_a_bad_shape():
    with pytest.raises(ValueError, match=r"got \(2, 1, 8, 8\)"):
        Discriminator(TINY)(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="shape of real"):
        DiscriminatorObjective(TINY)(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 16))


def test_examples_of_a_batch_are_judged_apart():
    network = Discriminator(TINY)
    x = pixels(3, 3, 16, 16)
    torch.testing.assert_close(network(x).logits[1:2], network(x[1:2]).logits, rtol=1e-4, atol=1e-5)


def test_hinge_closed_forms():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * (2.5 / 3 + 3.0 / 3))
    assert float(hinge_generator_loss(fake)) == pytest.approx(1.0 / 3)


def test_reconstruction_losses_and_psnr():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.3)
    configs = {kind: TokenizerLossConfig(reconstruction=kind) for kind in ("l1", "l2", "huber")}
    value = {kind: float(reconstruction_loss(a, b, config)) for kind, config in configs.items()}
    assert value == pytest.approx({"l1": 0.3, "l2": 0.09, "huber": 0.1 * (0.3 - 0.05)})
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, y = pixels(2, 3, 8, 8), pixels(2, 3, 8, 8, seed=1)
    torch.testing.assert_close(psnr(x, y), peak_signal_noise_ratio(x, y, data_range=1.0))


def test_feature_matching_pulls_the_fake_alone():
    real, fake = [torch.zeros(2, 3, requires_grad=True)], [torch.full((2, 3), 2.0, requires_grad=True)]
    loss = feature_matching_loss(real, fake)
    loss.backward()
    assert float(loss.detach()) == 2.0 and real[0].grad is None and fake[0].grad is not None


def test_adaptive_weight_is_the_ratio_of_gradients():
    last = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight = adaptive_weight(6 * last.sum(), 2 * last.sum(), last)
    assert float(weight) == pytest.approx(3.0, rel=1e-3) and not weight.requires_grad
    assert float(adaptive_weight(1e9 * last.sum(), 0 * last.sum(), last)) == 1e4


def test_schedule():
    config = TokenizerLossConfig(adversarial_start=10, adversarial_ramp=4)
    assert [config.adversarial_schedule(s) for s in (0, 9, 10, 11, 13, 99)] == [0, 0, 0.25, 0.5, 1, 1]
    assert TokenizerLossConfig(adversarial_start=2).adversarial_schedule(2) == 1.0


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_generator_step_leaves_the_discriminator_alone(shape, adaptive):
    generator, adversary = pair(CALMED, adaptive_weight=adaptive, image_adversarial=1.0, video_adversarial=1.0)
    x, before = pixels(*shape), {name: value.clone() for name, value in adversary.state_dict().items()}
    loss, logs, recon = generator(x, adversary, 1.0)
    plain, _, _ = generator(x, None, update_codebook=False)
    loss.backward()
    assert recon.shape == x.shape and loss.isfinite()
    assert grads(adversary) == [] and all(p.requires_grad for p in adversary.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adversary.state_dict().items())
    assert {"generator_hinge", "feature_matching"} <= logs.keys() and ("adaptive_weight" in logs) == adaptive
    assert abs(float((loss - plain).detach())) > 1e-6
    assert all(v.ndim == 0 and v.dtype == torch.float32 and not v.requires_grad for v in logs.values())


def test_gradient_through_the_frozen_discriminator_is_the_true_one():
    network = Discriminator(TINY)
    x = pixels(2, 3, 16, 16).requires_grad_()
    expected = torch.autograd.grad(network(x).logits.sum(), x)[0]
    frozen_judgement(network, x).logits.sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert grads(network) == []


@pytest.mark.parametrize("critic", [TINY, CALMED], ids=["hinge", "r1+lecam"])
def test_discriminator_step_leaves_the_generator_and_its_codebook_alone(critic):
    generator, adversary = pair(critic)
    x = pixels(4, 3, 16, 16)
    _, _, recon = generator(x, adversary, 1.0)
    assert int(generator.tokenizer.codebook.updates) == 1
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    loss, logs = adversary(x, recon)
    loss.backward()
    assert grads(generator) == []
    assert len(grads(adversary)) == len(list(adversary.discriminator.image.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    extra = {"r1", "lecam"} if critic is CALMED else set()
    assert {"discriminator_loss", "logits_real", "logits_fake"} | extra == logs.keys()


def test_weight_zero_means_no_discriminator():
    generator, adversary = pair()
    x = pixels(2, 3, 16, 16)
    with_it = generator.eval()(x, adversary, 0.0)[0]
    assert torch.equal(with_it, generator(x)[0])


class Engine(torch.nn.Module):
    """Wraps a module the way training engines do, under `module`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_discriminators_are_found():
    generator, adversary = pair()
    generator.eval()
    x = pixels(2, 3, 16, 16)
    forms = (adversary, adversary.discriminator, Engine(adversary), Engine(Engine(adversary.discriminator)))
    losses = [float(generator(x, form, 1.0)[0].detach()) for form in forms]
    assert losses == [losses[0]] * 4


def test_both_sides_learn():
    """A discriminator alone separates; against it, the generator's hinge term falls."""
    generator, adversary = pair(feature_matching=0.0, image_adversarial=1.0, reconstruction_weight=0.1)
    x = F.interpolate(pixels(8, 3, 4, 4), size=16, mode="bilinear")
    fixed = generator(x)[2].detach()
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(30):
        loss, _ = adversary(x, fixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.7 and losses[-1] < 0.3
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    hinge = []
    for _ in range(40):
        loss, logs, _ = generator(x, adversary, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hinge.append(float(logs["generator_hinge"]))
    assert hinge[-1] < hinge[0] - 0.3


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_bf16_discriminator_gradients_follow_float32(shape, cast):
    torch.manual_seed(0)
    adversary = DiscriminatorObjective(TINY)
    real, fake = pixels(*shape), pixels(*shape, seed=1)
    adversary(real, fake)[0].backward()
    expected = [g.clone() for g in grads(adversary)]
    adversary.zero_grad()
    if cast:
        adversary.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        loss, _ = adversary(real, fake)
    loss.backward()
    assert loss.dtype == torch.float32
    for got, want in zip(grads(adversary), expected, strict=True):
        assert float((got.float() - want).norm()) < 0.25 * float(want.norm()) + 1e-4


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_bf16_generator_gradients_follow_float32(shape):
    generator, adversary = pair()
    generator.eval()  # the same codes: compare the arithmetic alone
    x = pixels(*shape)
    vectors = F.normalize(torch.randn(2, 1 + (len(shape) == 5), 2, 2, 4), dim=-1)
    results = []
    for enabled in (False, True):
        generator.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            encoded = generator.tokenizer.encode(x)
            recon = generator.tokenizer.decode(latents=vectors.movedim(-1, 1), quantize=False)
        (encoded.latents.square() * vectors.movedim(-1, 1)).sum().backward()
        (recon.float() * x.reshape(recon.shape)).sum().backward()
        results.append([g.clone() for g in grads(generator)])
    for want, got in zip(*results, strict=True):
        assert float((got - want).norm()) < 0.3 * float(want.norm()) + 1e-3  # a small gain sums much rounding
    want, got = (torch.cat([g.flatten() for g in result]) for result in results)
    assert float((got - want).norm()) < 0.1 * float(want.norm())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, recon = generator(x, adversary, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32 and all(g.isfinite().all() for g in grads(generator))
