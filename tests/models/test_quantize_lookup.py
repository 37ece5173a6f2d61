"""The quantizers without a codebook: FSQ, LFQ and BSQ against their papers' formulas, written number by number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_cases import build

from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.quantizers.config import BSQConfig, FSQConfig, LFQConfig
from omniloom.models.tokenizer.quantizers.fsq import FSQ_SPREAD
from omniloom.models.tokenizer.quantizers.joint import mean_joint

PUBLISHED_LEVELS = {
    240: (8, 6, 5),
    1000: (8, 5, 5, 5),
    4375: (7, 5, 5, 5, 5),
    15360: (8, 8, 8, 6, 5),
    64000: (8, 8, 8, 5, 5, 5),
}


# ---- FSQ ----


@pytest.mark.parametrize(("size", "levels"), PUBLISHED_LEVELS.items())
def test_fsq_codes_are_a_bijection(size, levels):
    quantizer = build_quantizer(FSQConfig(levels=levels))
    assert quantizer.size == size and quantizer.dim == len(levels)
    codes = torch.arange(size)
    vectors = quantizer.decode_codes(codes)
    assert len(vectors.unique(dim=0)) == size and vectors.abs().max() <= 1
    torch.testing.assert_close(quantizer.snap(vectors), vectors)
    torch.testing.assert_close(quantizer.snap(vectors + 0.4 / 4), vectors)  # within half a step
    digits, places = (vectors + 1) * torch.tensor([level // 2 for level in levels]), [1]
    for level in levels[:-1]:
        places.append(places[-1] * level)
    assert torch.equal((digits * torch.tensor(places)).sum(-1).round().long(), codes)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 50))
def test_fsq_codes_latents_and_vectors_agree(seed, scale):
    quantizer = build_quantizer(FSQConfig(levels=(8, 5, 4, 3)))
    z = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(seed))
    out = quantizer(z)
    assert int(out.codes.min()) >= 0 and int(out.codes.max()) < quantizer.size
    torch.testing.assert_close(quantizer.decode_codes(out.codes), out.z_q)
    torch.testing.assert_close(quantizer.snap(out.latents), out.z_q)
    for channel, level in enumerate((8, 5, 4, 3)):  # the paper's bound, written per number
        half = (level - 1) * 0.999 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        shift = math.atanh(offset / half)
        expected = [math.tanh(float(v) + shift) * half - offset for v in z[:, channel]]
        expected = torch.tensor(expected) / (level // 2)
        torch.testing.assert_close(out.latents[:, channel], expected, rtol=1e-4, atol=1e-4)


def test_fsq_leaves_saturation():
    quantizer = build_quantizer(FSQConfig(levels=(8, 8), balance=0.0))
    z = torch.full((4, 2), 100.0, requires_grad=True)
    quantizer(z).loss.backward()
    assert (z.grad > 0).all()
    assert float(quantizer(torch.randn(40, 2).clamp(-1.5, 1.5)).loss) == 0.0


@pytest.mark.parametrize("levels", [(8, 5, 4, 3), (7, 5), (9,)])
def test_fsq_imbalance_against_enumeration(levels):
    quantizer = build_quantizer(FSQConfig(levels=levels, commitment=0.0, balance=0.7))
    codes = quantizer.decode_codes(torch.arange(quantizer.size)).double()
    assert quantizer.mean_square == pytest.approx(float(codes.square().sum(-1).mean()), rel=1e-6)
    half = torch.tensor([level // 2 for level in levels])
    z = torch.randn(40, len(levels)).requires_grad_()
    out = quantizer(z)
    steps = (out.latents.detach() * half).double()
    p = (-(steps.unsqueeze(1) - codes * half).square().sum(-1) / FSQ_SPREAD).softmax(-1).mean(0)
    expected = torch.xlogy(p, p * quantizer.size).sum()
    torch.testing.assert_close(out.loss.double(), 0.7 * expected, rtol=1e-4, atol=1e-6)
    out.loss.backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0


# ---- LFQ ----


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 20))
def test_lfq_index_against_a_loop(seed, bits):
    quantizer = build_quantizer(LFQConfig(codebook_size=2**bits, entropy_weight=0.0))
    z = torch.randn(5, bits, generator=torch.Generator().manual_seed(seed))
    out = quantizer(z)
    for row, code, q in zip(z, out.codes.tolist(), out.z_q, strict=True):
        assert code == sum(2**i for i in range(bits) if row[i] > 0)
        assert [round(float(v), 5) for v in q] == [1.0 if v > 0 else -1.0 for v in row]
    signs = torch.where(z > 0, 1.0, -1.0)
    torch.testing.assert_close(quantizer.decode_codes(out.codes), signs)
    torch.testing.assert_close(out.loss, 0.25 * (z - signs).square().mean())
    torch.testing.assert_close(quantizer.snap(z), signs)


def entropies_by_enumeration(z: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: a softmax over the distances to all codes."""
    bits = z.shape[-1]
    codes = torch.tensor([[1.0 if c >> i & 1 else -1.0 for i in range(bits)] for c in range(2**bits)]).to(z)
    p = (-(z.unsqueeze(1) - codes).square().sum(-1) / temperature).softmax(-1)
    mean = p.mean(0)
    return -torch.xlogy(p, p).sum(-1).mean(), -torch.xlogy(mean, mean).sum()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 9), temperature=st.floats(0.3, 5.0))
def test_lfq_entropies_against_enumeration(seed, bits, temperature):
    config = LFQConfig(
        codebook_size=2**bits,
        entropy_temperature=temperature,
        entropy_weight=0.7,
        entropy_gamma=1.5,
        commitment=0.0,
    )
    z = torch.randn(30, bits, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    quantizer = build_quantizer(config)
    out = quantizer(z)
    exact = z.detach().double().requires_grad_()
    sure, spread = entropies_by_enumeration(exact, temperature)
    torch.testing.assert_close(out.stats["entropy_per_token"].double(), sure.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.stats["entropy_of_mean"].double(), spread.detach(), rtol=1e-4, atol=1e-5)
    out.loss.backward()
    (0.7 * (sure - 1.5 * spread)).backward()
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2,), (3, 4), (5, 2, 3), (8, 5, 5, 5)])
def test_mean_joint_is_in_the_order_of_the_codes(sizes):
    p = [torch.rand(7, size).softmax(-1) for size in sizes]
    expected = torch.zeros(math.prod(sizes))
    for code in range(math.prod(sizes)):
        digit, product = code, torch.ones(7)
        for size, part in zip(sizes, p, strict=True):
            product, digit = product * part[:, digit % size], digit // size
        expected[code] = product.mean()
    torch.testing.assert_close(mean_joint([part.log() for part in p]), expected)


def test_lfq_holds_a_quarter_of_a_million_codes():
    """Sure tokens: no entropy each, and that of their histogram together, at 2^18 codes."""
    quantizer = build_quantizer(LFQConfig(codebook_size=2**18)).train()
    codes = torch.randint(2**18, (2000,), generator=torch.Generator().manual_seed(0))
    z = (30.0 * quantizer.decode_codes(torch.cat((codes, codes[:500])))).requires_grad_()
    out = quantizer(z, update=True)
    share = out.codes.bincount() / 2500.0
    expected = -torch.xlogy(share, share).sum()
    assert float(out.stats["entropy_per_token"]) == pytest.approx(0.0, abs=1e-4)
    torch.testing.assert_close(out.stats["entropy_of_mean"], expected, rtol=1e-4, atol=1e-4)
    assert float(out.stats["perplexity"]) == pytest.approx(math.exp(expected), rel=1e-3)
    out.loss.backward()
    assert z.grad.isfinite().all()


def test_lfq_entropy_pulls_apart_what_is_alike():
    """Equal tokens near the border: descending the entropy loss alone makes them use more codes, each surely."""
    torch.manual_seed(0)
    quantizer = build("lfq", commitment=0.0)
    z = (0.1 + 0.05 * torch.randn(64, 5)).requires_grad_()
    adam = torch.optim.Adam([z], lr=0.05)
    first = quantizer(z).stats
    for _ in range(60):
        loss = quantizer(z).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    last = quantizer(z).stats
    assert last["entropy_per_token"] < 0.2 * first["entropy_per_token"]
    assert last["perplexity"] > 1.5 * first["perplexity"]


# ---- BSQ ----


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 12))
def test_bsq_against_a_loop(seed, bits):
    """u = z / |z|, c = sign(u) / sqrt(L), loss and index number by number (arXiv 2406.07548, section 4)."""
    quantizer = build_quantizer(BSQConfig(codebook_size=2**bits, entropy_weight=0.0, commitment=0.4))
    z = 3.0 * torch.randn(5, bits, generator=torch.Generator().manual_seed(seed))
    out = quantizer(z)
    distances = []
    for row, code, q, u in zip(z.tolist(), out.codes.tolist(), out.z_q.tolist(), out.latents.tolist(), strict=True):
        length = math.sqrt(sum(v * v for v in row))
        corner = [math.copysign(1 / math.sqrt(bits), v) for v in row]
        assert code == sum(2**i for i in range(bits) if row[i] > 0)
        assert u == pytest.approx([v / length for v in row], abs=1e-6)
        assert q == pytest.approx(corner, abs=1e-6)
        distances.append(sum((v / length - c) ** 2 for v, c in zip(row, corner, strict=True)))
    assert float(out.loss) == pytest.approx(0.4 * sum(distances) / 5, rel=1e-5)
    assert max(distances) < 2 - 2 / math.sqrt(bits)  # the bound of the paper's section 4
    everything = quantizer.decode_codes(torch.arange(2**bits))
    torch.testing.assert_close(everything.norm(dim=-1), torch.ones(2**bits))
    assert everything.square().sum(-1).mean() == pytest.approx(quantizer.mean_square)


def test_bsq_passes_the_code_straight_through_the_projection():
    """The gradient is that of the projection alone: tangent to the sphere, and less the longer z is."""
    quantizer = build_quantizer(BSQConfig(codebook_size=16, entropy_weight=0.0, commitment=0.0))
    z = torch.tensor([[3.0, -1.0, 0.5, -2.0]], requires_grad=True)
    pull = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    (quantizer(z).z_q * pull).sum().backward()
    u, length = z.detach() / z.detach().norm(), z.detach().norm()
    torch.testing.assert_close(z.grad, (pull - (pull * u).sum() * u) / length)


def corners(bits: int) -> torch.Tensor:
    signs = [[1.0 if c >> i & 1 else -1.0 for i in range(bits)] for c in range(2**bits)]
    return torch.tensor(signs, dtype=torch.float64) / math.sqrt(bits)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 9), tau=st.floats(0.5, 30.0), group=st.integers(1, 9))
def test_bsq_entropies_against_enumeration(seed, bits, tau, group):
    """A softmax of tau times the cosine over all 2^L codes. Of a token the entropy is exact; that of the mean is the
    sum over groups of the entropy of the codes' marginal on the group's bits, which bounds that of the whole."""
    config = BSQConfig(
        codebook_size=2**bits,
        inverse_temperature=tau,
        group_size=group,
        entropy_weight=0.7,
        entropy_gamma=1.5,
        commitment=0.0,
    )
    z = torch.randn(30, bits, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    out = build_quantizer(config)(z)
    exact = z.detach().double().requires_grad_()
    p = (tau * (exact / exact.norm(dim=-1, keepdim=True)) @ corners(bits).T).softmax(-1)
    sure, mean = -torch.xlogy(p, p).sum(-1).mean(), p.mean(0)
    spread = torch.zeros((), dtype=torch.float64)
    for first in range(0, bits, group):
        place = torch.arange(2**bits) >> first & (1 << min(group, bits - first)) - 1
        marginal = torch.zeros(2 ** min(group, bits - first), dtype=torch.float64).index_add(0, place, mean)
        spread = spread - torch.xlogy(marginal, marginal).sum()
    whole, bound = -float(torch.xlogy(mean, mean).sum().detach()), float(spread.detach())
    assert bound >= whole - 1e-9 and (group < bits or bound == pytest.approx(whole))
    torch.testing.assert_close(out.stats["entropy_per_token"].double(), sure.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.stats["entropy_of_mean"].double(), spread.detach(), rtol=1e-4, atol=1e-5)
    out.loss.backward()
    (0.7 * (sure - 1.5 * spread)).backward()
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def test_bsq_entropies_are_those_of_the_published_computation():
    """As the paper's authors and vector-quantize-pytorch compute it: squared distances of a group's channels to the
    group's own corners, less twice the product, times an inverse temperature that is half of tau."""
    bits, group, tau = 6, 3, 4.0
    quantizer = build_quantizer(BSQConfig(codebook_size=2**bits, group_size=group, inverse_temperature=tau))
    u = torch.nn.functional.normalize(torch.randn(50, bits, generator=torch.Generator().manual_seed(3)), dim=-1)
    divided = u.unflatten(-1, (2, group))
    own = corners(group).float() * math.sqrt(group) / math.sqrt(bits)  # of length sqrt(3 / 6) in their part of space
    p = (2 * torch.einsum("ngc,dc->ngd", divided, own) * tau / 2).softmax(-1)
    per_token, mean = -torch.xlogy(p, p).sum((-1, -2)).mean(), p.mean(0)
    sure, spread = quantizer.entropies(u)
    torch.testing.assert_close(sure, per_token)
    torch.testing.assert_close(spread, -torch.xlogy(mean, mean).sum())
