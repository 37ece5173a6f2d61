"""How much memory a training pass of the unified model takes beside weights and optimizer, in closed form. In: a
`UnifiedConfig`, what is in the pass, and how it is computed. Out: bytes by what holds them. Standard library only, so
that a plan can ask.

What is counted is what the backward pass keeps, as the blocks are written (`models.unified.blocks`, `models.fused`):
the input of each matrix product, of each norm and of SwiGLU or a GELU, and what attention needs. The residual stream is
float32 also under bf16. Weights are cast to bf16 once a pass, and the casts live as long.

Not counted: parts of pictures' inputs and outputs other than their positions' rows, allocators' rounding and
fragments, and of compiled blocks what the compiler decides to compute again instead of keeping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from omniloom.models.unified.config import RECURRENT_TAPS, UnifiedConfig
from omniloom.models.unified.parameters import num_parameters

_FLOAT32 = 4
# Numbers of logits that the loss widens to float32 together: what a core's caches hold; what keeps a GPU busy.
AT_ONCE, AT_ONCE_ON_GPU = 1 << 18, 1 << 24


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a worker.

    positions  places of its rows, padding included
    labels     text targets; at most all positions
    scores     attention scores that are kept, a head: those of queries and the keys that they may see, where
               attention writes them out (`BlockAttend`, on CPUs); 0 under FlexAttention
    bf16       whether products are computed in bf16
    recompute  whether blocks are computed again in the backward pass
    sequence_parallel  workers that share the rows out: positions, labels and scores are those of one, an Nth
    adapted    channels of a block that an adapter's first factors give
    dropped    channels of a block that go into an adapter by dropout, which keeps a copy and a mask
    spared     channels of a block that go into frozen matrices alone, which keep none of them
    pictures   of the positions those of a diffusion's pictures
    pairs      scores of a head over whole rows, which squared ReLUs write out and keep twice, on any device
    """

    positions: int
    labels: int
    scores: int = 0
    bf16: bool = False
    recompute: bool = False
    sequence_parallel: int = 1
    adapted: int = 0
    dropped: int = 0
    spared: int = 0
    pictures: int = 0
    pairs: int = 0

    @property
    def width(self) -> int:
        """Bytes of a number in products."""
        return 2 if self.bf16 else _FLOAT32


def block_bytes(c: UnifiedConfig, p: Pass, attends: bool = True) -> int:
    """What one block keeps for the backward pass, without its input, which is the block's before; of one with a
    recurrence where it does not attend."""
    if not attends:
        p = replace(p, scores=0)
    scores = p.width * c.attention_heads * p.scores
    if c.gau_length is not None:  # behind the ReLU and its square, and the mask
        scores = (2 * p.width * c.attention_heads + 1) * p.pairs
    kept = _gau(c, p) if c.block == "gau" else _llama(c, p) if attends else _recurrent(c, p)
    adapters = p.width * (p.adapted - p.spared) + (p.width + 1) * p.dropped
    if c.is_modulated:  # of each sub-layer, what is scaled and by what, and what is gated and by what
        modulated = c.sublayers * c.width * (_FLOAT32 + 3 * p.width)
        return p.positions * (kept + adapters) + scores + p.pictures * modulated
    return p.positions * (kept + adapters) + scores


def _llama(c: UnifiedConfig, p: Pass) -> int:
    """Bytes a position."""
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shared_out = p.sequence_parallel > 1
    kv_heads = math.lcm(c.kv_heads, p.sequence_parallel)  # as they are sent
    grouped = kv_heads != c.heads and bool(p.scores)  # CPUs' kernels take no groups: keys and values written out
    # Values are a view of one product, which then stays whole; what other workers sent is no view of it.
    whole = c.qk_norm or not (grouped or shared_out)
    norms = 1 if c.parallel else 2
    held = (2 if p.bf16 else norms) * c.width  # normed, into attention and into feed-forward, each casting its own
    held += queries + 2 * keys if whole else 0
    if shared_out:
        held += queries + 2 * kv_heads * c.head_dim + (2 * queries if grouped else 0)  # as received
    else:
        held += queries  # turned queries
        held += 2 * queries if grouped else keys  # turned keys, and values where they are written out
    held += 0 if p.scores else queries  # attention's output, which FlexAttention keeps
    held += queries + _inner(c)  # into the output; within feed-forward
    layered = 2 * _FLOAT32 * (queries + keys) if c.qk_norm and c.qk_norm_kind == "layer" else 0  # widened, and normed
    of_norm = 2 if c.norm_kind == "layer" else 1  # a LayerNorm keeps means too
    of_heads = (2 if c.qk_norm_kind == "shared_layer" else 1) * (c.heads + c.kv_heads)
    statistics = norms * of_norm + (of_heads if c.qk_norm else 0) + (0 if p.scores else c.heads)
    turned = p.width * c.head_dim if p.bf16 else 0  # cosines and sines, cast
    residual = 0 if c.parallel else c.width  # between attention and feed-forward
    if c.has_experts:  # and the block's input in the order of modalities
        residual += c.width
        if c.modality_experts == "all" and c.qk_norm:  # projections before that, or turned keys beside the queries
            held += keys if grouped else queries + 2 * keys
    return p.width * held + layered + _FLOAT32 * (residual + statistics) + turned


def _recurrent(c: UnifiedConfig, p: Pass) -> int:
    """Bytes a position: of a recurrence both branches, the taps that are not the place's own, what gates are made of,
    and what goes into the output; in float32 gates, rates, what enters, and states."""
    held = c.width * (2 + (RECURRENT_TAPS - 1) + 1 + (3 if p.bf16 else 2))
    held += 2 * c.width + _inner(c)  # normed; within feed-forward
    residual = c.width * (2 if c.has_experts else 1)
    return p.width * held + _FLOAT32 * (13 * c.width + residual + 2)


def _inner(c: UnifiedConfig) -> int:
    """Channels that feed-forward keeps: before what is no product, gates too, and behind it."""
    return (2 if c.feed_forward == "gelu" else 3) * c.hidden


def _gau(c: UnifiedConfig, p: Pass) -> int:
    heads, inner = c.hidden // c.head_dim, c.head_dim + 2 * c.hidden
    held = c.width + 2 * inner  # normed; before and behind SiLU
    held += 2 * c.hidden if c.qk_norm else 0  # scaled queries and keys, before their norms
    held += (3 if p.sequence_parallel > 1 else 2) * c.hidden  # turned; with values, as received
    held += 2 * c.hidden + (0 if p.scores else c.hidden)  # attended; gated
    statistics = 1 + (2 * heads if c.qk_norm else 0) + (0 if p.scores else heads)
    turned = p.width * c.head_dim if p.bf16 else 0
    return p.width * held + _FLOAT32 * statistics + turned


def pass_memory(c: UnifiedConfig, p: Pass) -> dict[str, int]:
    """Bytes at the moment that takes most, the beginning of the backward pass: `activations`, all that blocks keep;
    `logits`, of the text loss: themselves and their gradient in their own type, and some rows widened; `casts`, of
    weights to bf16. Behind the logits come the gradients within the last block; where blocks are computed again, what
    it keeps is there from then on. `activations` has what that takes beyond the logits."""
    residual, block = _FLOAT32 * c.width * p.positions, block_bytes(c, p)
    recurrent = c.layers - c.attention_layers
    blocks = c.attention_layers * block + (recurrent * block_bytes(c, p, attends=False) if recurrent else 0)
    if c.long_skips:  # of half the blocks: both streams side by side, into the Linear that merges them
        merging = p.width * c.width * p.positions
        block, blocks = block + merging, blocks + c.layers * merging
    if recurrent:  # where blocks are computed again, the largest
        block = max(block, block_bytes(c, p, attends=False))
    head = p.labels * c.width * (_FLOAT32 + p.width)  # chosen, and normed
    numbers = p.labels * c.vocab_size
    widened = min(numbers, AT_ONCE if p.scores else AT_ONCE_ON_GPU) * (2 if p.bf16 else 1)
    logits = 2 * p.width * numbers + _FLOAT32 * widened
    # Gradients of SwiGLU's output, which comes from an adapter too and is added, and of what goes in, which takes its
    # place but where a compiler decides. Computed again, an adapter's parts are all there before they are added. Of a
    # GAU's SiLU and of what its heads give.
    inner = (1 if p.scores else 3) * c.hidden + (c.hidden if p.adapted else 0)
    if p.adapted and p.recompute:
        inner = 4 * c.hidden
    if c.block == "gau":
        inner = 3 * (c.head_dim + 2 * c.hidden) + (3 if p.adapted else 2) * c.hidden
    within = p.width * inner * p.positions
    behind = block + within if p.recompute else within
    inputs = c.layers + 1
    if c.has_experts and not (p.recompute or c.long_skips):  # kept in the order of modalities alone, within the blocks
        inputs = 1
    return {
        "activations": residual * inputs + (0 if p.recompute else blocks) + max(head, behind - logits),
        "logits": logits,
        "casts": 2 * num_parameters(c) if p.bf16 else 0,
    }


def recomputes(c: UnifiedConfig, p: Pass, room: float) -> bool:
    """Whether blocks must be computed again for the pass to fit into `room`: the bytes that a device has beside the
    training's state. Where they need not be, it costs a third of a step for nothing."""
    return sum(pass_memory(c, replace(p, recompute=False)).values()) > room
