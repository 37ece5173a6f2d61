"""One token, or code, a row by chance. In: logits and a number in [0, 1) a row. Out: the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling

_HEAD = 256  # of the likeliest; they hold nearly all of the probability


def sample_tokens(logits: Tensor, uniforms: Tensor | None, how: TextSampling | VisualSampling) -> Tensor:
    """One token a row by inverting the distribution function, the likeliest token first, at `uniforms` (B,) in [0, 1).

    logits (B, V); -inf forbids. `how.temperature` 0 takes the likeliest, and then there need be no `uniforms`. top_k
    keeps the k likeliest; top_p the smallest set of likeliest tokens that holds at least that probability. Returns
    int64 (B,).
    """
    if how.temperature == 0:
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("uniforms: expected a number a row, by which a token is drawn at this temperature; got None")
    logits, uniforms = logits.double() / how.temperature, uniforms.double()
    head = max(_HEAD, 2 * (how.top_k or 0))
    # On a CPU, sorting a vocabulary can take longer than the model.
    if logits.device.type != "cpu" or 4 * head > logits.shape[-1]:
        return _by_all(logits, uniforms, how)
    tokens, sure = _by_the_likeliest(logits, uniforms, how, head)
    if not sure.all():
        tokens[~sure] = _by_all(logits[~sure], uniforms[~sure], how)
    return tokens


def _by_all(logits: Tensor, uniforms: Tensor, how: TextSampling | VisualSampling) -> Tensor:
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    return order.gather(1, _inverted(_allowed(values.softmax(dim=-1), how), 0.0, uniforms))[:, 0]


def _by_the_likeliest(
    logits: Tensor, uniforms: Tensor, how: TextSampling | VisualSampling, head: int
) -> tuple[Tensor, Tensor]:
    """What `_by_all` gives, from the `head` likeliest, more than top_k; and in which rows that is sure, bool (B,)."""
    among = logits.topk(head, sorted=False).indices.sort(dim=-1).values
    values, order = logits.gather(1, among).sort(dim=-1, descending=True, stable=True)
    found = (values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    held, last = found.sum(dim=-1, keepdim=True), found[:, -1:].clone()
    allowed = _allowed(found, how)
    # What is allowed behind the head holds between `least` and `most`.
    least = most = torch.zeros_like(held)
    if how.top_k is None:
        most = 1 - held
        if how.top_p is None:
            least = most
        else:
            goes_on = allowed[:, -1:] > 0
            least = ((how.top_p - held) * goes_on).clamp(min=0)
            most = torch.minimum(most, how.top_p + last - held) * goes_on
    places = _inverted(allowed, least, uniforms)
    # Of equals of the last one some may be missing.
    sure = (places == _inverted(allowed, most, uniforms)) & (values.gather(1, places) > values[:, -1:])
    return among.gather(1, order.gather(1, places))[:, 0], sure[:, 0]


def _allowed(probabilities: Tensor, how: TextSampling | VisualSampling) -> Tensor:
    """Falling probabilities (B, M), of what all hold, with 0 for what may not be chosen."""
    if how.top_k is not None:
        probabilities[:, how.top_k :] = 0
    if how.top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        whole = probabilities.sum(-1, keepdim=True) if how.top_k is not None else 1.0
        probabilities = probabilities.masked_fill(before >= how.top_p * whole, 0)
    return probabilities


def _inverted(probabilities: Tensor, rest: Tensor | float, uniforms: Tensor) -> Tensor:
    """Places (B, 1) in probabilities (B, M), behind which others hold `rest`."""
    total = probabilities.cumsum(dim=-1)
    drawn = torch.searchsorted(total, uniforms[:, None] * (total[:, -1:] + rest), right=True)
    count = (probabilities > 0).sum(dim=-1, keepdim=True)
    # Of logits that are no numbers nothing is allowed; any token is as good then, as at temperature 0.
    return torch.minimum(drawn, count - 1).clamp(min=0)
