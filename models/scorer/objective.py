"""A dual encoder in training: one module whose forward is a whole step.

In: a batch of pictures and their captions. Out: the loss over the batch of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.features.clip import Attention, Clip, Layer
from omniloom.models.features.clip_config import ClipConfig
from omniloom.models.features.dual import Dual
from omniloom.models.scorer.config import MAX_SCALE
from omniloom.models.scorer.losses import AtMost, clip_loss, clip_losses, siglip_loss, siglip_losses
from omniloom.models.scorer.losses_config import Loss

# log of the scale, and the bias, at the start: arXiv 2103.00020, section 2.5; arXiv 2303.15343, section 3.2.
_START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10.0), -10.0)}

Gather = Callable[[Tensor], Tensor]


class ScorerObjective(nn.Module):
    """`clip` with what its loss has of its own: `log_scale`, (1,), and under `siglip` `bias`, (1,). `start`: what a
    pretrained model was trained with, `logit_scale` and `logit_bias`, where that is known."""

    def __init__(self, clip: Dual, loss: Loss, start: Mapping[str, float] | None = None) -> None:
        super().__init__()
        scale, bias = _START[loss]
        scale = (start or {}).get("logit_scale", scale)
        bias = None if bias is None else (start or {}).get("logit_bias", bias)
        self.loss, self.clip = loss, clip
        self.log_scale = nn.Parameter(torch.tensor([scale]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(
        self,
        pixels: Tensor,
        texts: Sequence[Sequence[int]],
        same_BB: Tensor | None = None,
        gather: Gather = lambda x: x,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its figures for the log.

        pixels   float (b, 3, S, S), normalised, this rank's; `texts` the ids of their captions, each with its end
        same_BB  of the batch of all ranks, as `models.scorer.losses` has it
        gather   gives the rows of all ranks of this rank's (b, D), with gradients
        """
        pictures, captions = (gather(rows) for rows in self.embedded(pixels, texts))
        if self.bias is None:
            scale = AtMost.apply(self.log_scale, math.log(MAX_SCALE)).exp()
            loss = clip_loss(pictures, captions, scale, same_BB)
        else:
            scale = self.log_scale.exp()
            loss = siglip_loss(pictures, captions, scale, self.bias, same_BB)
        return loss, {"loss": loss.detach(), "scale": scale.detach()[0]}

    def embedded(self, pixels: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Of this rank's pairs, of length 1, float32 (b, D) each."""
        both = self.clip.of_pictures(pixels), self.clip.of_texts(texts)
        pictures, captions = (F.normalize(rows.float(), dim=-1) for rows in both)
        return pictures, captions

    def losses(self, pictures_BD: Tensor, captions_BD: Tensor, same_BB: Tensor | None = None) -> Tensor:
        """(B,): what each pair of embeddings of length 1 has of the loss, which is their mean."""
        if self.bias is None:
            scale = AtMost.apply(self.log_scale, math.log(MAX_SCALE)).exp()
            return clip_losses(pictures_BD, captions_BD, scale, same_BB)
        return siglip_losses(pictures_BD, captions_BD, self.log_scale.exp(), self.bias, same_BB)


def fresh_clip(config: ClipConfig) -> Clip:
    """A model to train from scratch, its weights drawn as the published one's were (arXiv 2103.00020, by its code):
    normal, of deviations that keep the residual stream's size over the layers."""
    model = Clip(config)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    towers = [(model.vision_model, config.vision)] + ([(model.text_model, config.text)] if config.text else [])
    for tower, shape in towers:
        through = shape.width**-0.5
        into = through * (2 * shape.layers) ** -0.5
        for layer in tower.modules():
            if isinstance(layer, Attention):
                for name in ("q_proj", "k_proj", "v_proj"):
                    nn.init.normal_(getattr(layer, name).weight, std=through)
                nn.init.normal_(layer.out_proj.weight, std=into)
            elif isinstance(layer, Layer):
                nn.init.normal_(layer.mlp.fc1.weight, std=(2 * shape.width) ** -0.5)
                nn.init.normal_(layer.mlp.fc2.weight, std=into)
    pictures = model.vision_model.embeddings
    for weight in (pictures.class_embedding, pictures.position_embedding.weight, model.visual_projection.weight):
        nn.init.normal_(weight, std=config.vision.width**-0.5)
    if config.text:
        texts = model.text_model.embeddings
        nn.init.normal_(texts.token_embedding.weight, std=0.02)
        nn.init.normal_(texts.position_embedding.weight, std=0.01)
        nn.init.normal_(model.text_projection.weight, std=config.text.width**-0.5)
    return model
