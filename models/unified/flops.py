"""How much a training step computes, in closed form. In: a `UnifiedConfig` and a `Batch`. Out: the floating-point
operations of its forward and backward pass, an int; a multiply-add counts as two.

A weight matrix costs 2 a position and parameter forward, and backward 2 for the gradient of its weight and 2 for that
of its input: 6 (arXiv 2001.08361, section 2.1), or 4 where the input needs no gradient. Attention's two products cost
4 * head_dim a head, layer and pair of positions forward, and 8 backward; pairs are those that the mask lets through.

What is counted is the model's own work (arXiv 2204.02311, appendix B): padding, masked pairs, activations that are
computed again and the optimizer are not, nor are embeddings, norms and other elementwise work, nor the projection of an
alignment, which is none of the model. The text head acts at labels alone, visual inputs and both ends of a unet at
visual positions, visual outputs where predictions are asked for; of masked_code that is 2 / pi of its targets on
average, the mean of `corruption.mask_ratio`. A unet's convolutions count their padding at a picture's edges, and its
time, as that of a flow head, every segment that a row may have. Beside an adapter a frozen matrix of the blocks or of
the head costs 4, and the adapter's own 6; other frozen parts count as if they were trained. What pictures have of the
blocks for themselves costs what text's costs, as each place goes through one of both; an adapter has no part in it. A
modulation and a step size are computed once a segment that a row may have. A density head counts what it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniloom.models.unified.adapter.config import AdapterConfig, targets_of
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.parameters import modulation_size
from omniloom.models.unified.representations import DENSITY, OBJECTIVES, REPRESENTATIONS

if TYPE_CHECKING:
    from omniloom.models.unified.batch import Batch

_TRAINED, _FIRST = 6, 4  # a parameter of a layer, and of one whose input has no gradient
_ATTENTION = 12
_AROUND, _CHILDREN = 9, 4  # inputs of a unet's convolutions: at one resolution, and from positions to a cell


def step_flops(config: UnifiedConfig, batch: Batch, adapter: AdapterConfig | None = None) -> int:
    """Operations of one forward and backward pass of the objective over the batch."""
    c = config
    useful = batch.document_index >= 0
    positions, pairs = int(useful.sum()), int((batch.end - batch.start)[useful].sum())
    total = int(dense_flops(c, positions, pairs, batch.targets["text"], adapter, batch.tokens["visual"]))
    segments = batch.ids.shape[0] * batch.num_segments
    for name in c.representations:
        asked = _asked(batch, name)
        if REPRESENTATIONS[name].discrete:
            total += _TRAINED * getattr(c, REPRESENTATIONS[name].size) * c.width * asked
            if c.code_dim is not None:
                entered = _TRAINED * (c.code_dim + c.width) * c.width * len(batch.parts[name].index)
                total += entered + _TRAINED * c.width * c.width * asked
        else:
            told = segments * (1 + c.tells_steps)
            total += told * (_FIRST * c.time_dim * c.width + _TRAINED * c.width * c.width)
            total += segments * _TRAINED * c.width * modulation_size(c) if c.is_modulated else 0
            total += _entry(c, batch, name, segments) + _output(c, batch, name, segments, asked)
    if c.density and c.latent_dim:
        total += c.density.flops(c.head_shape(c.latent_dim)) * _asked(batch, DENSITY)
    return total


def _asked(batch: Batch, head: str) -> int:
    """Predictions that are asked of an output of the model."""
    return round(
        sum(
            batch.targets[o] * row.predicted for o, row in OBJECTIVES.items() if row.head == head and o in batch.targets
        )
    )


def token_flops(config: UnifiedConfig, length: int, adapter: AdapterConfig | None = None) -> float:
    """As `step_flops`, of one token before there is a batch: a text target that sees half of a row of `length`."""
    return dense_flops(config, 1, length / 2, 1, adapter)


def dense_flops(
    config: UnifiedConfig,
    positions: int,
    pairs: float,
    labels: int,
    adapter: AdapterConfig | None = None,
    pictures: int = 0,
) -> float:
    """Operations of the blocks at so many positions, `pictures` of them pictures', with so many pairs of them in
    attention, and of the text head at so many labels."""
    block, attended = _block(config)
    layers: float = config.layers * _matrices(config, block, adapter) * positions
    layers += config.attention_layers * _ATTENTION * attended * pairs
    if config.attention_every:
        layers += (config.layers - config.attention_layers) * _TRAINED * _instead(config) * positions
    layers += config.layers * _spared(config, adapter) * pictures
    return layers + _skips(config) * positions + _head(config, adapter) * labels


def _matrices(c: UnifiedConfig, block: int, adapter: AdapterConfig | None) -> int:
    """Operations a position of a block's matrices, of which there are `block` parameters."""
    if adapter is None:
        return _TRAINED * block
    factors = adapter.rank * sum(target.rows + target.inputs for target in adapter.chosen(c).values())
    return _FIRST * block + _TRAINED * factors


def _spared(c: UnifiedConfig, adapter: AdapterConfig | None) -> int:
    """Operations that a position of a picture has more in a block than one of text: its own matrices are trained whole,
    without an adapter."""
    if adapter is None or not c.has_experts:
        return 0
    own = {"mlp.gate_up", "mlp.up", "mlp.down"} | (
        {"attention.qkv", "attention.out"} if c.modality_experts == "all" else set()
    )
    matrices = sum(t.rows * t.inputs for t in targets_of(c).values() if t.linear in own)
    factors = adapter.rank * sum(t.rows + t.inputs for t in adapter.chosen(c).values() if t.linear in own)
    return (_TRAINED - _FIRST) * matrices - _TRAINED * factors


def _head(c: UnifiedConfig, adapter: AdapterConfig | None) -> int:
    """Operations a target of the text head."""
    is_frozen = adapter is not None and "vocabulary" not in adapter.trained_whole
    return (_FIRST if is_frozen else _TRAINED) * c.vocab_size * c.width


def _block(c: UnifiedConfig) -> tuple[int, int]:
    """Parameters of a block's matrices, and channels of all its heads."""
    if c.block == "gau":
        return c.width * (c.head_dim + 3 * c.hidden), c.hidden
    attended = c.heads * c.head_dim
    inner = (2 if c.feed_forward == "gelu" else 3) * c.width * c.hidden
    return 2 * c.width * (attended + c.kv_heads * c.head_dim) + inner, attended


def _instead(c: UnifiedConfig) -> int:
    """Parameters that the matrices of a recurrence have more than those of attention."""
    attended = c.heads * c.head_dim
    recurrence = 3 * c.width * c.width + 2 * c.width * (c.width // c.heads)
    return recurrence - 2 * c.width * (attended + c.kv_heads * c.head_dim)


def _skips(c: UnifiedConfig) -> int:
    """Operations a position of the matrices that merge long skips."""
    return c.layers // 2 * _TRAINED * 2 * c.width * c.width if c.long_skips else 0


def _entry(c: UnifiedConfig, batch: Batch, name: str, segments: int) -> int:
    """Values that are not discrete into the first block."""
    size, positions = getattr(c, REPRESENTATIONS[name].size), len(batch.parts[name].index)
    kind = c.patchifier(name)
    if kind == "linear":
        return _FIRST * size * c.width * positions
    if kind == "bottleneck":
        return (_FIRST * size + _TRAINED * c.width) * c.pixel_bottleneck * positions
    enter = _FIRST * size * c.unet_width + _TRAINED * c.unet_width * c.width
    return enter * positions + _unet(c, batch, name, segments)


def _output(c: UnifiedConfig, batch: Batch, name: str, segments: int, asked: float) -> int:
    """Hidden states to predictions of values that are not discrete."""
    size, total, features = getattr(c, REPRESENTATIONS[name].size), 0, c.width
    if c.patchifier(name) == "unet":
        features = c.unet_width
        enter = _TRAINED * (c.width + features) * features
        total += enter * len(batch.parts[name].index) + _unet(c, batch, name, segments)
    if not c.flow_head_layers:
        return total + _TRAINED * size * features * asked
    inner = c.flow_head_width
    layers = 5 * c.flow_head_layers + 2  # five matrices each, and the last modulation
    head = _FIRST * size * inner + _TRAINED * inner * (features + layers * inner + size)
    return total + head * asked + _TRAINED * c.width * inner * segments


def _unet(c: UnifiedConfig, batch: Batch, name: str, segments: int) -> int:
    """A unet behind its first layer: residual blocks of two convolutions and a time, `unet_depth` of them at twice the
    channels over cells."""
    part, d = batch.parts[name], c.unet_width
    if part.tables is None:
        raise ValueError(f"batch: expected neighbours of {name}, which collate lays out for a config with a unet")
    positions, cells = len(part.index), len(part.tables.children) // _CHILDREN
    fine = 2 * (2 * _AROUND * d * d) + 3 * d * d  # two residual blocks, and cells back to positions
    depth = c.unet_depth or 1
    coarse = _CHILDREN * d * (2 * d) + depth * 2 * _AROUND * (2 * d) ** 2
    return _TRAINED * (fine * positions + coarse * cells + (2 * 2 * d + depth * 4 * d) * c.width * segments)
