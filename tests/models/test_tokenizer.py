"""OmniTokenizer: shapes, causality in time, images inside videos, inflation, any size, learning."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.models.patches import patchify, unpatchify
from omniloom.models.tokenizer.blocks import (
    Attention,
    CausalDepthwiseConv,
    WindowAttention,
    spatial_table,
    temporal_table,
)
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.losses import TokenizerObjective
from omniloom.models.tokenizer.losses_config import TokenizerLossConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import FSQConfig, GaussianConfig, VQConfig

QUANTIZERS = {
    "vq": VQConfig(codebook_size=64, latent_dim=4),
    "fsq": FSQConfig(levels=(8, 5, 5)),
    "kl": GaussianConfig(latent_dim=4),
}


def small(kind: str = "vq", **changes) -> TokenizerConfig:
    shape = {"width": 32, "heads": 2, "head_dim": 16, "temporal_layers": 2, "window": 2}
    layers = {"spatial_layers": "tw", "decoder_spatial_layers": "wt"}
    return TokenizerConfig(**{**shape, **layers, "quantizer": QUANTIZERS[kind], **changes})


def build(kind: str = "vq", **changes) -> OmniTokenizer:
    torch.manual_seed(0)
    model = OmniTokenizer(small(kind, **changes))
    with torch.no_grad():  # leave the special state of a fresh model: every weight takes part
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def clip(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_shapes_and_types(kind):
    model = build(kind)
    for x, grid in ((clip(2, 3, 16, 24), (1, 2, 3)), (clip(2, 3, 9, 24, 16), (3, 3, 2))):
        recon, encoded = model(x)
        assert recon.shape == x.shape and recon.dtype == x.dtype
        assert encoded.latents.shape == encoded.z_q.shape == (2, model.latent_dim, *grid)
        assert encoded.latents.dtype == torch.float32
        assert encoded.loss.ndim == 0
        assert model.grid(1 if x.ndim == 4 else 9, *x.shape[-2:]) == grid
        if kind == "kl":
            assert encoded.codes is None and model.codebook_size is None
        else:
            assert encoded.codes.shape == (2, *grid) and encoded.codes.dtype == torch.int64
            assert int(encoded.codes.max()) < model.codebook_size


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_decoding_codes_and_latents_agrees_with_forward(kind):
    model = build(kind)
    x = clip(2, 3, 5, 16, 16)
    recon, encoded = model(x)
    torch.testing.assert_close(model.decode(encoded.codes), recon)
    torch.testing.assert_close(model.decode(latents=encoded.latents), recon)
    assert not torch.allclose(model.decode(latents=encoded.latents, quantize=False), recon, atol=1e-4)
    image = x[:, :, 0]
    assert model.decode(model.encode(image).codes).shape == (2, 3, 1, 16, 16)


def test_kl_decodes_its_mean_and_samples_in_training():
    model = build("kl")
    x = clip(2, 3, 16, 16)
    recon, encoded = model(x)
    torch.testing.assert_close(model.decode(latents=encoded.latents).squeeze(2), recon)
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_later_frames_change_no_earlier_token(kind):
    model = build(kind)
    x, other = clip(1, 3, 13, 16, 16), clip(1, 3, 13, 16, 16, seed=2)
    for seen in (1, 2, 3):  # latent frames kept; the rest of the clip is replaced
        frames = 1 + (seen - 1) * 4
        changed = torch.cat((x[:, :, :frames], other[:, :, frames:]), dim=2)
        a, b, alone = model.encode(x), model.encode(changed), model.encode(x[:, :, :frames])
        torch.testing.assert_close(a.latents[:, :, :seen], b.latents[:, :, :seen])
        torch.testing.assert_close(a.latents[:, :, :seen], alone.latents)
        assert not torch.allclose(a.latents[:, :, seen:], b.latents[:, :, seen:])
        if a.codes is not None:
            assert torch.equal(a.codes[:, :seen], alone.codes)
        decoded = model.decode(latents=a.z_q, quantize=False)[:, :, :frames]
        torch.testing.assert_close(decoded, model.decode(latents=alone.z_q, quantize=False))


def test_no_gradient_from_earlier_tokens_to_later_frames():
    model = build("kl")
    x = clip(1, 3, 9, 16, 16).requires_grad_()
    model.encode(x).latents[:, :, 1].sum().backward()
    assert x.grad[:, :, 5:].abs().max() == 0
    assert x.grad[:, :, :5].abs().amin(dim=(0, 1)).sum() > 0


def test_image_encodes_like_the_first_frame():
    model = build()
    x = clip(2, 3, 9, 24, 16)
    image, video, single = model.encode(x[:, :, 0]), model.encode(x), model.encode(x[:, :, :1])
    torch.testing.assert_close(image.latents, video.latents[:, :, :1])
    torch.testing.assert_close(image.latents, single.latents)
    assert torch.equal(image.codes, video.codes[:, :1])


@pytest.mark.parametrize("norm", [False, True])
def test_inflated_model_treats_a_still_video_like_its_image(norm):
    source = build(patch_norm=norm)
    model = OmniTokenizer(small(patch_norm=norm)).eval()
    model.load_from(source.state_dict(), inflate_video=True)
    image = clip(2, 3, 16, 24)
    still = image.unsqueeze(2).expand(-1, -1, 9, -1, -1)
    tokens = model.encoder.embed(still)
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), rtol=1e-4, atol=1e-5)
    recon, encoded = model(still)
    image_recon, image_encoded = model(image)
    assert torch.equal(encoded.codes, image_encoded.codes.expand_as(encoded.codes))
    torch.testing.assert_close(recon, image_recon.unsqueeze(2).expand_as(recon), rtol=1e-3, atol=1e-4)
    # and images come through the inflation as they were
    source.init_video_from_image_()
    torch.testing.assert_close(image_recon, source(image)[0])


def test_load_from_names_what_does_not_fit_and_then_loads_nothing():
    state = build().state_dict()
    wider = VQConfig(codebook_size=64, latent_dim=5)
    model = OmniTokenizer(small(quantizer=wider))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="of another shape: codebook.ema_sum, codebook.emb"):
        model.load_from(state)
    with pytest.raises(ValueError, match="of another shape: decoder.dec_spatial_transformer"):
        OmniTokenizer(small(heads=4)).load_from(state, new_bottleneck=True)
    with pytest.raises(ValueError, match="unknown: decoder.dec_temporal_transformer.layers.1"):
        OmniTokenizer(small(temporal_layers=1)).load_from(state, new_bottleneck=True)
    state.pop("post_vq.bias")
    with pytest.raises(ValueError, match=r"missing: post_vq.bias \(1 in all\)"):
        model.load_from(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_load_from_takes_every_weight_and_the_codebook():
    source = build()
    model = OmniTokenizer(small()).eval()
    model.load_from(source.state_dict())
    x = clip(1, 3, 9, 16, 16)
    torch.testing.assert_close(model(x)[0], source(x)[0])
    assert torch.equal(model.encode(x).codes, source.encode(x).codes)


@pytest.mark.parametrize("kind", ["kl", "fsq", "vq"])
def test_a_new_bottleneck_keeps_all_other_weights(kind):
    source, model = build(), OmniTokenizer(small(kind)).eval()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_from(source.state_dict(), new_bottleneck=True)
    for name, value in model.state_dict().items():
        bottleneck = name.startswith(("codebook.", "pre_vq.", "post_vq."))
        assert torch.equal(value, fresh[name] if bottleneck else source.state_dict()[name]), name
    assert model(clip(1, 3, 5, 16, 16))[0].isfinite().all()


@settings(max_examples=12, deadline=None)
@given(h=st.integers(1, 7), w=st.integers(1, 7), t=st.integers(1, 3))
def test_any_grid_that_the_patch_divides(h, w, t):
    model = build(window=3)
    x = clip(1, 3, 1 + 4 * (t - 1), 8 * h, 8 * w)
    recon, encoded = model(x)
    assert recon.shape == x.shape and recon.isfinite().all()
    assert encoded.codes.shape == (1, t, h, w)


def test_where_a_token_is_a_frame_every_frame_has_its_own():
    model = build(temporal_patch=1)
    assert [model.grid(frames, 16, 8) for frames in (1, 2, 5)] == [(1, 2, 1), (2, 2, 1), (5, 2, 1)]
    x = clip(1, 3, 3, 16, 16)
    recon, encoded = model(x)
    assert recon.shape == x.shape and encoded.codes.shape == (1, 3, 2, 2)


@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 7), w=st.integers(1, 7), window=st.integers(1, 4))
def test_window_attention_against_plain_loops(h, w, window):
    torch.manual_seed(0)
    layer = WindowAttention(small(window=window)).double()
    torch.nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(2, h, w, 32, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).unflatten(-1, (3, 2, 16)).unbind(-3)
    wh, ww, side = min(window, h), min(window, w), 2 * window - 1
    expected = torch.zeros(2, h, w, 2, 16, dtype=torch.float64)
    for y in range(h):
        for z in range(w):
            top, left = y // wh * wh, z // ww * ww
            places = [(a, b) for a in range(top, min(top + wh, h)) for b in range(left, min(left + ww, w))]
            keys = torch.stack([k[:, a, b] for a, b in places], dim=1)
            values = torch.stack([v[:, a, b] for a, b in places], dim=1)
            index = [(y - a + window - 1) * side + z - b + window - 1 for a, b in places]
            scores = torch.einsum("bnd,bknd->bkn", q[:, y, z], keys) / 4
            scores = scores + layer.relative_position_bias_table[index]
            expected[:, y, z] = torch.einsum("bkn,bknd->bnd", scores.softmax(1), values)
    torch.testing.assert_close(layer(x), layer.proj(expected.flatten(-2)))


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_depthwise_conv_is_conv3d_with_causal_padding(frames):
    torch.manual_seed(0)
    layer = CausalDepthwiseConv(6)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(frames, 2, 4, 5, 6)
    padded = F.pad(x.permute(1, 4, 0, 2, 3), (1, 1, 1, 1, 2, 0))
    expected = F.conv3d(padded, layer.weight, layer.bias, groups=6).permute(2, 0, 3, 4, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    for known in range(1, frames):  # frames seen before
        late = layer(x[known:], x[max(0, known - 2) : known])
        torch.testing.assert_close(late, expected[known:], rtol=1e-4, atol=1e-5)


def random_attention() -> Attention:
    torch.manual_seed(0)
    layer = Attention(small()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def test_attention_against_plain_loops():
    layer, (h, w) = random_attention(), (2, 3)
    x = torch.randn(2, h * w, 32, dtype=torch.float64)
    q, k, v = layer.to_qkv(layer.norm(x)).unflatten(-1, (3, 2, 16)).unbind(-3)

    def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
        """Pairs (j, j + 8) as complex numbers, row angles on even j, column angles on odd j."""
        pairs = torch.complex(vector[..., :8], vector[..., 8:])
        angles = [(place // w, place % w)[j % 2] * 10000.0 ** (-(j - j % 2) / 8) for j in range(8)]
        pairs = pairs * torch.polar(torch.ones(8, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        return torch.cat((pairs.real, pairs.imag), -1)

    q = torch.stack([turned(F.normalize(q[:, i], dim=-1) * layer.q_scale, i) for i in range(h * w)], 1)
    k = torch.stack([turned(F.normalize(k[:, i], dim=-1) * layer.k_scale, i) for i in range(h * w)], 1)
    weights = (8.0 * torch.einsum("bihd,bjhd->bhij", q, k)).softmax(-1)
    expected = layer.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    table = spatial_table(h, w, 16, torch.device("cpu")).double()
    torch.testing.assert_close(layer(x, table), expected, rtol=1e-5, atol=1e-5)  # the table is float32


def test_scores_depend_on_offsets_alone():
    layer = random_attention()
    x = torch.randn(1, 1, 32, dtype=torch.float64).expand(1, 16, 32)
    table = spatial_table(4, 4, 16, torch.device("cpu")).double()
    q, k, _ = layer._heads(x, table)
    scores = torch.einsum("ihd,jhd->hij", q[0], k[0]).reshape(2, 4, 4, 4, 4)  # query row, column, key row, column
    torch.testing.assert_close(scores[:, 1:, 1:, 1:, 1:], scores[:, :-1, :-1, :-1, :-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[:, 0, 0, 0, 1], scores[:, 0, 0, 1, 0])


def test_time_stays_exact_far_into_a_video():
    early, late = (temporal_table(start, 9, 64, torch.device("cpu")).double() for start in (0, 90_000))

    def turns(table: torch.Tensor) -> torch.Tensor:
        turn = torch.complex(table[0], table[1])
        return turn[1:] * turn[:-1].conj()  # what scores see: the turn from one frame to the next

    torch.testing.assert_close(turns(late), turns(early), rtol=0, atol=3e-7)


def test_patchify_order_and_inverse():
    x = torch.arange(2 * 3 * 4 * 4 * 6).reshape(2, 3, 4, 4, 6)
    patches = patchify(x, 2, 4)
    assert patches.shape == (2, 1, 2, 3, 3 * 4 * 2 * 2)
    assert torch.equal(patches[1, 0, 1, 2], x[1, :, :, 2:4, 4:6].flatten())
    assert torch.equal(unpatchify(patches, 2, 4), x)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_spoilt_example_spoils_neither_its_neighbours_nor_the_codebook(kind, value):
    model = build(kind).train()
    x = clip(3, 3, 5, 16, 16)
    model.encode(x, update_codebook=True)
    x[1, 0, 2, 3, 4] = value
    encoded = model.encode(x, update_codebook=True)
    floats = [buffer for buffer in model.codebook.buffers() if buffer.is_floating_point()]
    assert all(buffer.isfinite().all() for buffer in floats)
    assert encoded.latents[::2].isfinite().all()
    assert encoded.codes is None or int(encoded.codes.max()) < model.codebook_size
    assert not encoded.prequant[1].isfinite().all()  # nothing hides it from the loop that stops on it


def test_bad_input_is_named():
    model = build()
    for shape, message in (
        ((1, 3, 20, 16), "multiples of 8, got 20x16"),
        ((1, 3, 4, 4), "multiples of 8, got 4x4"),
        ((1, 3, 4, 16, 16), "1 plus a multiple of 4, got 4"),
        ((1, 1, 16, 16), "expected float"),
        ((3, 16, 16), "expected float"),
        ((1, 3, 0, 16, 16), "1 plus a multiple of 4, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="uint8"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="either codes or latents"):
        model.decode()
    with pytest.raises(ValueError, match=r"\[0, 64\), got 0 to 64"):
        model.decode(torch.tensor([[[[0, 64]]]]))
    with pytest.raises(ValueError, match="expected integers"):
        model.decode(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"latents: expected \(B, 4, t, h, w\)"):
        model.decode(latents=torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(ValueError, match=r"codes: expected \(B, t, h, w\), got \(1, 2, 2\)"):
        model.decode(torch.zeros(1, 2, 2, dtype=torch.int64))
    official = OmniTokenizer(small(compat="official"))
    for chunks in (
        lambda: official.encode_chunks([clip(1, 3, 5, 16, 16)]),
        lambda: official.decode_chunks([torch.zeros(1, 2, 2, 2, dtype=torch.int64)]),
    ):
        with pytest.raises(ValueError, match="not causal and takes no chunks, got compat official"):
            list(chunks())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TokenizerConfig(spatial_layers="tx"), "spatial_layers"),
        (lambda: TokenizerConfig(head_dim=6), "head_dim"),
        (lambda: TokenizerConfig(temporal_window=-1), "temporal_window"),
        (lambda: VQConfig(kind="nope"), "kind"),
        (lambda: FSQConfig(levels=()), "levels"),
        (lambda: FSQConfig(levels=(8, 2)), "levels"),
        (lambda: VQConfig(ema_decay=1.0), "ema_decay"),
        (lambda: TokenizerLossConfig(reconstruction="l3"), "reconstruction"),
        (lambda: TokenizerLossConfig(adversarial_start=-1), "adversarial_start"),
    ],
)
def test_bad_config_names_the_field(make, field):
    with pytest.raises(ValueError, match=rf"\.{field}: expected"):
        make()


def test_config_needs_no_torch():
    code = "import omniloom.models.tokenizer.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_size():
    with torch.device("meta"):
        model = OmniTokenizer(TokenizerConfig())
    assert model.grid(17, 256, 256) == (5, 32, 32)
    # 53.7 M published, of which about 2 M are position-bias networks that rotary positions do without
    assert 51.5e6 < model.num_params < 53.7e6


def test_loss_falls_on_a_fixed_batch():
    torch.manual_seed(0)
    objective = TokenizerObjective(small(temporal_layers=1))
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    x = F.interpolate(clip(8, 3, 5, 4, 4), size=(5, 16, 16), mode="trilinear")
    losses = []
    for _ in range(60):
        loss, logs, _ = objective(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in logs.values())


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_bf16_autocast_and_cast_models(kind):
    model = build(kind).train()
    x = clip(2, 3, 5, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recon, encoded = model(x, update_codebook=True)
    (F.l1_loss(recon, x) + encoded.loss).backward()
    assert recon.dtype == torch.float32 and recon.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    cast = build(kind).to(torch.bfloat16)
    floats = [b for b in cast.codebook.buffers() if b.is_floating_point()]
    assert all(b.dtype == torch.float32 for b in floats)
    assert cast(x)[0].isfinite().all() and cast(x.bfloat16())[0].dtype == torch.bfloat16


def test_activation_checkpointing_changes_nothing():
    model = build().train()
    x = clip(1, 3, 5, 16, 16)
    grads = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        model(x)[0].square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_every_weight_learns_from_a_video():
    model = build().train()
    recon, encoded = model(clip(1, 3, 9, 16, 16))
    (recon.square().mean() + encoded.loss).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert idle == []
