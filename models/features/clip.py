"""CLIP: pictures and texts in one space (arXiv 2103.00020), under the names of `transformers`.

In: pixels normalised by MEAN and STD, (B, 3, S, S) of the config's side; ids of texts. Out: float32 embeddings
(B, dim), as the projections give them, not divided by their length. `models.features.dual` reads a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.features.clip_config import MEAN, STD, ClipConfig, TowerConfig
from omniloom.models.norms import LayerNorm


class Attention(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(config.width, config.width))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.activation == "quick_gelu":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate="tanh" if self.activation == "gelu_pytorch_tanh" else "none"))


class Layer(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Tower(nn.Module):
    """Pre-norm blocks, under the checkpoint's names: (B, N, width) -> same."""

    def __init__(self, config: TowerConfig, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        layers: Any = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.encoder = nn.ModuleDict({"layers": layers})

    def blocks(self, x: Tensor) -> Tensor:
        layers: Any = self.encoder["layers"]
        for layer in layers:
            x = layer(x, self.causal)
        return x


class VisionTower(Tower):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config.vision, causal=False)
        width, eps = config.vision.width, config.vision.norm_eps
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(width))
        self.embeddings.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.embeddings.position_embedding = nn.Embedding(1 + config.grid**2, width)
        self.pre_layrnorm = LayerNorm(width, eps=eps)  # as the checkpoints spell it
        self.post_layernorm = LayerNorm(width, eps=eps)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixels).flatten(2).mT
        first = self.embeddings.class_embedding.expand(len(pixels), 1, -1)
        x = torch.cat((first, patches), 1) + self.embeddings.position_embedding.weight
        return self.post_layernorm(self.blocks(self.pre_layrnorm(x))[:, 0])


class TextTower(Tower):
    def __init__(self, config: ClipConfig, tower: TowerConfig) -> None:
        super().__init__(tower, causal=True)
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(config.vocab_size, tower.width)
        self.embeddings.position_embedding = nn.Embedding(config.length, tower.width)
        self.final_layer_norm = LayerNorm(tower.width, eps=tower.norm_eps)

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The last token of each text, (B, width); what stands behind a shorter one it does not see."""
        lengths = torch.tensor([len(ids) for ids in texts], device=self.embeddings.token_embedding.weight.device)
        longest = int(lengths.max())
        padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts], device=lengths.device)
        x = self.embeddings.token_embedding(padded) + self.embeddings.position_embedding.weight[:longest]
        return self.final_layer_norm(self.blocks(x))[torch.arange(len(texts), device=lengths.device), lengths - 1]


class Clip(nn.Module):
    """Both towers, or that of pictures alone. `mean` and `std`: by which all releases see pixels in [0, 1] normalised;
    `crops`: whether of a picture that is no square the middle is seen, or all, squeezed."""

    mean, std = MEAN, STD
    crops = True

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTower(config)
        self.visual_projection = nn.Linear(config.vision.width, config.dim, bias=False)
        if config.text:
            self.text_model = TextTower(config, config.text)
            self.text_projection = nn.Linear(config.text.width, config.dim, bias=False)

    def of_pictures(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixels))

    def of_texts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of ids that end in the end of text, of at most `config.length`."""
        return self.text_projection(self.text_model(texts))
