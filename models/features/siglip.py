"""SigLIP: pictures and texts in one space, by a sigmoid for each pair (arXiv 2303.15343), under the names of
`transformers`.

In: pixels normalised by the model's mean and std, (B, 3, S, S) of the config's side; ids of texts. Out: float32
embeddings (B, dim), not divided by their length. Pictures are pooled by one learned query over all patches (the
attention pooling of arXiv 2106.04560, appendix); texts are read in both directions at the full length, what is missing
filled with the pad token, which is seen like any other: so it was trained. `models.features.dual` reads a folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omniloom.models.features.clip import MLP, Tower
from omniloom.models.features.clip_config import ClipConfig, TowerConfig
from omniloom.models.norms import LayerNorm


class Pooling(nn.Module):
    """(B, N, width) -> (B, width): what one learned query finds in all tokens, and an MLP."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.layernorm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        found = self.attention(self.probe.expand(len(x), 1, -1), x, x, need_weights=False)[0]
        return (found + self.mlp(self.layernorm(found)))[:, 0]


class VisionTower(Tower):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config.vision, causal=False)
        width = config.vision.width
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.embeddings.position_embedding = nn.Embedding(config.grid**2, width)
        self.post_layernorm = LayerNorm(width, eps=config.vision.norm_eps)
        self.head = Pooling(config.vision)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixels).flatten(2).mT
        return self.head(self.post_layernorm(self.blocks(patches + self.embeddings.position_embedding.weight)))


class TextTower(Tower):
    def __init__(self, config: ClipConfig, tower: TowerConfig) -> None:
        super().__init__(tower, causal=False)
        self.length, self.pad = config.length, config.pad
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(config.vocab_size, tower.width)
        self.embeddings.position_embedding = nn.Embedding(config.length, tower.width)
        self.final_layer_norm = LayerNorm(tower.width, eps=tower.norm_eps)
        self.head = nn.Linear(tower.width, config.dim)

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """What stands at the last place of each text, (B, dim)."""
        device = self.embeddings.token_embedding.weight.device
        rows = [[*ids, *[self.pad] * (self.length - len(ids))] for ids in texts]
        x = self.embeddings.token_embedding(torch.tensor(rows, device=device))
        return self.head(self.final_layer_norm(self.blocks(x + self.embeddings.position_embedding.weight)[:, -1]))


class Siglip(nn.Module):
    """Both towers; `mean`, `std` and `crops` as of `Clip`."""

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    crops = False

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        if config.text is None:
            raise ValueError("text: expected both towers, got pictures' alone")
        self.config = config
        self.vision_model = VisionTower(config)
        self.text_model = TextTower(config, config.text)

    def of_pictures(self, pixels: Tensor) -> Tensor:
        return self.vision_model(pixels)

    def of_texts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of ids, at most `config.length` a text."""
        return self.text_model(texts)
