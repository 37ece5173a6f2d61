"""How much a training step computes, in closed form. In: a `UnifiedConfig` and a `Batch`. Out: the floating-point
operations of its forward and backward pass, an int; a multiply-add counts as two.

A weight matrix costs 2 a position and parameter forward, and backward 2 for the gradient of its weight and 2 for that
of its input: 6 (arXiv 2001.08361, section 2.1), or 4 where the input needs no gradient. Attention's two products cost
4 * head_dim a head, layer and pair of positions forward, and 8 backward; pairs are those that the mask lets through.

What is counted is the model's own work (arXiv 2204.02311, appendix B): padding, masked pairs, activations that are
computed again and the optimizer are not, nor are embeddings, norms and other elementwise work. The text head acts at
labels alone, visual inputs at visual positions, visual outputs where predictions are asked for; of masked_code that is
2 / pi of its targets on average, the mean of `corruption.mask_ratio`. Frozen parts count as if they were trained.
"""

from __future__ import annotations

import math

from models.unified.batch import Batch
from models.unified.config import UnifiedConfig
from models.unified.representations import OBJECTIVES, REPRESENTATIONS

_TRAINED, _FIRST = 6, 4  # a parameter of a layer, and of one whose input has no gradient
_ATTENTION = 12


def step_flops(config: UnifiedConfig, batch: Batch) -> int:
    """Operations of one forward and backward pass of the objective over the batch."""
    c = config
    useful = batch.document_index >= 0
    block = c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.width * c.hidden
    pairs = int((batch.end - batch.start)[useful].sum())
    total = c.layers * (_TRAINED * block * int(useful.sum()) + _ATTENTION * c.heads * c.head_dim * pairs)
    total += _TRAINED * c.vocab_size * c.width * batch.targets["text"]
    for name in c.representations:
        total += _visual(c, batch, name)
    segments = batch.ids.shape[0] * batch.num_segments
    timed = sum(not REPRESENTATIONS[name].discrete for name in c.representations)
    return total + timed * segments * (_FIRST * c.time_dim * c.width + _TRAINED * c.width * c.width)


def _visual(c: UnifiedConfig, batch: Batch, name: str) -> int:
    size, positions = getattr(c, REPRESENTATIONS[name].size), len(batch.parts[name].index)
    asked = sum(batch.targets[o] * (2 / math.pi if o == "masked_code" else 1)
                for o, row in OBJECTIVES.items() if row.representation.name == name)
    entry = {"latents": _FIRST * size * c.width,
             "pixels": _FIRST * size * c.pixel_bottleneck + _TRAINED * c.pixel_bottleneck * c.width, "codes": 0}[name]
    return entry * positions + _TRAINED * size * c.width * round(asked)
