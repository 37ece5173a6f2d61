"""How likely texts are behind prefixes. In: prefixes, as `models.unified.layouts` writes them, and for each the token
ids of the texts that may follow. Out: their log-likelihoods.

A prefix, its pictures included, is read once; all texts asked of it share its keys and values. With the likelihood of a
caption behind a picture and without one, log p(caption | picture) - log p(caption) is their pointwise mutual
information: what the picture says for the caption, whether or not the caption is a common one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omniloom.models.unified.batch import Document
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.model import UnifiedModel


@torch.no_grad()
def log_likelihoods(
    model: UnifiedModel, prefixes: Sequence[Document], texts: Sequence[Sequence[Sequence[int]]], batch_size: int = 256
) -> list[Tensor]:
    """log p(text | prefix) in nats, the sum over the text's tokens.

    texts       texts[i] are those asked of prefixes[i], each with the token that ends it (<eos>) where that counts
    batch_size  bounds the prefixes, and the texts, computed at once
    Returns float32 (len(texts[i]),) for each i, on the CPU. ValueError for an empty prefix, an empty text, or another
    number of lists than of prefixes.
    """
    if len(texts) != len(prefixes):
        raise ValueError(f"texts: expected {len(prefixes)} lists, one a prefix, got {len(texts)}")
    for i, asked in enumerate(texts):
        for j, ids in enumerate(asked):
            if not len(ids):
                raise ValueError(f"texts[{i}][{j}]: expected at least one token")
    found: list[Tensor] = []
    for at in range(0, len(prefixes), batch_size):
        part = slice(at, at + batch_size)
        state, hidden = GenerationState.prefill(model, prefixes[part])
        pairs = [(row, torch.as_tensor(ids)) for row, asked in enumerate(texts[part]) for ids in asked]
        scores = [_score(state, hidden, pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]
        found += torch.cat([torch.empty(0), *scores]).split([len(asked) for asked in texts[part]])
    return found


def _score(state: GenerationState, hidden: Tensor, pairs: list[tuple[int, Tensor]]) -> Tensor:
    """Log-likelihoods of each (row of the state, ids); `hidden` (B, width) is at the end of the state's prefixes."""
    rows, texts = [row for row, _ in pairs], [ids for _, ids in pairs]
    ids = pad_sequence(texts, batch_first=True).long().to(hidden.device)
    lengths = torch.tensor([len(text) for text in texts], device=hidden.device)
    before = hidden[rows][:, None]
    if ids.shape[1] > 1:
        read = state.select(rows).feed_tokens(ids[:, :-1], (lengths - 1).tolist())
        before = torch.cat((before, read), dim=1)
    scores = state.model.text_head(before).float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
    return scores.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None], 0.0).sum(dim=1).cpu()
