"""Vector quantisation: search, gradients past the code, both ways of learning the codebook, start and restart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_cases import build, state_of

from omniloom.models.tokenizer.quantizers.base import rotate_to, straight_through

BOTH = pytest.mark.parametrize("name", ["vq", "vq-gradient"])


@BOTH
def test_it_picks_the_nearest_code(name):
    quantizer = build(name).eval()
    z, vectors = torch.randn(3, 5, 4), quantizer.codebook()
    out = quantizer(z)
    torch.testing.assert_close(out.latents, F.normalize(z, dim=-1))
    distances = torch.cdist(out.latents.double(), vectors.double())
    assert torch.equal(out.codes, distances.argmin(-1))
    torch.testing.assert_close(out.z_q, vectors[out.codes])
    torch.testing.assert_close(quantizer.snap(3 * out.latents), vectors[out.codes])
    nearest = distances.amin(-1).square().sum() / out.latents.numel()
    torch.testing.assert_close(out.loss.double(), 0.25 * nearest)


# ---- gradients past the code ----


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(2, 9))
def test_rotation_trick(seed, dim):
    """G z = q, and the gradient is that of the constant matrix G, built here from its definition."""
    generator = torch.Generator().manual_seed(seed)
    z, q = (torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(2))
    u, v = z / z.norm(), q / q.norm()
    r = (u + v) / (u + v).norm()
    rotation = torch.eye(dim, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(v, u)
    matrix = q.norm() / z.norm() * rotation
    torch.testing.assert_close(matrix @ z, q)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(dim, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(rotate_to(z, q), q)
    jacobian = torch.autograd.functional.jacobian(lambda value: rotate_to(value, q), z)
    torch.testing.assert_close(jacobian, matrix)


def test_gradients_past_the_code_never_reach_it():
    for past in (rotate_to, straight_through):
        z, q = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
        past(z, q).sum().backward()
        assert q.grad is None and z.grad.isfinite().all()


@BOTH
def test_straight_through_gradient_is_the_identity(name):
    quantizer = build(name, rotation_trick=False, commitment=0.0)
    z = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    (quantizer(z).z_q * weight).sum().backward()
    plain = z.detach().clone().requires_grad_()
    (F.normalize(plain, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(z.grad, plain.grad)


# ---- learning the codebook ----


def test_moving_average_against_a_loop():
    quantizer = build("vq", codebook_size=6, latent_dim=3, ema_decay=0.9, restart_dead_after=0).train()
    quantizer.initialised.fill_(True)
    codes = [code.clone() for code in quantizer.embeddings]
    sums = [code.clone() for code in quantizer.embeddings]
    for step in range(5):
        z = torch.randn(10, 3, generator=torch.Generator().manual_seed(step))
        quantizer(z, update=True)
        won = [[] for _ in codes]
        for row in F.normalize(z, dim=-1):
            won[max(range(6), key=lambda k: float(row @ codes[k]))].append(row)
        for k, rows in enumerate(won):
            if rows:
                sums[k] = 0.9 * sums[k] + 0.1 * torch.stack(rows).sum(0)
                codes[k] = sums[k] / sums[k].norm()
        torch.testing.assert_close(quantizer.embeddings, torch.stack(codes))
        torch.testing.assert_close(quantizer.ema_sum, torch.stack(sums))


def test_codebook_loss_and_its_gradient():
    """|sg(z) - q|^2 as a mean, in every update and in no other pass; its gradient written out."""
    quantizer = build("vq-gradient", restart_dead_after=0).train()
    quantizer.initialised.fill_(True)
    quantizer.offsets.data.normal_(std=0.3)
    z = torch.randn(50, 4, requires_grad=True)
    out = quantizer(z, update=True)
    raw = (quantizer.anchors + quantizer.offsets.detach().view(32, 4)).double()
    codes, latents = F.normalize(raw, dim=-1), out.latents.detach().double()
    error = codes[out.codes] - latents
    torch.testing.assert_close(out.loss.double(), 1.25 * error.square().mean())
    out.loss.backward()
    expected = torch.zeros(32, 4, dtype=torch.float64)
    for code, distance in zip(out.codes.tolist(), error, strict=True):
        direction = 2 * distance / error.numel()
        across = direction - codes[code] * (codes[code] @ direction)  # along the sphere
        expected[code] += across / raw[code].norm()
    torch.testing.assert_close(quantizer.offsets.grad.view(32, 4).double(), expected, rtol=1e-4, atol=1e-7)
    plain = z.detach().clone().requires_grad_()  # z feels the commitment alone
    quantizer.offsets.grad = None
    quantizer(plain).loss.backward()
    torch.testing.assert_close(plain.grad, z.grad)
    assert quantizer.offsets.grad is None


def test_a_nan_latent_teaches_no_code():
    quantizer = build("vq-gradient", restart_dead_after=0).train()
    quantizer.initialised.fill_(True)
    z = torch.randn(20, 4)
    z[7] = math.nan
    quantizer(z, update=True).loss.backward()
    assert quantizer.offsets.grad.isfinite().all() and quantizer.offsets.grad.abs().sum() > 0


def test_both_codebooks_move_towards_their_latents():
    z = F.normalize(torch.randn(256, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    for name in ("vq", "vq-gradient"):
        quantizer = build(name, kmeans_iterations=0, **({"ema_decay": 0.8} if name == "vq" else {})).train()
        sgd, errors = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), *quantizer.parameters()], lr=50.0), []
        for _ in range(40):
            out = quantizer(z, update=True)
            errors.append(float((out.latents - quantizer.codebook()[out.codes]).detach().square().sum(-1).mean()))
            sgd.zero_grad()
            if out.loss.requires_grad:
                out.loss.backward()
            sgd.step()
        assert errors[-1] < 0.7 * errors[0], name


# ---- start and restart ----


@BOTH
def test_kmeans_start_finds_clusters(name):
    centres = F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)), dim=-1)
    z = centres.repeat(64, 1) + 0.01 * torch.randn(512, 6, generator=torch.Generator().manual_seed(4))
    quantizer = build(name, codebook_size=16, latent_dim=6).train()
    out = quantizer(z, update=True)
    assert bool(quantizer.initialised)
    error = (out.latents - quantizer.codebook()[out.codes]).square().sum(-1).mean()
    assert error < 0.01 and torch.cdist(centres, quantizer.codebook()).amin(1).max() < 0.2


@BOTH
def test_start_with_fewer_tokens_than_codes_gives_distinct_codes(name):
    quantizer = build(name).train()
    quantizer(torch.randn(5, 4), update=True)
    assert len(quantizer.codebook().unique(dim=0)) == 32
    torch.testing.assert_close(quantizer.codebook().norm(dim=-1), torch.ones(32))


def put(quantizer, codes):
    quantizer._place(torch.ones(len(codes), dtype=torch.bool), codes)
    quantizer.initialised.fill_(True)


@BOTH
def test_dead_codes_are_restarted_and_live_ones_kept(name):
    quantizer = build(name, codebook_size=8, latent_dim=2, restart_dead_after=2, kmeans_iterations=0).train()
    angles = torch.linspace(0.0, 0.2, 8)
    codes = torch.stack((angles.cos(), angles.sin()), dim=-1)
    put(quantizer, torch.cat((codes[:1], -codes[1:])))
    used = []
    for _ in range(4):
        used.append(quantizer(codes, update=True).codes.unique().numel())
    assert used[:3] == [1, 1, 1] and used[3] >= 7  # two mean uses of patience, eight tokens a step
    assert quantizer.eval()(codes).stats["codebook_usage"] >= 7 / 8  # one may have met the living one


@BOTH
def test_idle_patience_counts_uses_not_steps(name):
    for tokens in (8, 64):
        quantizer = build(name, codebook_size=8, latent_dim=2, restart_dead_after=4).train()
        quantizer.initialised.fill_(True)
        z = quantizer.codebook()[:1].detach().expand(tokens, -1)
        steps = next(i for i in range(1, 99) if quantizer(z, update=True).stats["dead_codes"] > 0)
        assert steps == 4 * 8 // tokens + 1
        assert int(quantizer.idle_tokens.max()) == 0  # told as dead, then restarted


def test_no_restart_where_none_is_asked_for():
    quantizer = build("vq", restart_dead_after=0).train()
    quantizer.initialised.fill_(True)
    far = quantizer.codebook()[1:].clone()
    z = quantizer.codebook()[:1].expand(64, -1).clone()
    for _ in range(20):
        out = quantizer(z, update=True)
    assert torch.equal(quantizer.codebook()[1:], far) and float(out.stats["dead_codes"]) == 31.0


def test_a_restarted_gradient_code_lies_on_a_latent_whatever_its_offset():
    quantizer = build("vq-gradient", restart_dead_after=1, kmeans_iterations=0).train()
    quantizer.initialised.fill_(True)
    quantizer.offsets.data.normal_()
    before = state_of(quantizer)
    z = F.normalize(quantizer.codebook()[:1].detach() + 0.1 * torch.randn(64, 4), dim=-1)
    quantizer(z, update=True)
    moved = (quantizer.anchors != before["anchors"]).any(-1)
    assert moved.sum() > 16 and torch.equal(quantizer.offsets, before["offsets"])
    cosines = quantizer.codebook()[moved].detach() @ z.T
    torch.testing.assert_close(cosines.amax(1), torch.ones(len(cosines)))
