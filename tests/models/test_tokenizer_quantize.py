"""What every quantizer promises: shapes, codes, counters, state, ranks, and that a tokenizer learns with it."""

from __future__ import annotations

import math
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from quantizer_cases import CASES, WITH_CODES, batch, build, state_of
from quantizer_cases import config as case

from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.base import code_stats, nearest_code
from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.quantizers.config import FSQConfig, GaussianConfig, GumbelConfig, LFQConfig, VQConfig


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_dtypes_and_gradients(name, dtype):
    quantizer = build(name).train()
    z = batch(quantizer, 1, 2, 3, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = quantizer(z, update=True)
    config = CASES[name]
    assert (quantizer.dim, quantizer.size) == (config.dim, config.size)
    assert out.z_q.shape == out.latents.shape == (2, 3, 5, config.dim)
    assert {v.dtype for v in (out.z_q, out.latents, out.loss, *out.stats.values())} == {torch.float32}
    assert not any(v.requires_grad or v.ndim for v in out.stats.values()) and out.loss.ndim == 0
    (out.z_q.square().sum() + out.loss).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())
    if out.codes is None:
        assert config.size is None and {"kl", "posterior_std"} <= set(out.stats)
    else:
        assert out.codes.shape == (2, 3, 5) and out.codes.dtype == torch.int64
        assert {"codebook_usage", "perplexity", "dead_codes"} <= set(out.stats)


@pytest.mark.parametrize("name", WITH_CODES)
def test_codes_latents_and_vectors_agree(name):
    quantizer = build(name).eval()
    out = quantizer(batch(quantizer, 2, 4, 50))
    assert 0 <= int(out.codes.min()) and int(out.codes.max()) < quantizer.size
    torch.testing.assert_close(quantizer.decode_codes(out.codes), out.z_q)
    torch.testing.assert_close(quantizer.snap(out.latents), out.z_q)
    torch.testing.assert_close(quantizer.snap(out.z_q), out.z_q)
    everything = quantizer.decode_codes(torch.arange(quantizer.size))
    assert len(everything.unique(dim=0)) == quantizer.size
    trained = quantizer.train()(batch(quantizer, 2, 4, 50))
    assert torch.equal(trained.codes, out.codes)  # training changes what the decoder reads, not the codes


@pytest.mark.parametrize("name", WITH_CODES)
def test_wrong_codes_are_refused(name):
    quantizer = build(name)
    with pytest.raises(ValueError, match=rf"codes: expected values in \[0, {quantizer.size}\), got -1 to"):
        quantizer.decode_codes(torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=f"got 0 to {quantizer.size}"):
        quantizer.decode_codes(torch.tensor([0, quantizer.size]))
    with pytest.raises(ValueError, match="expected integers, got torch.float32"):
        quantizer.decode_codes(torch.zeros(2))


@pytest.mark.parametrize("name", CASES)
def test_casting_the_model_keeps_state_and_codes(name):
    quantizer = build(name).train()
    z = batch(quantizer, 3, 40)
    quantizer(z, update=True)
    quantizer.eval()
    before, expected = state_of(quantizer), quantizer(z)
    quantizer.to(torch.bfloat16)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    found = quantizer(z)
    torch.testing.assert_close(found.z_q, expected.z_q, rtol=0, atol=0)
    if expected.codes is not None:
        assert torch.equal(found.codes, expected.codes)


@pytest.mark.parametrize("name", WITH_CODES)
def test_the_idle_counter_against_a_loop(name):
    quantizer = build(name, restart_dead_after=0).train()
    idle, size = [0] * quantizer.size, quantizer.size
    for step in range(6):
        z = batch(quantizer, 10 + step % 2, 3, 7)
        z[1, 2:4] = math.nan
        out = quantizer(z, update=True)
        kept = torch.cat([out.codes[0], out.codes[1, :2], out.codes[1, 4:], out.codes[2]]).tolist()
        idle = [0 if code in kept else count + len(kept) for code, count in enumerate(idle)]
        assert quantizer.idle_tokens.tolist() == idle and int(quantizer.updates) == step + 1
        assert float(out.stats["codebook_usage"]) == pytest.approx(len(set(kept)) / size)
        share = [kept.count(code) / len(kept) for code in set(kept)]
        assert float(out.stats["perplexity"]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))
    assert float(out.stats["dead_codes"]) == quantizer.dead().sum() == 0
    while max(idle) <= 16 * size:  # mean uses, where no other patience is given
        quantizer(z, update=True)
        idle = [0 if code in kept else count + len(kept) for code, count in enumerate(idle)]
    dead = sum(count > 16 * size for count in idle)
    assert float(quantizer.eval()(z).stats["dead_codes"]) == dead > 0


@pytest.mark.parametrize("name", CASES)
def test_state_moves_only_when_training_and_asked(name):
    quantizer = build(name)
    z = batch(quantizer, 4, 64)
    before = state_of(quantizer)
    quantizer.train()(z)
    quantizer.eval()(z, update=True)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    quantizer.train()(z, update=True)
    assert name == "kl" or int(quantizer.updates) == 1


@pytest.mark.parametrize("name", CASES)
def test_nan_never_reaches_the_state(name):
    quantizer = build(name, restart_dead_after=1).train()
    z = batch(quantizer, 5, 64)
    z[3] = math.nan
    for spoilt in (torch.full_like(z, math.nan), z, z, torch.full_like(z, math.nan), z):
        out = quantizer(spoilt, update=True)
        if out.codes is not None:
            assert 0 <= int(out.codes.min()) and int(out.codes.max()) < quantizer.size
    state = quantizer.state_dict()
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    assert name == "kl" or int(quantizer.idle_tokens.max()) <= 3 * 63  # the NaN tokens were not counted


@pytest.mark.parametrize("name", CASES)
def test_state_dict_resumes_bit_for_bit(name):
    def go_on(quantizer, steps):
        outs = []
        for step in steps:
            torch.manual_seed(step)  # as the stage does
            out = quantizer(batch(quantizer, step, 40), update=True)
            outs += [out.z_q, out.loss, *out.stats.values()]
        return outs

    whole = build(name, restart_dead_after=1).train()
    expected = go_on(whole, range(12))
    first = build(name, restart_dead_after=1).train()
    go_on(first, range(5))
    torch.manual_seed(99)  # another global RNG in the resumed process
    second = build_quantizer(case(name, restart_dead_after=1)).train()
    second.load_state_dict(state_of(first))
    found = go_on(second, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(found, expected[-len(found) :], strict=True))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_sized_without_memory(name):
    with torch.device("meta"):
        quantizer = build(name)
    assert quantizer.mean_square > 0 and all(value.is_meta for value in quantizer.state_dict().values())


def test_stats_of_known_counts():
    stats = code_stats(torch.tensor([4.0, 4.0, 0.0, 0.0]))
    assert float(stats["codebook_usage"]) == 0.5 and float(stats["perplexity"]) == pytest.approx(2.0)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6), size=st.integers(1, 50))
def test_nearest_code_against_distances(seed, dim, size):
    generator = torch.Generator().manual_seed(seed)
    x, vectors = torch.randn(2, 9, dim, generator=generator), torch.randn(size, dim, generator=generator)
    distances = torch.cdist(x.double(), vectors.double().expand(2, -1, -1))
    chosen = distances.gather(-1, nearest_code(x, vectors).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen, distances.amin(-1), rtol=0, atol=1e-5)


# ---- learning ----


def textures(count: int, side: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7)) - 0.5
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls_on_a_fixed_batch(name):
    torch.manual_seed(0)
    config = TokenizerConfig(
        patch_size=4,
        width=32,
        heads=2,
        head_dim=16,
        spatial_layers="t",
        temporal_layers=0,
        decoder_spatial_layers="t",
        quantizer=CASES[name],
    )
    model, pixels, losses = OmniTokenizer(config).train(), textures(8, 16), []
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(80):
        torch.manual_seed(step)
        recon, encoded = model(pixels, update_codebook=True)
        distance = F.l1_loss(recon, pixels)
        losses.append(float(distance.detach()))
        adam.zero_grad()
        (4 * distance + encoded.loss).backward()
        adam.step()
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    flat = (pixels - pixels.mean((2, 3), keepdim=True)).abs().mean()
    with torch.no_grad():
        recon, _ = model.eval()(pixels)
    assert F.l1_loss(recon, pixels) < flat  # more than the mean colour of each picture, and without noise


# ---- several ranks ----


def loss_gradient(name: str, seeds: list[int]) -> torch.Tensor:
    quantizer = build(name).train()
    z = torch.cat([batch(quantizer, seed, 16) for seed in seeds]).requires_grad_()
    quantizer(z, update=True).loss.backward()
    return z.grad


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {}
    for name in WITH_CODES:
        quantizer = build(name, restart_dead_after=1).train()
        torch.manual_seed(rank)
        for step in range(9):
            z = batch(quantizer, 100 * step + rank, 24 + 8 * rank) + rank
            if step % 3 == rank:
                z[:] = math.nan  # at first on rank 0 alone, which must not let the other wait for it
            out = quantizer(z, update=True)
        found[name] = {**quantizer.state_dict(), **{key: out.stats[key] for key in ("perplexity", "dead_codes")}}
    grads = {name: loss_gradient(name, [rank]) for name in ("fsq", "lfq", "bsq", "gumbel")}
    torch.save((found, grads), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_hold_one_state(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    (first, here), (second, there) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, state in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in state.items()), name
        assert int(state["updates"]) == 9
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    for name in here:  # the mean of the ranks' gradients of a balance is the gradient of one large batch
        torch.testing.assert_close(torch.cat((here[name], there[name])) / 2, loss_gradient(name, [0, 1]))


# ---- config ----


@pytest.mark.parametrize(
    ("config", "fields", "name"),
    [
        (VQConfig, {"kind": "fsq"}, "kind"),
        (VQConfig, {"codebook_size": 1}, "codebook_size"),
        (VQConfig, {"restart_dead_after": -1.0}, "restart_dead_after"),
        (LFQConfig, {"codebook_size": 100}, "codebook_size"),
        (LFQConfig, {"codebook_size": 2**21}, "codebook_size"),
        (LFQConfig, {"entropy_temperature": 0.0}, "entropy_temperature"),
        (LFQConfig, {"entropy_gamma": -1.0}, "entropy_gamma"),
        (FSQConfig, {"balance": -0.1}, "balance"),
        (GumbelConfig, {"tau": 0.0}, "tau"),
        (GumbelConfig, {"tau": 2.0}, "tau"),
        (GumbelConfig, {"anneal_updates": 0}, "anneal_updates"),
        (GumbelConfig, {"kl_warmup": -1}, "kl_warmup"),
        (GumbelConfig, {"balance": -1.0}, "balance"),
    ],
)
def test_bad_config_names_the_field(config, fields, name):
    with pytest.raises(ValueError, match=rf"{config.__name__}\.{name}: expected"):
        config(**fields)


def test_sizes_of_each_kind():
    assert LFQConfig(codebook_size=2**18).dim == 18
    assert VQConfig(codebook_size=100).size == 100
    assert GumbelConfig(codebook_size=100, latent_dim=6).dim == 6
    assert FSQConfig().size == 1000 and GaussianConfig().size is None
