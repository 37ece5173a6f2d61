"""What `unified.py` compares with: Transfusion's way of training written plainly, without packing.

A batch is padded to its longest document, every document has a mask over all pairs of positions, and every position
gets vocabulary logits and a flow prediction, of which the loss picks its own (as the public implementations of
arXiv 2408.11039 do). The decoder has the same shape and number of parameters as ours: pre-RMSNorm, rotary positions,
SDPA, SwiGLU. What the peers add to every token, a modulation by the time, is left out here, in the peer's favour.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        B, N, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (
            torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(v.dtype)
            for a, b in (t.chunk(2, -1) for t in (q, k))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, N, width))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class DensePeer(nn.Module):
    """ids (B, N) with -1 at patches and padding, latents (B, N, C) at patches, times (B, N), labels (B, N) or -100."""

    def __init__(self, vocab: int, latent_dim: int, width: int, layers: int, heads: int, hidden: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.embed = nn.Embedding(vocab, width)
        self.latent_in, self.latent_out = nn.Linear(latent_dim, width), nn.Linear(width, latent_dim)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DenseLayer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(
        self,
        ids: Tensor,
        latents: Tensor,
        patches: Tensor,
        times: Tensor,
        labels: Tensor,
        mask: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Loss. patches bool (B, N); mask bool (B, 1, N, N); positions float (B, N)."""
        noise = torch.randn_like(latents)
        t = times[..., None]
        noisy = (1 - t) * latents + t * noise
        half = self.width // 2
        angles = 1000 * t * torch.exp(-math.log(10000) * torch.arange(half, device=ids.device) / half)
        shown = self.latent_in(noisy) + self.time(torch.cat((angles.cos(), angles.sin()), -1))
        x = torch.where(patches[..., None], shown.float(), self.embed(ids.clamp(min=0)))
        inner = self.width // self.heads // 2
        turn = positions[:, None, :, None] / 10000 ** (torch.arange(inner, device=ids.device) / inner)
        for layer in self.layers:
            x = layer(x, turn.cos(), turn.sin(), mask)
        x = self.norm(x)
        logits = F.linear(x, self.embed.weight)
        text = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        flow = (self.latent_out(x).float() - (noise - latents)).square().mean(-1)
        return text + 5 * (flow * patches).sum() / patches.sum().clamp(min=1)
