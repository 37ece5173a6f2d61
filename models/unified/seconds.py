"""How long a training step of the unified model takes a worker on a CPU, in closed form. In: a `UnifiedConfig`, and
what is in a pass (`models.unified.memory.Pass`). Out: seconds of one core. Standard library only, so that a plan can
ask.

Small models spend most of a step on other things than products: calls of operators, and elementwise work, which goes
through memory at another rate. So the ratio of operations alone is wrong by up to a factor of 1.7 from one size to
another; these seconds were within a tenth of what 24 sizes took, of 0.3 to 30 million parameters, in fp32
(`tests/benchmarks/predict.py`). The constants are one core's (Intel Sapphire Rapids, PyTorch 2.13). Another's differ,
but most of that is one factor: compare two sizes, and measure one of them. What pictures' inputs and outputs take
beside the blocks is left out.
"""

from __future__ import annotations

from omniloom.models.unified.adapter.config import AdapterConfig
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flops import dense_flops
from omniloom.models.unified.memory import Pass

_OPERATION = 1 / 175e9
_PASS = 2e-3  # calls around the blocks
_LAYER = 1.1e-3  # calls of a block
_NUMBER = 4.4e-9  # of what a block's products give: norms, SwiGLU, sums, and their gradients
_ATTENDING = 39e-9  # of a query: norms of heads, rotations, copies
_SCORE = 3e-9  # softmax
_RECURRING = 95e-9  # of a channel of a place in a recurrence: gates, rates, and the passes of its parallel form
_SPLIT, _MOVED = 0.2e-3, 3e-9  # by modality: calls of a part, and of a number that is put in order and back
_MODULATED, _CHANGED = 0.15e-3, 10e-9  # of a sub-layer: calls, and of a channel of a place, pictures' or not
_LOGIT = 1.2e-9
_PARAMETER = 2e-9  # a step's: its gradient and the optimizer
_AGAIN = 4 / 3  # of a block whose forward pass is computed again


def pass_seconds(c: UnifiedConfig, p: Pass, adapter: AdapterConfig | None = None) -> float:
    """Of a forward and backward pass. `p.scores` are those that are computed, masked ones too."""
    given, attending = _channels(c)
    scores = p.scores if c.gau_length is None else p.pairs
    blocks = _OPERATION * dense_flops(c, p.positions, scores, 0, adapter)
    blocks += c.layers * (_LAYER + p.positions * _NUMBER * given)
    blocks += c.attention_layers * (_ATTENDING * attending * p.positions + _SCORE * c.attention_heads * scores)
    blocks += (c.layers - c.attention_layers) * _RECURRING * c.width * p.positions
    blocks += _by_modality(c, p)
    text = _OPERATION * dense_flops(c, 0, 0, p.labels, adapter) + _LOGIT * c.vocab_size * p.labels
    return _PASS + text + blocks * (_AGAIN if p.recompute else 1)


def _by_modality(c: UnifiedConfig, p: Pass) -> float:
    """Of all blocks: parts that text and pictures have apart, and modulation."""
    found = 0.0
    if c.has_experts:
        found += c.layers * (3 * _SPLIT + 6 * c.width * _MOVED * p.positions)
        if c.modality_experts == "all":
            inner = (c.heads + 2 * c.kv_heads) * c.head_dim
            moved = 2 * (c.width + inner) + c.heads * c.head_dim
            found += c.attention_layers * (2 * _SPLIT + moved * _MOVED * p.positions)
    if c.is_modulated and p.pictures:
        found += c.layers * c.sublayers * (_MODULATED + _CHANGED * c.width * p.positions)
    return found


def update_seconds(trained: int) -> float:
    """Of an optimizer's step over so many parameters."""
    return _PARAMETER * trained


def _channels(c: UnifiedConfig) -> tuple[int, int]:
    """What a block's products give at a position, and what of it are queries."""
    if c.block == "gau":
        return c.head_dim + 2 * c.hidden + c.width, c.hidden
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return queries + 2 * keys + (1 if c.feed_forward == "gelu" else 2) * c.hidden + 2 * c.width, queries
