"""What a dual encoder's training takes, in closed form: parameters, operations, seconds of a core, and memory beside
weights and optimizer. In: a `ClipConfig` with both towers, and how many pairs a pass has. Out: figures. Standard
library only, so that a plan can ask.

A text counts as if it were as long as the config lets it be; shorter ones are cut at the longest of a batch, and cost
less. Operations are counted as in `models.unified.flops`, seconds as in `models.unified.seconds`, and what is kept for
the backward pass as `models.features.clip` is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from omniloom.models.features.clip_config import ClipConfig, TowerConfig
from omniloom.models.features.layouts import dual_tensors
from omniloom.models.scorer.losses_config import Loss

_FLOAT32 = 4
_TRAINED, _FIRST, _ATTENTION = 6, 4, 12  # as in `models.unified.flops`
_SQUARES = 6  # of a batch by itself that the loss keeps or makes: cosines, logits, targets, two softmaxes, a gradient
# A core's seconds, as in `models.unified.seconds`.
_OPERATION = 1 / 175e9
_PASS, _LAYER = 2e-3, 1.1e-3
_NUMBER, _SCORE, _PARAMETER = 4.4e-9, 3e-9, 2e-9


def num_parameters(c: ClipConfig, loss: Loss) -> int:
    """Of both towers and of the loss's scale and bias, all of which are trained."""
    ours = 2 if loss == "siglip" else 1
    return ours + sum(math.prod(shapes[0]) for shapes in dual_tensors(c).values())


def pair_flops(c: ClipConfig) -> int:
    """Operations of the forward and backward pass of one pair, without the cosines to others."""
    patches = _FIRST * 3 * c.patch_size**2 * c.vision.width * c.grid**2
    projections = _TRAINED * c.dim * (c.text.width if c.text else 0)
    out = _pooling_flops(c) if c.family == "siglip" else _TRAINED * c.dim * c.vision.width
    return patches + projections + out + sum(t.layers * _block_flops(t, places) for t, places in _towers(c))


def step_seconds(c: ClipConfig, pairs: int, loss: Loss) -> float:
    """Of one core, for a worker's pass over so many pairs and the optimizer's step."""
    found = _PASS + pairs * _OPERATION * pair_flops(c) + _PARAMETER * num_parameters(c, loss)
    for tower, places in _towers(c):
        given = 5 * tower.width + 2 * tower.mlp_width  # queries, keys, values, two sums; before and behind the GELU
        scores = tower.heads * places**2
        found += tower.layers * (_LAYER + pairs * (_NUMBER * given * places + _SCORE * scores))
    return found


def pass_memory(c: ClipConfig, pairs: int, batch: int, bf16: bool, loss: Loss) -> dict[str, int]:
    """Bytes at the beginning of the backward pass of a worker with so many pairs of a step's `batch`: `activations`;
    `logits`, of all pairs with one another; `casts`, of weights to bf16."""
    pixels = 3 * c.image_size**2 * (_FLOAT32 + (2 if bf16 else 0))
    kept = sum(t.layers * places * _kept(t, bf16) + places * t.width * _FLOAT32 for t, places in _towers(c))
    if c.family == "siglip":  # all places into keys and values, and these
        kept += 3 * c.grid**2 * c.vision.width * (2 if bf16 else _FLOAT32)
    return {
        "activations": pairs * (pixels + kept),
        "logits": _SQUARES * _FLOAT32 * batch**2,
        "casts": 2 * num_parameters(c, loss) if bf16 else 0,
    }


def _towers(c: ClipConfig) -> Iterator[tuple[TowerConfig, int]]:
    """With the places of one picture, or of one text."""
    yield c.vision, c.grid**2 + (c.family == "clip")  # a class's place
    if c.text:
        yield c.text, c.length


def _pooling_flops(c: ClipConfig) -> int:
    """One query over all places, and an MLP."""
    t, places = c.vision, c.grid**2
    return _TRAINED * (2 * places * t.width**2 + 2 * t.width**2 + 2 * t.width * t.mlp_width) + (
        _ATTENTION * t.width * places
    )


def _block_flops(t: TowerConfig, places: int) -> int:
    """Attention between all pairs of places, of texts too, which see half of them."""
    matrices = 4 * t.width**2 + 2 * t.width * t.mlp_width
    return places * (_TRAINED * matrices + _ATTENTION * t.width * places)


def _kept(t: TowerConfig, bf16: bool) -> int:
    """Bytes of a block at a place: what enters either norm, in float32, and their statistics; what enters products,
    in bf16 once for each of queries, keys and values; what attention needs; and what the activation does."""
    product = 2 if bf16 else _FLOAT32
    normed = (3 if bf16 else 1) + 1
    inner = 3 if t.activation == "quick_gelu" else 2
    held = t.width * (normed + 3 + 1) + inner * t.mlp_width
    return product * held + _FLOAT32 * (2 * t.width + 4 + t.heads)
