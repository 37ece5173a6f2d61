"""A gated linear recurrence in place of a block's attention (RG-LRU in Griffin's recurrent block, arXiv 2402.19427,
sections 2.3 and 2.4). In: hidden states of packed rows, and where documents begin and pictures lie. Out: the same
shape.

    two branches of the width     g = gelu(W_g x), u = W_u x
    a convolution of four places  v_t = c + sum_k w_k u_(t - k), channel by channel
    the recurrence                h_t = a_t h_(t-1) + sqrt(1 - a_t^2) (i_t v_t), a_t = exp(-8 softplus(decay) r_t),
                                  r_t and i_t sigmoids of v_t, by heads
    the output                    W_o (g h)

Places of text are a chain. It begins anew with each document, whose first place has h = i v (as the authors' code has
it). Each position of a picture is computed as the next one behind the text before the picture, and none changes what
comes after it: they share that state, in whatever order they are made, and see each other in the blocks that attend.

The recurrence is computed in parallel: chunks of places side by side, one place of each at a time, then what a chunk
hands to the next by the same rule. It differs from a loop over places by rounding alone.

Shapes: B rows, N places of a row that are fed, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omniloom.models.linear import Linear
from omniloom.models.unified.config import RECURRENT_TAPS, UnifiedConfig

_BEFORE = RECURRENT_TAPS - 1  # inputs that a place sees beside its own
_FIRST = _BEFORE + 1  # of a row's own places among its inputs: behind a 0, and those of earlier feeds
_C = 8.0
_CHUNK = 16
_LEAST = 2.5e-7  # of 1 - a^2, whose root has no bounded gradient


@dataclass
class Chain:
    """Of a pass over rows whose inputs are a 0, `_BEFORE` inputs of text from earlier feeds, the newest last, and those
    of the N places. A place's predecessor is the text before it in its document, the 0 where there is none.

    before   int64 (B, _FIRST + N): of each input its predecessor among them
    last     int64 (B, N + 1): the newest text's input before place n of the row, whatever document it is of
    resets   bool (B, N, 1): first places of documents
    visual   bool (B, N, 1): places of pictures; None where there are none
    """

    before: Tensor
    last: Tensor
    resets: Tensor
    visual: Tensor | None


def chain_of(starts: Tensor, visual: Tensor | None) -> Chain:
    """starts int64 (B, N): the first place of each place's document, below 0 where that was fed earlier; visual bool
    (B, N)."""
    (B, N), device = starts.shape, starts.device
    line = torch.arange(N, device=device).expand(B, N)
    text = line if visual is None else torch.where(visual, -1, line).cummax(dim=1).values
    last = F.pad(text, (1, 0), value=-1)
    begins = last[:, :-1] < starts.clamp_min(-1)
    own = torch.where(begins, 0, last[:, :-1] + _FIRST)
    earlier = (torch.arange(_FIRST, device=device) - 1).clamp_min(0).expand(B, _FIRST)
    resets = (line == starts)[..., None]
    return Chain(torch.cat((earlier, own), 1), last + _FIRST, resets, None if visual is None else visual[..., None])


class StateCache(Protocol):
    """What earlier feeds left: state float32 (B, D) and inputs (B, _BEFORE, D), or None before there were any. `keep`
    takes the states behind each place of a feed, (B, N, D), its inputs (B, _FIRST + N, D) and chain."""

    def held(self) -> tuple[Tensor, Tensor] | None: ...

    def keep(self, states: Tensor, inputs: Tensor, chain: Chain) -> None: ...


class Recurrence(nn.Module):
    def __init__(self, config: UnifiedConfig):
        super().__init__()
        width, heads = config.width, config.heads
        self.branches = Linear(width, 2 * width, bias=False)
        # Of one axis, so that weight decay and Muon, which are for matrices, leave them alone.
        self.taps = nn.Parameter(torch.empty(RECURRENT_TAPS * width))  # of the place itself first
        self.tap_bias, self.decay = (nn.Parameter(torch.empty(width)) for _ in range(2))
        self.gates = nn.Parameter(torch.empty(heads, width // heads, 2 * (width // heads)))  # of inputs, of the state
        self.gate_bias = nn.Parameter(torch.empty(2 * width))
        self.out = Linear(width, width, bias=False)

    @torch.no_grad()
    def reset_scales(self) -> None:
        """a^8 is drawn evenly between 0.9 and 0.999 (section 2.4) at r = 1; taps and gates as in `transformers`."""
        heads, inputs, _ = self.gates.shape
        nn.init.normal_(self.taps, std=RECURRENT_TAPS**-0.5)
        nn.init.normal_(self.gates, std=inputs**-0.5)
        nn.init.zeros_(self.tap_bias)
        nn.init.zeros_(self.gate_bias)
        nn.init.uniform_(self.decay, 0.9, 0.999)
        self.decay.log_().neg_().div_(_C).expm1_().log_()  # softplus of which is -log(a^8) / 8

    def forward(self, x: Tensor, chain: Chain, cache: StateCache | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        gate, u = self.branches(x).chunk(2, dim=-1)
        held = None if cache is None else cache.held()
        earlier = u.new_zeros(u.shape[0], _BEFORE, u.shape[2]) if held is None else held[1].to(u.dtype)
        inputs = torch.cat((u.new_zeros(u.shape[0], 1, u.shape[2]), earlier, u), dim=1)
        log_a, b = self._gated(self._mixed(u, inputs, chain), chain)
        a = log_a.exp()
        passed, added = torch.where(chain.resets, 0.0, a), b
        if chain.visual is not None:
            passed, added = torch.where(chain.visual & ~chain.resets, 1.0, passed), torch.where(chain.visual, 0.0, b)
        if held is not None:
            added = torch.cat((added[:, :1] + passed[:, :1] * held[0][:, None], added[:, 1:]), dim=1)
        states = linear_scan(passed, added)
        if cache is not None:
            cache.keep(states, inputs, chain)
        h = states if chain.visual is None else torch.where(chain.visual, torch.addcmul(b, a, states), states)
        return self.out(F.gelu(gate, approximate="tanh") * h.to(gate.dtype))

    def _mixed(self, u: Tensor, inputs: Tensor, chain: Chain) -> Tensor:
        """Behind the convolution, (B, N, D)."""
        B, N, D = u.shape
        flat, count = inputs.flatten(0, 1), inputs.shape[1]
        rows = count * torch.arange(B, device=u.device)[:, None]
        taps = self.taps.to(u.dtype).view(RECURRENT_TAPS, D)
        mixed, at = u * taps[0] + self.tap_bias.to(u.dtype), chain.before[:, _FIRST:]
        for tap in taps[1:]:
            mixed = mixed + tap * flat.index_select(0, (rows + at).flatten()).view(B, N, D)
            at = chain.before.gather(1, at)
        return mixed

    def _gated(self, v: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
        """(B, N, D) each, float32 or more: log a, and what enters the state."""
        (B, N, D), wide = v.shape, torch.promote_types(v.dtype, torch.float32)
        heads, inputs, _ = self.gates.shape
        by_head = v.reshape(B * N, heads, inputs).transpose(0, 1)
        both = torch.bmm(by_head, self.gates.to(v.dtype)).transpose(0, 1).view(B, N, heads, 2, inputs)
        both = torch.sigmoid(both.to(wide) + self.gate_bias.view(heads, 2, inputs))
        enters, recurs = (both[..., i, :].reshape(B, N, D) for i in range(2))
        log_a = -_C * F.softplus(self.decay.to(wide)) * recurs
        scale = (-torch.expm1(2 * log_a)).clamp_min(_LEAST).sqrt()
        return log_a, torch.where(chain.resets, 1.0, scale) * enters * v.to(wide)


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_(t-1) + b_t along the second axis of (B, N, D), from h = 0."""
    if torch.compiler.is_compiling():
        return _linear_scan(a, b)
    return _LinearScan.apply(a, b) if torch.is_grad_enabled() else _scan(a, b)


def _scan(a: Tensor, b: Tensor) -> Tensor:
    B, N, D = a.shape
    if N <= _CHUNK:
        h = b.clone()
        for t in range(1, N):
            h[:, t].addcmul_(a[:, t], h[:, t - 1])
        return h
    missing = -N % _CHUNK
    whole_a, whole_b = (F.pad(x, (0, 0, 0, missing)) for x in (a, b))
    passed, h = (x.reshape(B, -1, _CHUNK, D).clone() for x in (whole_a, whole_b))
    for t in range(1, _CHUNK):
        h[:, :, t].addcmul_(passed[:, :, t], h[:, :, t - 1])
        passed[:, :, t].mul_(passed[:, :, t - 1])
    before = F.pad(_scan(passed[:, :, -1], h[:, :, -1])[:, :-1], (0, 0, 1, 0))  # what each chunk is handed
    return h.addcmul_(passed, before[:, :, None]).flatten(1, 2)[:, :N]


def _scan_backward(grad: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Of a and of b: the recurrence the other way about, by a of the place behind each."""
    behind = F.pad(a[:, 1:], (0, 0, 0, 1)).flip(1)
    of_b = _scan(behind, grad.flip(1)).flip(1)
    return of_b * F.pad(h[:, :-1], (0, 0, 1, 0)), of_b


class _LinearScan(torch.autograd.Function):
    """Where nothing is compiled: see `models.unified.attention`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _scan_backward(grad, *ctx.saved_tensors)


@torch.library.custom_op("omniloom::linear_scan", mutates_args=())
def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return _scan(a, b).contiguous()


@_linear_scan.register_fake
def _(a, b):
    return torch.empty_like(b, memory_format=torch.contiguous_format)


@torch.library.custom_op("omniloom::linear_scan_backward", mutates_args=())
def _linear_scan_backward(grad: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    of_a, of_b = _scan_backward(grad, a, h)
    return of_a.contiguous(), of_b.contiguous()


@_linear_scan_backward.register_fake
def _(grad, a, h):
    return tuple(torch.empty_like(h, memory_format=torch.contiguous_format) for _ in range(2))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output)


def _compiled_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _linear_scan_backward(grad, *ctx.saved_tensors)


_linear_scan.register_autograd(_compiled_backward, setup_context=_keep)
