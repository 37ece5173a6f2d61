"""How many numbers a unified model trains, in closed form, by its config alone. Standard library only."""

from __future__ import annotations

from omniloom.models.unified.config import RECURRENT_TAPS, UnifiedConfig
from omniloom.models.unified.representations import REPRESENTATIONS


def num_parameters(config: UnifiedConfig) -> int:
    """Number of trained values of `UnifiedModel(config)`, in closed form; a tied head counts once."""
    c = config
    text = c.vocab_size * c.width * (1 if c.tied else 2) + norm_parameters(c) + (c.vocab_size if c.head_bias else 0)
    skips = c.layers // 2 * 2 * c.width * c.width if c.long_skips else 0
    visual = 0
    if c.has_times:
        visual += (1 + c.tells_steps) * ((c.time_dim + 1) * c.width + (c.width + 1) * c.width)
    if c.is_modulated:
        visual += (c.width + 1) * modulation_size(c)
    if c.has_experts:
        visual += c.layers * (2 * norm_parameters(c) + _feed_forward_parameters(c))
        visual += c.attention_layers * _attention_parameters(c) if c.modality_experts == "all" else 0
    for name in c.representations:
        size = getattr(c, REPRESENTATIONS[name].size)
        if REPRESENTATIONS[name].discrete:
            visual += norm_parameters(c) + _code_parameters(c, size)
        else:
            visual += _patchifier_parameters(c, c.patchifier(name), size)
    if c.density and c.latent_dim:
        visual += c.density.parameters(c.head_shape(c.latent_dim))
    blocks = c.layers * _block_parameters(c)
    blocks += (c.layers - c.attention_layers) * (recurrence_parameters(c) - _attention_parameters(c))
    return text + blocks + skips + visual


def modulation_size(c: UnifiedConfig) -> int:
    """Numbers by which a segment modulates the blocks: shift, scale and gate of each sub-layer."""
    return c.layers * 3 * c.sublayers * c.width


def norm_parameters(c: UnifiedConfig) -> int:
    """Of a norm over hidden states."""
    return (2 if c.norm_kind == "layer" else 1) * c.width


def qk_norm_parameters(c: UnifiedConfig) -> int:
    """Of one block."""
    if not c.qk_norm:
        return 0
    return c.head_dim * {"rms": 2, "shared_layer": 4, "layer": 2 * (c.heads + c.kv_heads)}[c.qk_norm_kind]


def _code_parameters(c: UnifiedConfig, size: int) -> int:
    """Input and output of codes, the mask's row included."""
    if c.code_dim is None:
        return (size + 1) * c.width + (c.width + bool(c.head_bias)) * size
    enter = (size + 1) * c.code_dim + (c.code_dim + 1) * c.width + (c.width + 1) * c.width
    return enter + (c.width + 1) * (c.width + size)


def _block_parameters(c: UnifiedConfig) -> int:
    if c.block == "gau":
        count = qk_norm_parameters(c) + (c.width if c.out_bias else 0)
        # Norm; base, values and gate; scales and offsets of queries and keys; output.
        inner = c.head_dim + 2 * c.hidden
        return count + c.width + (c.width + c.qkv_bias) * inner + 4 * c.hidden + c.hidden * c.width
    return _attention_parameters(c) + _feed_forward_parameters(c) + (1 if c.parallel else 2) * norm_parameters(c)


def _feed_forward_parameters(c: UnifiedConfig) -> int:
    return 2 * c.width * c.hidden + c.hidden + c.width if c.feed_forward == "gelu" else 3 * c.width * c.hidden


def _attention_parameters(c: UnifiedConfig) -> int:
    count = qk_norm_parameters(c) + (c.width if c.out_bias else 0)
    inner = (c.heads + 2 * c.kv_heads) * c.head_dim
    return count + (c.width + c.qkv_bias) * inner + c.heads * c.head_dim * c.width


def recurrence_parameters(c: UnifiedConfig) -> int:
    """Of a block that does not attend, in attention's place: branches and output, gates of each head; taps with their
    bias, biases of gates, decays."""
    return 3 * c.width * c.width + 2 * c.width * (c.width // c.heads) + (RECURRENT_TAPS + 1 + 2 + 1) * c.width


def _patchifier_parameters(c: UnifiedConfig, kind: str, size: int) -> int:
    """Input and output of a representation that is not discrete, whose positions are `size` numbers."""
    count = norm_parameters(c) + (c.width if c.patch_mask_high > 0 else 0)  # before the output; the mask
    features = c.width
    if kind == "linear":
        count += (size + 1) * c.width
    elif kind == "bottleneck":
        count += size * c.pixel_bottleneck + (c.pixel_bottleneck + 1) * c.width
    else:
        features = c.unet_width
        count += _unet_parameters(c, size) + (features + 1) * c.width + _unet_parameters(c, c.width + features)
    if not c.flow_head_layers:
        return count + (features + 1) * size
    inner = c.flow_head_width
    count += (size + 1) * inner + (features + 1) * inner + (c.width + 1) * inner  # values, condition, time
    # A layer: modulation to three times the width, and two matrices. Behind the last: modulation to twice the width.
    return count + c.flow_head_layers * 5 * (inner + 1) * inner + 2 * (inner + 1) * inner + (inner + 1) * size


def _unet_parameters(c: UnifiedConfig, inputs: int) -> int:
    def residual(d: int) -> int:
        return 2 * d + 2 * (9 * d + 1) * d + (c.width + 1) * 2 * d

    d = c.unet_width
    deep = (c.unet_depth or 1) * residual(2 * d)
    return (inputs + 1) * d + 2 * residual(d) + deep + (4 * d + 1) * 2 * d + (3 * d + 1) * d + d
