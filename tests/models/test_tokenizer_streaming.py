"""A video in chunks: the same codes and pixels as in one piece, in memory that does not grow with its length."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.models.tokenizer.blocks import QK_NORM_SCALE, banded_attention
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import GaussianConfig, VQConfig
from omniloom.models.tokenizer.streaming import TemporalState, video_chunks

MARGIN = 1e-5  # codes whose two best scores are closer may differ by rounding


def build(window: int = 3, kind: str = "vq", **changes) -> OmniTokenizer:
    torch.manual_seed(0)
    shape = {"width": 32, "heads": 2, "head_dim": 16, "temporal_layers": 2, "window": 2, "temporal_patch": 2}
    layers = {"spatial_layers": "tw", "decoder_spatial_layers": "wt", "temporal_window": window}
    quantizer = GaussianConfig(latent_dim=4) if kind == "kl" else VQConfig(codebook_size=64, latent_dim=4)
    model = OmniTokenizer(TokenizerConfig(**{**shape, **layers, "quantizer": quantizer, **changes}))
    with torch.no_grad():  # leave the special state of a fresh model: every weight takes part
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def clip(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def cut(x: torch.Tensor, latent_frames: list[int], patch: int = 2) -> list[torch.Tensor]:
    """x in chunks of so many latent frames, the first with the image frame as one of them."""
    sizes = [1 + (latent_frames[0] - 1) * patch, *(n * patch for n in latent_frames[1:])]
    assert sum(sizes) == x.shape[2]
    return list(x.split(sizes, dim=2))


def assert_codes_agree(model: OmniTokenizer, codes: torch.Tensor, latents: torch.Tensor, expected: torch.Tensor):
    """codes equal `expected` wherever the choice between two codes was no matter of rounding."""
    scores = latents.movedim(1, -1) @ model.codebook.embeddings.T
    best = scores.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > MARGIN
    assert clear.float().mean() > 0.9
    assert torch.equal(codes[clear], expected[clear])


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    window=st.integers(0, 6),
    batch=st.integers(1, 2),
    norm=st.booleans(),
)
@torch.no_grad()
def test_chunks_give_the_codes_and_pixels_of_one_piece(parts, window, batch, norm):
    model = build(window, patch_norm=norm)
    x = clip(batch, 3, 1 + 2 * (sum(parts) - 1), 16, 8)
    whole = model.encode(x)
    encoded = list(model.encode_chunks(cut(x, parts)))
    for name in ("latents", "prequant"):
        joined = torch.cat([getattr(chunk, name) for chunk in encoded], dim=2)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-5)
    assert_codes_agree(model, torch.cat([chunk.codes for chunk in encoded], dim=1), whole.latents, whole.codes)
    # decoded in other chunks than it was encoded in
    codes = whole.codes.split(parts[::-1], dim=1)
    pixels = torch.cat(list(model.decode_chunks(codes)), dim=2)
    torch.testing.assert_close(pixels, model.decode(whole.codes), rtol=0, atol=1e-5)


@torch.no_grad()
def test_continuous_latents_in_chunks():
    model = build(kind="kl")
    x = clip(1, 3, 13, 16, 16)
    whole = model.encode(x).latents
    chunks = [chunk.latents for chunk in model.encode_chunks(video_chunks(x, 2, latent_frames=2))]
    torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=0, atol=1e-5)
    pixels = torch.cat(list(model.decode_chunks(chunks)), dim=2)
    torch.testing.assert_close(pixels, model.decode(latents=whole), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_frame_far_back_is_out_of_sight_and_a_near_one_is_not():
    layers, window = 2, 3
    model = build(window, temporal_layers=layers, kind="kl", spatial_layers="w")
    frames = 14
    a = clip(1, 3, 1 + 2 * (frames - 1), 8, 8)
    b = a.clone()
    b[:, :, 0] += 0.1
    changed = (model.encode(a).latents - model.encode(b).latents).abs().amax(dim=(0, 1, 3, 4))
    reach = layers * (2 + window - 1)  # each temporal block: two frames by convolution, window - 1 by attention
    assert (changed[: reach + 1] > 0).all()
    assert (changed[reach + 1 :] == 0).all()


@settings(max_examples=40, deadline=None)
@given(t=st.integers(1, 70), past=st.integers(0, 9), window=st.integers(0, 20))
def test_banded_attention_against_a_full_mask(t, past, window):
    past = min(past, window - 1) if window else past
    generator = torch.Generator().manual_seed(t)
    q, k, v = (torch.randn(n, 3, 2, 4, generator=generator, dtype=torch.float64) for n in (t, past + t, past + t))
    scores = QK_NORM_SCALE * torch.einsum("qnhd,knhd->nhqk", q, k)
    distance = torch.arange(past, past + t)[:, None] - torch.arange(past + t)
    seen = (distance >= 0) & (distance < (window or math.inf))
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    expected = torch.einsum("nhqk,knhd->qnhd", weights, v)
    torch.testing.assert_close(banded_attention(q, k, v, window), expected)


@torch.no_grad()
def test_the_state_stops_growing():
    model = build(window=3)
    sizes = []
    state = TemporalState()
    for chunk in video_chunks(clip(1, 3, 41, 16, 16), 2, latent_frames=4):
        model.encode(chunk, state=state)
        sizes.append(state.num_bytes)
    assert state.latent_frames == 21 and len(set(sizes)) == 1
    # plain blocks: two frames of the convolution; temporal ones also window - 1 keys and values
    places, width, inner = 4, 32, 32
    assert sizes[0] == 4 * places * (3 * 2 * width + 2 * 2 * 2 * inner)
    unlimited, grows = build(window=0), TemporalState()
    held = [unlimited.encode(c, state=grows) and grows.num_bytes for c in video_chunks(clip(1, 3, 41, 16, 16), 2)]
    assert held == sorted(set(held))


def test_video_chunks_of_a_tensor_and_of_frames():
    x = clip(1, 3, 15, 8, 8)
    chunks = list(video_chunks(x, 2, latent_frames=3))
    assert [c.shape[2] for c in chunks] == [7, 6, 2]
    assert torch.equal(torch.cat(chunks, dim=2), x)
    read = []

    def frames():
        for i in range(15):
            read.append(i)
            yield x[0, :, i]

    lazy = video_chunks(frames(), 2, latent_frames=3)
    assert torch.equal(next(lazy), chunks[0]) and len(read) == 7
    assert [c.shape[2] for c in lazy] == [6, 2]
    with pytest.raises(ValueError, match="1 plus a multiple of 2, got 14"):
        video_chunks(x[:, :, :14], 2)
    with pytest.raises(ValueError, match="1 plus a multiple of 2, got 14"):
        list(video_chunks(list(x[:, :, :14].unbind(2)), 2))
    with pytest.raises(ValueError, match="1 plus a multiple of 2, got 0"):
        list(video_chunks([], 2))
    with pytest.raises(ValueError, match="latent_frames: expected at least 1, got 0"):
        video_chunks(x, 2, latent_frames=0)
    with pytest.raises(ValueError, match=r"video: expected \(B, 3, T, H, W\)"):
        video_chunks(x[0], 2)


@torch.no_grad()
def test_chunks_that_do_not_continue_the_video_are_named():
    model, state = build(), TemporalState()
    with pytest.raises(ValueError, match="1 plus a multiple of 2, got 4"):
        model.encode(clip(1, 3, 4, 16, 16), state=state)
    first = model.encode(clip(1, 3, 5, 16, 16), state=state)
    with pytest.raises(ValueError, match="a later chunk's frames must be a multiple of 2, got 3"):
        model.encode(clip(1, 3, 3, 16, 16), state=state)
    with pytest.raises(ValueError, match="a later chunk's frames must be a multiple of 2, got 1"):
        model.encode(clip(1, 3, 16, 16), state=state)
    with pytest.raises(ValueError, match=r"expected \(batch, h, w\) \(1, 2, 2\) as before, got \(1, 2, 3\)"):
        model.encode(clip(1, 3, 4, 16, 24), state=state)
    with pytest.raises(ValueError, match=r"got \(2, 2, 2\)"):
        model.encode(clip(2, 3, 4, 16, 16), state=state)
    with pytest.raises(ValueError, match="of a video in `encode`, got it in `decode`"):
        model.decode(first.codes, state=state)
    assert state.latent_frames == 3  # what was refused left no trace
    rest = clip(1, 3, 4, 16, 16, seed=2)
    whole = model.encode(torch.cat((clip(1, 3, 5, 16, 16), rest), dim=2))
    latents = model.encode(rest, state=state).latents
    torch.testing.assert_close(latents, whole.latents[:, :, 3:], rtol=0, atol=1e-5)


def test_training_with_a_state_and_activation_checkpointing():
    model = build().train()
    x = clip(1, 3, 9, 16, 16)
    grads = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        state = TemporalState()
        for chunk in cut(x, [3, 2]):
            model.encode(chunk, state=state).prequant.square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


@torch.no_grad()
def test_the_encoder_is_one_graph_to_the_compiler():
    model = build(temporal_layers=1)
    x = clip(1, 3, 13, 16, 16)
    expected = model.encode(x)
    model.encoder.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.encode(x).latents, expected.latents)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_agrees():
    model = build()
    x = clip(1, 3, 13, 16, 16)
    expected, recon = model.encode(x), model(x)[0]
    model.encoder.compile(fullgraph=True)
    model.decoder.compile(fullgraph=True)
    torch.testing.assert_close(model(x)[0], recon, rtol=1e-3, atol=1e-4)
    latents = torch.cat([chunk.latents for chunk in model.encode_chunks(cut(x, [3, 2, 2]))], dim=2)
    torch.testing.assert_close(latents, expected.latents, rtol=0, atol=1e-4)


PROBE = """
import pathlib, sys
import torch
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import GaussianConfig, VQConfig
from omniloom.models.tokenizer.streaming import video_chunks

torch.set_num_threads(1)
torch.manual_seed(0)
total, whole = int(sys.argv[1]), int(sys.argv[2])
model = OmniTokenizer(TokenizerConfig(width=32, heads=2, head_dim=16, temporal_layers=2, window=2, spatial_layers="tw",
                                      decoder_spatial_layers="wt", quantizer=VQConfig(codebook_size=64)))
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
model.eval()

def frames():
    generator = torch.Generator().manual_seed(1)
    for _ in range(total):
        yield torch.rand(3, 16, 16, generator=generator) - 0.5

codes = []

def encoded():
    for chunk in model.encode_chunks(video_chunks(frames(), 4, latent_frames=8)):
        codes.append(chunk.codes)
        yield chunk.codes

assert sum(pixels.shape[2] for pixels in model.decode_chunks(encoded())) == total
# Not getrusage: its peak begins with that of the process which started this one.
status = pathlib.Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
differ = -1
if whole:
    with torch.no_grad():
        piece = model.encode(torch.stack(list(frames()), 1).unsqueeze(0))
    scores = (piece.latents.movedim(1, -1) @ model.codebook.embeddings.T).topk(2, dim=-1).values
    clear = scores[..., 0] - scores[..., 1] > 1e-5
    differ = int((torch.cat(codes, 1) != piece.codes)[clear].sum())
print(peak, sum(c.shape[1] for c in codes), differ)
"""


def probe(frames: int, whole: bool) -> tuple[float, int, int]:
    """A made-up video in chunks, in a process of its own: peak MB, latent frames, codes unlike those of one piece."""
    command = [sys.executable, "-c", PROBE, str(frames), str(int(whole))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, latent_frames, differ = output.split()
    return float(peak), int(latent_frames), int(differ)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_ten_minutes_take_no_more_memory_than_forty_seconds():
    short, _, short_differ = probe(1_001, whole=True)
    long, latent_frames, differ = probe(15_001, whole=True)
    assert latent_frames == 3_751
    assert short_differ == differ == 0
    print(f"peak RSS: {short:.1f} MB for 1,001 frames, {long:.1f} MB for 15,001")
    assert long - short < 8.0
