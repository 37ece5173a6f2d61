"""Quantizers: against closed forms and brute force; codebook upkeep; state; several ranks."""

from __future__ import annotations

import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tokenizer.quantizers.base import code_stats, rotate_to
from models.tokenizer.quantizers.build import build_quantizer
from models.tokenizer.quantizers.config import QuantizerConfig
from models.tokenizer.quantizers.fsq import FSQ_GAIN

PUBLISHED_LEVELS = {240: (8, 6, 5), 1000: (8, 5, 5, 5), 4375: (7, 5, 5, 5, 5), 15360: (8, 8, 8, 6, 5)}


def vq(**changes):
    torch.manual_seed(0)
    return build_quantizer(QuantizerConfig(**{"codebook_size": 32, "latent_dim": 4, **changes}))


def state_of(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def test_vq_picks_the_nearest_code():
    quantizer = vq().eval()
    z = torch.randn(3, 5, 4)
    out = quantizer(z)
    torch.testing.assert_close(out.latents, F.normalize(z, dim=-1))
    distances = torch.cdist(out.latents.double(), quantizer.embeddings.double())
    assert torch.equal(out.codes, distances.argmin(-1))
    torch.testing.assert_close(out.z_q, quantizer.embeddings[out.codes])
    torch.testing.assert_close(quantizer.decode_codes(out.codes), quantizer.embeddings[out.codes])
    torch.testing.assert_close(quantizer.snap(3 * out.latents), quantizer.embeddings[out.codes])
    nearest = distances.amin(-1).square().sum() / out.latents.numel()
    torch.testing.assert_close(out.loss.double(), 0.25 * nearest)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(2, 9))
def test_rotation_trick(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    z, q = (torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(rotate_to(z, q), q)
    jacobian = torch.autograd.functional.jacobian(lambda value: rotate_to(value, q), z)
    scale = q.norm() / z.norm()
    identity = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(jacobian @ jacobian.T, scale**2 * identity)  # scaled and orthogonal
    torch.testing.assert_close(torch.linalg.det(jacobian / scale), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(jacobian @ z, q)
    across = torch.randn(dim, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.stack((z, q), dim=1))[0]
    across = across - basis @ (basis.T @ across)  # orthogonal to z and q: only scaled
    torch.testing.assert_close(jacobian @ across, scale * across)


def test_straight_through_gradient_is_the_identity():
    quantizer = vq(rotation_trick=False, commitment=0.0)
    z = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    (quantizer(z).z_q * weight).sum().backward()
    plain = z.detach().clone().requires_grad_()
    (F.normalize(plain, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(z.grad, plain.grad)


def test_codebook_moves_only_when_training_and_asked():
    quantizer = vq()
    z = torch.randn(64, 4)
    before = state_of(quantizer)
    quantizer.train()(z)
    quantizer.eval()(z, update=True)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(z, update=True)
    assert not torch.equal(quantizer.embeddings, before["embeddings"])
    assert bool(quantizer.initialised) and int(quantizer.updates) == 1


def test_moving_average_is_the_closed_form():
    quantizer = vq(codebook_size=2, latent_dim=2, ema_decay=0.9, restart_dead_after=0)
    quantizer.embeddings.copy_(torch.eye(2))
    quantizer.ema_sum.copy_(torch.eye(2))
    quantizer.initialised.fill_(True)
    z = F.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.4]]), dim=-1)
    for _ in range(3):
        quantizer.train()(z, update=True)
    kept = 0.9**3
    expected = F.normalize(kept * torch.tensor([1.0, 0.0]) + (1 - kept) * z.sum(0), dim=-1)
    torch.testing.assert_close(quantizer.embeddings[0], expected)
    torch.testing.assert_close(quantizer.embeddings[1], torch.tensor([0.0, 1.0]))  # won nothing: stayed


def test_kmeans_start_finds_clusters():
    centres = F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)), dim=-1)
    z = centres.repeat(64, 1) + 0.01 * torch.randn(512, 6, generator=torch.Generator().manual_seed(4))
    found = vq(codebook_size=16, latent_dim=6).train()
    out = found(z, update=True)
    error = (out.latents - found.embeddings[out.codes]).square().sum(-1).mean()
    assert error < 0.01 and set(torch.cdist(centres, found.embeddings).argmin(1).tolist()) <= set(range(16))


def test_start_with_fewer_tokens_than_codes_gives_distinct_codes():
    quantizer = vq(codebook_size=32).train()
    quantizer(torch.randn(5, 4), update=True)
    assert len(quantizer.embeddings.unique(dim=0)) == 32
    torch.testing.assert_close(quantizer.embeddings.norm(dim=-1), torch.ones(32))


def test_dead_codes_are_restarted_and_live_ones_kept():
    quantizer = vq(codebook_size=8, latent_dim=2, restart_dead_after=2, kmeans_iterations=0).train()
    quantizer.initialised.fill_(True)
    angles = torch.linspace(0.0, 0.2, 8)
    codes = torch.stack((angles.cos(), angles.sin()), dim=-1)
    quantizer.embeddings.copy_(-codes)
    quantizer.embeddings[0] = codes[0]
    quantizer.ema_sum.copy_(quantizer.embeddings)
    steps = 0
    while quantizer(codes, update=True).codes.unique().numel() < 8 and steps < 20:
        steps += 1
    assert steps > 2  # two mean uses of patience, eight tokens a step
    assert quantizer.eval()(codes).stats["codebook_usage"] == 1.0


def test_idle_patience_counts_uses_not_steps():
    for batch in (8, 64):
        quantizer = vq(codebook_size=8, latent_dim=2, restart_dead_after=4).train()
        quantizer.initialised.fill_(True)
        z = quantizer.embeddings[:1].expand(batch, -1)
        steps = next(i for i in range(1, 99) if quantizer(z, update=True).stats["dead_codes"] == 0 and
                     int(quantizer.idle_tokens.max()) == 0)
        assert steps == 4 * 8 // batch + 1


def test_nan_never_reaches_the_codebook():
    quantizer = vq().train()
    z = torch.randn(64, 4)
    z[3] = float("nan")
    for _ in range(3):
        quantizer(z, update=True)
    assert quantizer.embeddings.isfinite().all() and quantizer.ema_sum.isfinite().all()
    quantizer(torch.full((8, 4), float("nan")), update=True)
    assert quantizer.embeddings.isfinite().all()


def test_state_dict_resumes_bit_for_bit():
    batches = [torch.randn(40, 4, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    whole = vq(restart_dead_after=1).train()
    for z in batches:
        whole(z, update=True)
    first = vq(restart_dead_after=1).train()
    for z in batches[:5]:
        first(z, update=True)
    torch.manual_seed(99)  # another global RNG in the resumed process
    second = build_quantizer(first.config).train()
    second.load_state_dict(state_of(first))
    for z in batches[5:]:
        second(z, update=True)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_stats_of_known_counts():
    stats = code_stats(torch.tensor([4.0, 4.0, 0.0, 0.0]))
    assert float(stats["codebook_usage"]) == 0.5 and float(stats["perplexity"]) == pytest.approx(2.0)


@pytest.mark.parametrize(("size", "levels"), PUBLISHED_LEVELS.items())
def test_fsq_codes_are_a_bijection(size, levels):
    quantizer = build_quantizer(QuantizerConfig(kind="fsq", fsq_levels=levels))
    assert quantizer.size == size and quantizer.dim == len(levels)
    codes = torch.arange(size)
    vectors = quantizer.decode_codes(codes)
    assert len(vectors.unique(dim=0)) == size and vectors.abs().max() <= 1
    torch.testing.assert_close(quantizer.snap(vectors), vectors)
    torch.testing.assert_close(quantizer.snap(vectors + 0.4 / 4), vectors)  # within half a step


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 50))
def test_fsq_codes_latents_and_vectors_agree(seed, scale):
    quantizer = build_quantizer(QuantizerConfig(kind="fsq", fsq_levels=(8, 5, 4, 3)))
    z = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(seed))
    out = quantizer(z)
    assert int(out.codes.min()) >= 0 and int(out.codes.max()) < quantizer.size
    torch.testing.assert_close(quantizer.decode_codes(out.codes), out.z_q)
    torch.testing.assert_close(quantizer.snap(out.latents), out.z_q)
    for channel, level in enumerate((8, 5, 4, 3)):  # the paper's bound, written per number
        half = (level - 1) * 0.999 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        shift = math.atanh(offset / half)
        expected = [math.tanh(FSQ_GAIN * float(v) + shift) * half - offset for v in z[:, channel]]
        expected = torch.tensor(expected) / (level // 2)
        torch.testing.assert_close(out.latents[:, channel], expected, rtol=1e-4, atol=1e-4)


def test_fsq_leaves_saturation():
    quantizer = build_quantizer(QuantizerConfig(kind="fsq", fsq_levels=(8, 8)))
    z = torch.full((4, 2), 100.0, requires_grad=True)
    quantizer(z).loss.backward()
    assert (z.grad > 0).all()
    assert float(quantizer(torch.randn(4, 2)).loss) == 0.0


def test_kl_against_torch_distributions():
    quantizer = build_quantizer(QuantizerConfig(kind="kl", latent_dim=3, kl_weight=0.5)).eval()
    z = torch.randn(4, 7, 6)
    out = quantizer(z)
    posterior = torch.distributions.Normal(z[..., :3], (0.5 * z[..., 3:]).exp())
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum() / 4
    torch.testing.assert_close(out.loss, 0.5 * divergence)
    assert torch.equal(out.z_q, z[..., :3]) and out.codes is None
    with pytest.raises(ValueError, match="no codes"):
        quantizer.decode_codes(torch.zeros(1, dtype=torch.int64))


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(rank)
    quantizer = build_quantizer(QuantizerConfig(codebook_size=32, latent_dim=4, restart_dead_after=1)).train()
    torch.manual_seed(100 + rank)
    for _ in range(8):
        z = torch.randn(24 + 8 * rank, 4) + rank
        quantizer(z, update=True)
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_hold_one_codebook(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_summing_over_ranks_is_one_large_batch(monkeypatch):
    """The same step on one rank with both batches: what all-reduce must equal."""
    halves = [torch.randn(20, 4), torch.randn(20, 4)]
    start = state_of(vq().train())
    start["initialised"].fill_(True)
    whole = vq().train()
    whole.load_state_dict(start)
    whole(torch.cat(halves), update=True)

    part = vq().train()
    part.load_state_dict(start)
    other = vq().eval()(halves[1])
    totals = torch.zeros(32, 5).index_add_(0, other.codes, F.pad(other.latents, (0, 1), value=1.0))
    monkeypatch.setattr("models.tokenizer.quantizers.vq.ranks", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(totals))
    monkeypatch.setattr(torch.distributed, "broadcast", lambda values, src: None)
    part(halves[0], update=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(part.state_dict()[name], value)
