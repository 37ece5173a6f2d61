"""Gumbel-softmax and the Gaussian bottleneck against torch's distributions and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from quantizer_cases import batch, build

from omniloom.models.tokenizer.quantizers.gumbel import GUMBEL_GAIN

# ---- Gumbel-softmax ----


def test_tau_and_the_weight_of_the_divergence_follow_their_schedules():
    quantizer = build("gumbel").train()  # 20 updates to anneal, 10 to warm up
    z = batch(quantizer, 1, 8)
    for step in range(25):
        done = min(1.0, step / 20)
        expected = 1 / 16 + (1 - 1 / 16) * 0.5 * (1 + math.cos(math.pi * done))
        assert float(quantizer.tau()) == pytest.approx(expected, rel=1e-5)
        assert float(quantizer.kl_weight()) == pytest.approx(5e-4 * min(1.0, step / 10), rel=1e-5)
        quantizer(z)  # without an update time stands still
        quantizer(z, update=True)
    assert float(build("gumbel", kl_warmup=0).kl_weight()) == pytest.approx(5e-4)


def test_divergences_from_uniform():
    """Of each token's distribution, and of their mean."""
    quantizer = build("gumbel", kl_warmup=0, kl_weight=1.0, balance=0.0).eval()
    z = batch(quantizer, 2, 3, 5)
    p = torch.distributions.Categorical(logits=GUMBEL_GAIN * z)
    uniform = torch.distributions.Categorical(logits=torch.zeros(32))
    torch.testing.assert_close(quantizer(z).loss, torch.distributions.kl_divergence(p, uniform).mean())
    assert float(quantizer(torch.full((4, 32), 3.0)).loss) == pytest.approx(0.0, abs=1e-5)
    quantizer = build("gumbel", kl_weight=0.0, balance=1.0).eval()
    mean = torch.distributions.Categorical(probs=p.probs.mean((0, 1)))
    torch.testing.assert_close(quantizer(z).loss, torch.distributions.kl_divergence(mean, uniform))
    assert float(quantizer(100 * torch.eye(32)).loss) == pytest.approx(0.0, abs=1e-5)  # each its own code


def test_eval_takes_the_largest_logit():
    quantizer = build("gumbel").eval()
    z = batch(quantizer, 3, 4, 6)
    out = quantizer(z)
    assert torch.equal(out.codes, z.argmax(-1))
    torch.testing.assert_close(out.z_q, quantizer.vectors[z.argmax(-1)])
    assert torch.equal(out.z_q, out.latents) and torch.equal(quantizer(z).z_q, out.z_q)


@pytest.mark.parametrize("hard", [False, True])
def test_training_samples_are_those_of_gumbel_softmax(hard):
    """Mean and covariance of z_q over many draws against torch.nn.functional.gumbel_softmax with its own draws."""
    quantizer = build("gumbel", codebook_size=6, latent_dim=3, hard=hard).train()
    quantizer.updates.fill_(10)
    logits, tau, draws = torch.randn(6), float(quantizer.tau()), 40_000
    assert 0.4 < tau < 0.7
    torch.manual_seed(1)
    found = quantizer(logits.expand(draws, -1) / GUMBEL_GAIN).z_q.detach()
    torch.manual_seed(2)
    expected = F.gumbel_softmax(logits.expand(draws, -1), tau, hard=hard) @ quantizer.vectors.detach()
    torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(found.T.cov(), expected.T.cov(), rtol=0.03, atol=0.03)
    if hard:  # the Gumbel-max trick: codes are drawn from softmax(logits)
        drawn = torch.cdist(found, quantizer.vectors.detach()).argmin(-1)
        torch.testing.assert_close(drawn.bincount(minlength=6) / draws, logits.softmax(-1), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["gumbel", "gumbel-hard"])
def test_gradients_reach_logits_and_vectors(name):
    quantizer = build(name).train()
    z = batch(quantizer, 4, 16).requires_grad_()
    weight = torch.randn(16, 4)
    torch.manual_seed(5)
    (quantizer(z).z_q * weight).sum().backward()
    torch.manual_seed(5)
    again = z.detach().clone().requires_grad_()
    soft = F.gumbel_softmax(GUMBEL_GAIN * again, float(quantizer.tau()))
    (soft @ quantizer.vectors.detach() * weight).sum().backward()
    torch.testing.assert_close(z.grad, again.grad)  # of the soft sample, for the hard one too
    chosen = F.one_hot(soft.argmax(-1), 32).float() if name == "gumbel-hard" else soft.detach()
    torch.testing.assert_close(quantizer.vectors.grad, chosen.T @ weight)


# ---- KL ----


def test_kl_against_torch_distributions():
    quantizer = build("kl", latent_dim=3, kl_weight=0.5).eval()
    z = torch.randn(4, 7, 6)
    out = quantizer(z)
    posterior = torch.distributions.Normal(z[..., :3], (0.5 * z[..., 3:]).exp())
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum() / 4
    torch.testing.assert_close(out.loss, 0.5 * divergence)
    assert torch.equal(out.z_q, z[..., :3]) and out.codes is None
    torch.testing.assert_close(out.stats["posterior_std"], posterior.stddev.mean())
    torch.testing.assert_close(out.stats["kl"], torch.distributions.kl_divergence(posterior, prior).mean())
    with pytest.raises(ValueError, match="no codes"):
        quantizer.decode_codes(torch.zeros(1, dtype=torch.int64))


def test_kl_samples_from_the_posterior():
    quantizer = build("kl", latent_dim=2)
    prequant = torch.tensor([1.0, -2.0, math.log(4.0), math.log(0.25)])
    draws = quantizer.sample(prequant.expand(100_000, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(draws.std(0), torch.tensor([2.0, 0.5]), rtol=0, atol=0.03)
    again = quantizer.sample(prequant.expand(100_000, -1), torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)
    torch.manual_seed(3)
    sampled = quantizer.train()(prequant.expand(5, -1)).z_q
    torch.manual_seed(3)
    assert torch.equal(quantizer.sample(prequant.expand(5, -1)), sampled)


def test_kl_log_variances_are_clamped_as_published():
    quantizer = build("kl", latent_dim=2).train()
    z = torch.tensor([[0.0, 1.0, 1000.0, -1000.0]])
    mean, log_variance = quantizer.posterior(z)
    assert mean.tolist() == [[0.0, 1.0]] and log_variance.tolist() == [[20.0, -30.0]]
    assert quantizer(z).loss.isfinite() and quantizer.sample(z).isfinite().all()
