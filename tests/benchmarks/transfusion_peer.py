"""transfusion-pytorch (github.com/lucidrains/transfusion-pytorch) as `unified.py` compares with it, where it is there.

It comes with a score of small packages and is no dependency. Into a folder of its own, without their torch:

    pip install --no-deps --target DIR transfusion-pytorch==0.20.0 torch-einops-utils einops einx beartype jaxtyping \\
        wadler-lindig axial-positional-embedding rotary-embedding-torch hyper-connections torchdiffeq ema-pytorch \\
        accelerate loguru frozendict
    PYTHONPATH=DIR python tests/benchmarks/unified.py train

Two thirds of its parameters are adaptive layer norms, which act once a time and not once a token. So at equal numbers
of parameters it does about a third of our operations a token, and at an equal shape of the backbone it has three times
our parameters: both are compared.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omniloom.models.unified.batch import Segment


def installed() -> bool:
    return importlib.util.find_spec("transfusion_pytorch") is not None


def build(vocab: int, latent_dim: int, side: int, width: int, layers: int, heads: int) -> nn.Module:
    """A model of that backbone, whose heads have width / heads channels."""
    return importlib.import_module("transfusion_pytorch").Transfusion(
        num_text_tokens=vocab,
        dim_latent=latent_dim,
        channel_first_latent=False,
        modality_default_shape=(side, side),
        modality_num_dim=2,
        add_pos_emb=True,
        transformer={"dim": width, "depth": layers, "heads": heads, "dim_head": width // heads},
    )


def documents(rows: Sequence[Sequence[Segment]], side: int) -> list[list[Tensor]]:
    """A text and a picture each, as its forward pass takes them."""
    return [
        [torch.from_numpy(text.ids), torch.from_numpy(picture.latents).view(side, side, -1)] for text, picture in rows
    ]
