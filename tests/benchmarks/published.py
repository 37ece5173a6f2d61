"""The published OmniTokenizer's computation, module by module and without any tricks: the measure for `official`.

In: the arguments of a released checkpoint (a Namespace or anything with such attributes) and its `state_dict`;
pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W). Out: `prequant` (B, c, t, h, w), codes (B, t, h, w), pixels.
The modules bear the published names, so that a released state_dict loads as it is. `path` picks between the two
attention paths of that code: "sdpa" computes the position bias and drops it, "einsum" adds it, and ALiBi in time.
Second implementation for the tests, and the baseline of the benchmark; needs only torch.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def published_args(**changes) -> SimpleNamespace:
    """The released joint configuration (17x256x256, 53.7 M parameters); `changes` replaces single arguments."""
    values = {
        "embedding_dim": 512, "heads": 8, "dim_head": 64, "ff_mult": 4.0, "patch_size": 8, "temporal_patch_size": 4,
        "enc_block": "ttww", "dec_block": "tttt", "temporal_depth": 4, "twod_window_size": 8,
        "spatial_pos": "rope", "n_codes": 8192, "codebook_dim": 8, "use_vae": False, "l2_code": True,
        "causal_in_temporal_transformer": True, "causal_in_peg": True,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


class GammaNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class GatedGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


def feed_forward(dim: int, mult: float) -> nn.Sequential:
    inner = int(mult * (2 / 3) * dim)
    up, down = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
    return nn.Sequential(nn.LayerNorm(dim), up, GatedGelu(), nn.Dropout(0.0), down)


class PositionConv(nn.Module):
    """The PEG. It reads the tokens' memory in the order of `grid`, whatever their real order is."""

    def __init__(self, dim: int, causal: bool) -> None:
        super().__init__()
        self.frame_pad = (2, 0) if causal else (1, 1)
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
        shape = x.shape
        x = x.reshape(*grid, shape[-1]).permute(0, 4, 1, 2, 3)
        x = self.dsconv(F.pad(x, (1, 1, 1, 1, *self.frame_pad)))
        return x.permute(0, 2, 3, 4, 1).reshape(shape)


class PositionBias(nn.Module):
    """Continuous position bias: an MLP on signed-log offsets, for every pair of places."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        hidden = [nn.Sequential(nn.Linear(width, dim), nn.LeakyReLU(0.1)) for width in (2, dim)]
        self.net = nn.ModuleList([*hidden, nn.Linear(dim, heads)])

    def forward(self, h: int, w: int, device: torch.device) -> Tensor:
        rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
        offsets = places[:, None] - places[None, :]
        out = torch.sign(offsets) * torch.log(offsets.abs() + 1)
        for layer in self.net:
            out = layer(out.to(self.net[-1].weight.dtype))
        return out.permute(2, 0, 1)


def rotation(n: int, head_dim: int, device: torch.device) -> Tensor:
    """(n, head_dim / 2) complex: x and y angles in turn, places read off a square of side int(sqrt(n))."""
    place, side = torch.arange(n, device=device), int(n**0.5)
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 4, device=device).float() / head_dim)
    x, y = torch.outer(place % side, frequencies), torch.outer(place // side, frequencies)
    angles = torch.stack((x, y), dim=-1).reshape(n, head_dim // 2)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x: (B, n, heads, head_dim)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(x)


def alibi(n: int, heads: int, device: torch.device) -> Tensor:
    """(heads, n, n), for a power of two of heads: minus distance times 2^(-8 i / heads)."""
    assert heads & (heads - 1) == 0
    slopes = torch.tensor([2.0 ** (-8.0 * (i + 1) / heads) for i in range(heads)], device=device)
    place = torch.arange(n, device=device)
    return -(place[None, :] - place[:, None]).abs() * slopes[:, None, None]


class CosineAttention(nn.Module):
    def __init__(self, args, causal: bool, positions: str, path: str) -> None:
        super().__init__()
        dim, self.heads = args.embedding_dim, args.heads
        inner = args.heads * args.dim_head
        self.causal, self.positions, self.path = causal, positions, path
        if positions == "rel":
            self.spatial_rel_pos_bias = PositionBias(dim, args.heads)
        self.norm, self.context_norm = GammaNorm(dim), GammaNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.q_scale, self.k_scale = nn.Parameter(torch.ones(args.dim_head)), nn.Parameter(torch.ones(args.dim_head))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, spatial: bool) -> Tensor:
        n = x.shape[1]
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(x).chunk(2, dim=-1)  # not normalised: so it was trained
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        if self.positions == "rope" and spatial:
            turns = rotation(n, q.shape[-1], x.device)
            q, k = rotate(q, turns), rotate(k, turns)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        q = F.normalize(q, dim=-1) * self.q_scale
        k = F.normalize(k, dim=-1) * self.k_scale
        bias = None
        if self.positions == "rel" and spatial:
            side = int(math.sqrt(n))
            bias = self.spatial_rel_pos_bias(side, side, x.device)
        if self.path == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=8)
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * 8
            if bias is not None:
                scores = scores + bias
            if self.causal:
                scores = scores + alibi(n, self.heads, x.device)
                later = torch.ones(n, n, device=x.device, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.finfo(scores.dtype).max)
            out = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class WindowedAttention(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        dim, self.heads, self.window = args.embedding_dim, args.heads, args.twod_window_size
        self.norm = GammaNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        span = 2 * self.window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span * span, self.heads))
        place = torch.arange(self.window)
        grid = torch.stack(torch.meshgrid(place, place, indexing="ij")).flatten(1)
        offset = grid[:, :, None] - grid[:, None, :] + self.window - 1
        self.register_buffer("relative_position_index", offset[0] * span + offset[1])

    def forward(self, x: Tensor, spatial: bool) -> Tensor:
        b, n, c = x.shape
        side, s = int(math.sqrt(n)), self.window
        x = self.norm(x).view(b, side // s, s, side // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(x).reshape(-1, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()].view(s * s, s * s, -1)
        scores = (scores + bias.permute(2, 0, 1).contiguous()).softmax(dim=-1)
        x = self.proj((scores @ v).transpose(1, 2).reshape(-1, s * s, c))
        return x.view(b, side // s, side // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, n, c)


class Transformer(nn.Module):
    def __init__(self, args, kinds: str, causal: bool, positions: str, path: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for kind in kinds:
            plain = kind == "t"
            conv = PositionConv(args.embedding_dim, args.causal_in_peg) if plain else None
            attention = CosineAttention(args, causal, positions, path) if plain else WindowedAttention(args)
            last = feed_forward(args.embedding_dim, args.ff_mult)
            self.layers.append(nn.ModuleList([conv, attention, None, last]))
        self.norm_out = GammaNorm(args.embedding_dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int, int], spatial: bool) -> Tensor:
        for conv, attention, _, last in self.layers:
            if conv is not None:
                x = conv(x, grid) + x
            x = attention(x, spatial) + x
            x = last(x) + x
        return self.norm_out(x)


class Patches(nn.Module):
    """(B, C, k * pt, H, W) -> (B, k, h, w, C * pt * p * p)."""

    def __init__(self, p: int, pt: int) -> None:
        super().__init__()
        self.p, self.pt = p, pt

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, self.pt)).unflatten(4, (-1, self.p)).unflatten(6, (-1, self.p))
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


class Pixels(Patches):
    """The inverse of `Patches`."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (3, self.pt, self.p, self.p)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Encoder(nn.Module):
    def __init__(self, args, path: str) -> None:
        super().__init__()
        dim, p, pt = args.embedding_dim, args.patch_size, args.temporal_patch_size
        first, later = 3 * p * p, 3 * p * p * pt

        def embed(size: int, frames: int) -> nn.Sequential:
            return nn.Sequential(Patches(p, frames), nn.LayerNorm(size), nn.Linear(size, dim), nn.LayerNorm(dim))

        self.to_patch_emb_first_frame, self.to_patch_emb = embed(first, 1), embed(later, pt)
        self.enc_spatial_transformer = Transformer(args, args.enc_block, False, args.spatial_pos, path)
        causal = args.causal_in_temporal_transformer
        self.enc_temporal_transformer = Transformer(args, "t" * args.temporal_depth, causal, "rel", path)

    def forward(self, video: Tensor) -> Tensor:
        tokens = self.to_patch_emb_first_frame(video[:, :, :1])
        if video.shape[2] > 1:
            tokens = torch.cat((tokens, self.to_patch_emb(video[:, :, 1:])), dim=1)
        b, t, h, w, d = tokens.shape
        tokens = self.enc_spatial_transformer(tokens.reshape(b * t, h * w, d), (b, t, h, w), True)
        tokens = tokens.view(b, t, h, w, d).permute(0, 2, 3, 1, 4).reshape(b * h * w, t, d)
        tokens = self.enc_temporal_transformer(tokens, (b, t, h, w), False)
        return tokens.view(b, h, w, t, d).permute(0, 4, 3, 1, 2)


class Decoder(nn.Module):
    def __init__(self, args, path: str) -> None:
        super().__init__()
        dim, p, pt = args.embedding_dim, args.patch_size, args.temporal_patch_size
        causal = args.causal_in_temporal_transformer
        self.dec_spatial_transformer = Transformer(args, args.dec_block, False, args.spatial_pos, path)
        self.dec_temporal_transformer = Transformer(args, "t" * args.temporal_depth, causal, "rel", path)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, 3 * p * p), Pixels(p, 1))
        self.to_pixels = nn.Sequential(nn.Linear(dim, 3 * p * p * pt), Pixels(p, pt))

    def forward(self, latents: Tensor) -> Tensor:
        tokens = latents.permute(0, 2, 3, 4, 1).contiguous()
        b, t, h, w, d = tokens.shape
        tokens = tokens.permute(0, 2, 3, 1, 4).reshape(b * h * w, t, d)
        tokens = self.dec_temporal_transformer(tokens, (b, t, h, w), False)
        tokens = tokens.view(b, h, w, t, d).permute(0, 3, 1, 2, 4).reshape(b * t, h * w, d)
        tokens = self.dec_spatial_transformer(tokens, (b, t, h, w), True).view(b, t, h, w, d)
        pixels = self.to_pixels_first_frame(tokens[:, :1])
        if t > 1:
            pixels = torch.cat((pixels, self.to_pixels(tokens[:, 1:])), dim=2)
        return pixels


class Codebook(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.randn(args.n_codes, args.codebook_dim))
        self.register_buffer("N", torch.zeros(args.n_codes))
        self.register_buffer("z_avg", self.embeddings.clone())
        self.register_buffer("codebook_usage", torch.zeros(args.n_codes))

    def forward(self, z: Tensor) -> Tensor:
        """Unit latents (B, c, t, h, w) -> nearest codes (B, t, h, w)."""
        flat = z.movedim(1, -1).flatten(0, -2)
        distances = (flat**2).sum(1, keepdim=True) - 2 * flat @ self.embeddings.t() + (self.embeddings.t() ** 2).sum(0)
        return distances.argmin(dim=1).view(z.shape[0], *z.shape[2:])


class ChannelLinear(nn.Sequential):
    """A linear layer on the channels of (B, c, t, h, w), at the published index 1."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(dim_in, dim_out), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self[1](x.movedim(1, -1)).movedim(-1, 1)


class PublishedTokenizer(nn.Module):
    """The published tokenizer in eval mode; `path` is "sdpa" or "einsum"."""

    def __init__(self, args, path: str = "sdpa") -> None:
        super().__init__()
        self.use_vae = args.use_vae
        self.encoder, self.decoder, self.codebook = Encoder(args, path), Decoder(args, path), Codebook(args)
        channels = args.codebook_dim * (2 if args.use_vae else 1)
        self.pre_vq_conv = ChannelLinear(args.embedding_dim, channels)
        self.post_vq_conv = ChannelLinear(args.codebook_dim, args.embedding_dim)

    def prequant(self, x: Tensor) -> Tensor:
        """(B, c, t, h, w); for the KL model means and log-variances."""
        return self.pre_vq_conv(self.encoder(x.unsqueeze(2) if x.ndim == 4 else x))

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, t, h, w), or the KL model's means (B, c, t, h, w)."""
        z = self.prequant(x)
        return z.chunk(2, dim=1)[0] if self.use_vae else self.codebook(F.normalize(z, dim=1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, t, h, w), or float latents (B, c, t, h, w), to pixels (B, 3, T, H, W)."""
        z = codes if codes.is_floating_point() else F.embedding(codes, self.codebook.embeddings).movedim(-1, 1)
        return self.decoder(self.post_vq_conv(z))
