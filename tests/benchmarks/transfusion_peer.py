"""transfusion-pytorch (github.com/lucidrains/transfusion-pytorch) as `unified.py` compares with it, where it is there.

It comes with a score of small packages and is no dependency. Into a folder of its own, without their torch:

    pip install --no-deps --target DIR transfusion-pytorch==0.20.0 torch-einops-utils einops einx beartype jaxtyping \\
        wadler-lindig axial-positional-embedding rotary-embedding-torch hyper-connections torchdiffeq ema-pytorch \\
        accelerate loguru frozendict
    PYTHONPATH=DIR python tests/benchmarks/unified.py train
    PYTHONPATH=DIR python tests/benchmarks/unified.py generate

Two thirds of its parameters are adaptive layer norms, which act once a time and not once a token. So at equal numbers
of parameters it does about a third of our operations a token, and at an equal shape of the backbone it has three times
our parameters: both are compared.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from omniloom.models.unified.batch import Segment


def installed() -> bool:
    return importlib.util.find_spec("transfusion_pytorch") is not None


def build(vocab: int, latent_dim: int, side: int, width: int, layers: int, heads: int) -> nn.Module:
    """A model of that backbone, whose heads have width / heads channels. It draws without telling."""
    peer = importlib.import_module("transfusion_pytorch.transfusion")
    peer.tqdm = partial(peer.tqdm, disable=True)
    peer.logger.disable("transfusion_pytorch")
    return importlib.import_module("transfusion_pytorch").Transfusion(
        num_text_tokens=vocab,
        dim_latent=latent_dim,
        channel_first_latent=False,
        modality_default_shape=(side, side),
        modality_num_dim=2,
        add_pos_emb=True,
        transformer={"dim": width, "depth": layers, "heads": heads, "dim_head": width // heads},
        odeint_kwargs={"method": "euler"},  # its own midpoint evaluates twice a step
    )


def documents(rows: Sequence[Sequence[Segment]], side: int) -> list[list[Tensor]]:
    """A text and a picture each, as its forward pass takes them."""
    return [
        [torch.from_numpy(text.ids), torch.from_numpy(picture.latents).view(side, side, -1)] for text, picture in rows
    ]


def text(model: nn.Module, prompts: np.ndarray) -> Callable[[int], Tensor]:
    """prompts (requests, tokens); writes a number of the likeliest tokens, from its cache."""
    ids = torch.from_numpy(prompts)
    return lambda count: model.generate_text_only(ids, ids.shape[1] + count, temperature=0.0)


def pictures(model: nn.Module, captions: np.ndarray, side: int, guidance: float) -> Callable[[int], list]:
    """Draws a picture behind each caption in a number of steps, all in one batch."""

    def draw(steps: int) -> list:
        drawn = model.sample_many(
            [[torch.from_numpy(caption)] for caption in captions],
            max_length=1,  # ends behind the picture
            force_modality_at_start=(0, (side, side)),
            modality_steps=steps + 1,  # times, one more than steps
            cfg_scale=guidance,
        )
        assert all(sample[1][1].shape[:2] == (side, side) for sample in drawn)
        return drawn

    return draw
