"""TiTok: shapes, what reaches the decoder, sizes that it refuses, learning, the two-stage training, its config."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.models.tokenizer.adversarial import DiscriminatorObjective
from omniloom.models.tokenizer.build import build_tokenizer, config_from_dict
from omniloom.models.tokenizer.config import TiTokConfig, TokenizerConfig
from omniloom.models.tokenizer.losses import TokenizerObjective, psnr
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    LFQConfig,
    VQConfig,
    VQGradientConfig,
)
from omniloom.models.tokenizer.titok import ProxyObjective, TiTok

QUANTIZERS = {
    "vq": VQConfig(codebook_size=64, latent_dim=4),
    "fsq": FSQConfig(levels=(8, 5, 5)),
    "kl": GaussianConfig(latent_dim=4),
}
EVERY = QUANTIZERS | {
    "vq-gradient": VQGradientConfig(codebook_size=64, latent_dim=4),
    "lfq": LFQConfig(codebook_size=64),
    "bsq": BSQConfig(codebook_size=64),
    "gumbel": GumbelConfig(codebook_size=64, latent_dim=4),
}
LATENTS = 6


def small(kind: str = "vq", **changes) -> TiTokConfig:
    shape = {"image_size": (16, 24), "patch_size": 8, "num_latents": LATENTS, "width": 32, "heads": 2, "head_dim": 16}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    return TiTokConfig(**{**shape, **layers, "quantizer": EVERY[kind], **changes})


def build(kind: str = "vq", **changes) -> TiTok:
    torch.manual_seed(0)
    return build_tokenizer(small(kind, **changes)).eval()


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 16, 24), generator=torch.Generator().manual_seed(seed)) - 0.5


def patterns(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures of a few waves each, (count, 3, 16, 24) in [-0.5, 0.5]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 4, generator=generator) - 0.5
    return F.interpolate(coarse, size=(16, 24), mode="bicubic").clamp(-0.5, 0.5)


# ---- the interface ----


@pytest.mark.parametrize("kind", EVERY)
def test_shapes_and_types(kind):
    model, x = build(kind), image()
    recon, encoded = model(x)
    assert recon.shape == x.shape and recon.dtype == x.dtype
    assert model.grid(1, 16, 24) == (1, 1, LATENTS)
    assert encoded.latents.shape == encoded.z_q.shape == (2, model.latent_dim, 1, 1, LATENTS)
    assert encoded.prequant.shape == (2, model.codebook.input_dim, 1, 1, LATENTS)
    assert encoded.latents.dtype == torch.float32 and encoded.loss.ndim == 0
    as_clip, of_clip = model(x.unsqueeze(2))
    assert torch.equal(as_clip, recon.unsqueeze(2)) and torch.equal(of_clip.latents, encoded.latents)
    if kind == "kl":
        assert encoded.codes is None and model.codebook_size is None
        torch.testing.assert_close(model.decode(latents=encoded.latents), as_clip)
        return
    assert encoded.codes.shape == (2, 1, 1, LATENTS) and encoded.codes.dtype == torch.int64
    assert 0 <= int(encoded.codes.min()) and int(encoded.codes.max()) < model.codebook_size
    decoded = model.decode(encoded.codes)
    assert decoded.shape == (2, 3, 1, 16, 24)
    torch.testing.assert_close(decoded, as_clip)
    torch.testing.assert_close(model.decode(latents=encoded.latents), decoded)
    exact = torch.allclose(model.decode(latents=encoded.latents, quantize=False), decoded, atol=1e-4)
    assert exact == (kind == "gumbel")  # whose latents are codes already


@settings(max_examples=10)
@given(h=st.integers(1, 4), w=st.integers(1, 4), count=st.integers(1, 9))
def test_any_size_and_any_number_of_latents(h, w, count):
    model = build(image_size=(8 * h, 8 * w), num_latents=count)
    x = image(1, 3, 8 * h, 8 * w)
    recon, encoded = model(x)
    assert recon.shape == x.shape and encoded.codes.shape == (1, 1, 1, count)


def test_a_patch_of_the_output_is_that_place_of_the_picture():
    """The decoder's patch at (row, column) is written where the encoder reads its patch from."""
    model, x = build(), image()
    patches = []
    model.encoder.to_patch_emb_first_frame.register_forward_hook(lambda _, given, out: patches.append(given[0]))
    model.encode(x)
    read = patches[0].unflatten(1, (2, 3))
    model.decoder.to_pixels_first_frame = torch.nn.Identity()
    model.decoder.transformer.forward = lambda tokens: F.pad(patches[0], (0, 0, 0, LATENTS))
    assert torch.equal(read[0, 1, 2], x[0, :, 8:, 16:].flatten())
    assert torch.equal(model.decoder(torch.zeros(2, LATENTS, 32)), x.unsqueeze(2))


def test_what_does_not_fit_is_refused():
    model = build()
    for pixels, message in (
        (image(2, 3, 3, 16, 24), "single images, got 3 frames"),
        (image(2, 3, 24, 16), "16x24, got 24x16"),
        (image(2, 3, 32, 48), "16x24, got 32x48"),
        (image(2, 1, 16, 24), r"float \(B, 3, H, W\)"),
        (image(3, 16, 24), r"float \(B, 3, H, W\)"),
        (image().mul(99).byte(), "uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(pixels)
    with pytest.raises(ValueError, match="either codes or latents"):
        model.decode()
    with pytest.raises(ValueError, match=r"codes: expected \(B, 1, 1, 6\)"):
        model.decode(torch.zeros(2, 1, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 64\), got 0 to 64"):
        model.decode(torch.arange(60, 66).clamp(0, 64).view(1, 1, 1, 6) * torch.tensor([0, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"latents: expected \(B, 4, 1, 1, 6\)"):
        model.decode(latents=torch.zeros(2, 4, 1, 6))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 20}, "image_size: expected a positive multiple of patch_size 8.*got 20"),
        ({"image_size": (16, 20)}, "image_size"),
        ({"image_size": (16, 16, 16)}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"num_latents": 0}, "num_latents: expected an integer of at least 1, got 0"),
        ({"head_dim": 6}, "head_dim: expected a multiple of 4"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"proxy_codes": 1}, "proxy_codes"),
        ({"architecture": "omni"}, "architecture: expected titok"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


# ---- what the latents carry ----


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_decoder_sees_the_latents_alone(kind):
    model, x = build(kind), image().requires_grad_()
    encoded = model.encode(x)
    latents = encoded.z_q.detach().requires_grad_()
    recon = model.decode(latents=latents, quantize=False)
    torch.testing.assert_close(recon[:, :, 0], model(x)[0])  # the pixels are not needed for it
    recon.sum().backward()
    assert x.grad is None and latents.grad.abs().flatten(3).amin(dim=(0, 1)).min() > 0  # each latent is read
    other = model.encode(image(seed=2))
    torch.testing.assert_close(model.decode(latents=other.z_q, quantize=False)[:, :, 0], model(image(seed=2))[0])


def test_every_latent_reads_every_patch_and_writes_every_pixel():
    model, x = build("kl"), image(1, 3, 16, 24).requires_grad_()
    latents = model.encode(x).latents
    for slot in range(LATENTS):
        (gradient,) = torch.autograd.grad(latents[..., slot].square().sum(), x, retain_graph=True)
        assert gradient[0].unfold(1, 8, 8).unfold(2, 8, 8).abs().amax(dim=(0, 3, 4)).min() > 0
        changed = latents.detach().clone()
        changed[..., slot] += 1.0
        difference = model.decode(latents=changed) - model.decode(latents=latents.detach())
        assert difference.abs().amax(dim=1).min() > 0


def test_the_order_of_latents_matters():
    """Slots differ by their learned positions alone: without these, any order decodes alike."""
    model = build("kl")
    latents = torch.randn(1, 4, 1, 1, LATENTS, generator=torch.Generator().manual_seed(0))
    turned = latents.flip(-1)
    assert (model.decode(latents=latents) - model.decode(latents=turned)).abs().max() > 1e-2
    with torch.no_grad():
        model.decoder.transformer.positions[-LATENTS:] = 0.0
    torch.testing.assert_close(model.decode(latents=latents), model.decode(latents=turned), atol=1e-5, rtol=1e-4)


def test_pictures_of_a_batch_do_not_meet():
    model, x = build("kl"), image()
    torch.testing.assert_close(model(x)[0][:1], model(x[:1])[0])


# ---- training ----


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_learns_a_fixed_batch(kind):
    """Well past the mean picture, which is what a decoder without latents comes to."""
    torch.manual_seed(0)
    objective = TokenizerObjective(small(kind, num_latents=12, encoder_layers=1))
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    pixels = patterns(8)
    for _ in range(150):
        loss, logs, recon = objective(pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert recon.shape == pixels.shape
    assert float(logs["psnr"]) > float(psnr(pixels.mean(0).expand_as(pixels), pixels)) + 6
    used = 1.0 if kind == "kl" else float(logs["codebook_usage"])
    assert used > 0.2  # 8 pictures of 12 tokens


def test_trains_against_a_discriminator_with_the_adaptive_weight():
    torch.manual_seed(0)
    objective = TokenizerObjective(small(), TokenizerLossConfig(adaptive_weight=True))
    critic = DiscriminatorObjective(DiscriminatorConfig(channels=4, layers=1))
    loss, logs, recon = objective(patterns(4), critic, 1.0)
    loss.backward()
    assert float(logs["adaptive_weight"]) > 0 and "feature_matching" in logs
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert all(p.grad is None for p in critic.parameters())
    critic(patterns(4), recon.detach())[0].backward()


def test_checkpointed_activations_give_the_same_gradients():
    def gradients(on: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        objective = TokenizerObjective(small("fsq"))
        objective.tokenizer.set_activation_checkpointing(on)
        objective(patterns(2))[0].backward()
        return [p.grad for p in objective.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_bf16(kind):
    model, x = build(kind), image()
    wanted, exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        recon, encoded = model(x)
    assert recon.dtype == torch.float32 and encoded.latents.dtype == torch.float32
    torch.testing.assert_close(encoded.latents, exact.latents, atol=0.05, rtol=0.1)
    half = model.to(torch.bfloat16)
    recon, encoded = half(x.bfloat16())
    assert recon.dtype == torch.bfloat16 and encoded.latents.dtype == torch.float32
    assert F.mse_loss(half.decode(latents=exact.z_q, quantize=False)[:, :, 0].float(), wanted) < 1e-3
    half.train()
    recon, encoded = half(x.bfloat16(), update_codebook=True)
    (recon.float().square().mean() + encoded.loss).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_state_dict_round_trip(kind, tmp_path):
    source = TokenizerObjective(small(kind))
    source(patterns(8))  # the codebook leaves its first state
    model = source.tokenizer.eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    config = config_from_dict(json.loads(json.dumps(dataclasses.asdict(model.config))))
    assert config == model.config
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    again = build_tokenizer(config).eval()
    again.load_state_dict(state)
    assert torch.equal(again(image())[0], model(image())[0])
    taken = build_tokenizer(config).eval()
    taken.load_from(state)
    assert torch.equal(taken(image())[0], model(image())[0])


def test_weights_of_another_model_are_refused_or_taken_without_the_bottleneck():
    source = build("vq")
    with pytest.raises(ValueError, match="of another shape: decoder.transformer.positions"):
        build("vq", num_latents=5).load_from(source.state_dict())
    with pytest.raises(ValueError, match="missing: pre_vq.bias"):
        build("vq").load_from({k: v for k, v in source.state_dict().items() if k != "pre_vq.bias"})
    with pytest.raises(ValueError, match="unknown: codebook.ema_sum, codebook.embeddings"):
        build("kl").load_from(source.state_dict())
    continuous = build("kl")
    before = continuous.pre_vq.weight.clone()
    continuous.load_from(source.state_dict(), new_bottleneck=True)
    assert torch.equal(continuous.pre_vq.weight, before)
    assert torch.equal(continuous.encoder.transformer.positions, source.encoder.transformer.positions)


@pytest.mark.parametrize("kind", ["vq", "vq-gradient"])
def test_num_params_counts_by_hand(kind):
    config = small(kind, mlp_width=40)
    block = 32 * 3 * 32 + 32 * 32 + 2 * 32 + 2 * 16 + 2 * 32 + 32 * 80 + 40 * 32  # qkv, out, norm, scales, norm, GEGLU
    tokens = (2 * 3 + LATENTS) * 32
    stack = 2 * block + tokens + 2 * 32
    patch = 3 * 8 * 8
    expected = 2 * stack + (patch * 32 + 32) + (32 * patch + patch) + 32  # both stacks, embedding, head, mask token
    expected += (32 * 4 + 4) + (4 * 32 + 32) + 64 * 4  # projections and the codebook
    assert build_tokenizer(config).num_params == expected


# ---- the two-stage way ----


@pytest.fixture(scope="module")
def proxy() -> OmniTokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        patch_size=8,
        width=32,
        heads=2,
        head_dim=16,
        temporal_layers=0,
        spatial_layers="t",
        decoder_spatial_layers="t",
        quantizer=VQConfig(codebook_size=16, latent_dim=4),
    )
    objective = TokenizerObjective(config)
    objective(patterns(16))  # codes from the data
    return objective.tokenizer


def test_warm_up_then_decoder(proxy):
    """The warm-up learns the proxy's codes; then pixels teach the decoder, and encoder and codebook stay."""
    config, pixels = small(num_latents=12, encoder_layers=1, proxy_codes=16), patterns(8)
    torch.manual_seed(1)
    warm_up = ProxyObjective(config, proxy)
    known = {name: value.clone() for name, value in proxy.state_dict().items()}
    assert not any("proxy." in name or name.startswith("_") for name in warm_up.state_dict())
    optimizer = torch.optim.Adam(warm_up.parameters(), lr=5e-3)
    curve = []
    for _ in range(90):
        loss, logs = warm_up(pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(logs["proxy_cross_entropy"]))
    assert curve[0] == pytest.approx(torch.tensor(16.0).log().item(), rel=0.3)  # a fresh head knows nothing
    assert curve[-1] < 0.5 * curve[0] and float(logs["proxy_accuracy"]) > 0.7
    assert all(torch.equal(value, known[name]) for name, value in proxy.state_dict().items())
    state = {name: value.clone() for name, value in warm_up.tokenizer.state_dict().items()}

    torch.manual_seed(2)
    objective = TokenizerObjective(dataclasses.replace(config, proxy_codes=None))
    objective.tokenizer.start_from_warm_up(state)
    codes = warm_up.tokenizer.eval().encode(pixels).codes
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=5e-3)
    curve = []
    for _ in range(60):
        loss, logs, _ = objective.train()(pixels, update_codebook=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(logs["psnr"]))
    assert curve[-1] > curve[0] + 4
    after = objective.tokenizer.state_dict()
    frozen = [name for name in state if name.startswith(("encoder.", "pre_vq.", "codebook."))]
    moved = [name for name in after if not name.startswith(("encoder.", "pre_vq.", "codebook."))]
    assert all(torch.equal(after[name], state[name]) for name in frozen) and len(trained) == len(moved)
    assert all(name not in state or not torch.equal(after[name], state[name]) for name in moved)
    assert torch.equal(objective.tokenizer.encode(pixels).codes, codes)


def test_logits_lie_where_the_proxys_codes_lie(proxy):
    """The cross-entropy of a second implementation, place by place."""
    torch.manual_seed(3)
    warm_up, pixels = ProxyObjective(small("fsq", proxy_codes=16), proxy).eval(), patterns(2)
    logits = warm_up.tokenizer.proxy_logits(warm_up.tokenizer.encode(pixels).z_q)
    assert logits.shape == (2, 2, 3, 16) and logits.dtype == torch.float32
    codes, total = proxy.eval().encode(pixels).codes, 0.0
    for b in range(2):
        for row in range(2):
            for column in range(3):
                total -= logits[b, row, column].log_softmax(-1)[codes[b, 0, row, column]].item()
    assert float(warm_up(pixels)[1]["proxy_cross_entropy"]) == pytest.approx(total / 12, rel=1e-5)


def test_a_warm_up_is_checked(proxy):
    for changes, message in (
        ({"proxy_codes": None}, "codebook size 16, got None"),
        ({"proxy_codes": 8}, "16, got 8"),
        ({"proxy_codes": 16, "patch_size": 4}, "4x6 patches, the proxy's grid is 2x3"),
    ):
        with pytest.raises(ValueError, match=message):
            ProxyObjective(small(**changes), proxy)
    warm_up = build(proxy_codes=16)
    with pytest.raises(ValueError, match="proxy_codes: this model predicts a proxy's codes"):
        warm_up(image())
    with pytest.raises(ValueError, match="proxy_codes"):
        warm_up.start_from_warm_up(warm_up.state_dict())
    with pytest.raises(ValueError, match="proxy_codes: expected a codebook's size"):
        build().proxy_logits(torch.zeros(1, 4, 1, 1, LATENTS))


# ---- configs as plain values ----


def test_configs_from_plain_values():
    for config in (small(), small("fsq", image_size=16, proxy_codes=9), TokenizerConfig(width=96)):
        assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert config_from_dict({"width": 96}) == TokenizerConfig(width=96)
    assert type(build_tokenizer(TokenizerConfig(width=32, heads=1, temporal_layers=0))) is OmniTokenizer
    wrong = [
        ({"architecture": "titok", "temporal_patch": 4}, "a.json.temporal_patch: unknown field of TiTokConfig"),
        ({"num_latents": 4}, "a.json.num_latents: unknown field of TokenizerConfig"),
        ({"quantizer": {"kinds": "vq"}}, "a.json.quantizer.kinds: unknown field"),
        ({"quantizer": 3}, "a.json.quantizer: expected an object, got 3"),
        (3, "a.json: expected an object, got 3"),
        ({"architecture": "dalle"}, "a.json.architecture: expected one of omni, titok, rae, vqgan, got 'dalle'"),
        ({"architecture": ["omni"]}, "a.json.architecture"),
        ({"width": "wide"}, "a.json: TokenizerConfig"),
        ({"architecture": "titok", "image_size": 20}, "image_size: expected a positive multiple"),
    ]
    for values, message in wrong:
        with pytest.raises(ValueError, match=message):
            config_from_dict(values, "a.json")
    with pytest.raises(ValueError, match="got VQConfig"):
        build_tokenizer(VQConfig())


def test_a_config_is_read_without_torch():
    code = (
        "import sys; from omniloom.models.tokenizer.build import config_from_dict;"
        "config_from_dict({'architecture': 'titok', 'image_size': [32, 32]}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
