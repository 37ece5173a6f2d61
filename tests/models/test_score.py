"""Scoring texts behind prefixes: the shared cache gives what the plain packed forward pass gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from visual_batches import forward, picture

from omniloom.models.unified.batch import Segment, collate, document_length
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.score import log_likelihoods
from omniloom.models.unified.layouts import prefix_for_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.representations import OBJECTIVES

EOS = 2


def build(**fields) -> UnifiedModel:
    config = UnifiedConfig(
        vocab_size=40,
        latent_dim=3,
        pixel_dim=12,
        codebook_size=20,
        width=48,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=64,
        **fields,
    )
    torch.manual_seed(0)
    model = UnifiedModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.15)
    return model


def values(objective: str, grid: tuple[int, int, int]) -> np.ndarray:
    kind = OBJECTIVES[objective].representation.name
    if kind == "codes":
        return np.random.default_rng(1).integers(0, 20, int(np.prod(grid)))
    return picture(grid, 1, 3 if kind == "latents" else 12)


def prefixes(model: UnifiedModel, objective: str) -> list[list[Segment]]:
    special = model.config.specials
    grids = ((1, 2, 3), (1, 3, 2), (2, 2, 2))
    shown = [prefix_for_text([], special, values(objective, grid), grid, objective) for grid in grids]
    return [*shown, prefix_for_text([], special), prefix_for_text([9, 8, 7], special)]


def texts(count: int, seed: int = 0) -> list[list[list[int]]]:
    """Lists of texts of unequal lengths, and of unequal numbers, one of them empty."""
    rng = np.random.default_rng(seed)
    return [
        [[*rng.integers(6, 40, rng.integers(0, 9)).tolist(), EOS] for _ in range(number)]
        for number in rng.permutation([0, 1, 4, 5, 9])[:count]
    ]


def naive(model: UnifiedModel, prefix: list[Segment], ids: list[int]) -> float:
    """The document in one row of its own, without a cache."""
    document = [*prefix, Segment("text", ids=np.array(ids))]
    batch = collate([[document]], document_length(document), model.config)
    labels = batch.labels.flatten()[batch.label_index]
    assert labels.tolist() == ids
    with torch.no_grad():
        logits = forward(model, batch)[0]
    return float(-torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize("batch_size", [256, 2])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_it_is_the_plain_forward_pass(objective: str, batch_size: int) -> None:
    model = build()
    documents = prefixes(model, objective)
    asked = texts(len(documents))
    found = log_likelihoods(model, documents, asked, batch_size)
    assert [len(scores) for scores in found] == [len(part) for part in asked]
    for prefix, part, scores in zip(documents, asked, found):
        expected = torch.tensor([naive(model, prefix, ids) for ids in part])
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["tie_v1", "axial", "streaming", "rope_1d", "one_place"])
def test_it_is_in_every_scheme_of_positions(scheme: str) -> None:
    model = build(rope_scheme=scheme)
    documents, asked = prefixes(model, "latent_diffusion"), texts(5, 1)
    for prefix, part, scores in zip(documents, asked, log_likelihoods(model, documents, asked)):
        expected = torch.tensor([naive(model, prefix, ids) for ids in part])
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)


def test_all_continuations_of_a_length_have_the_probability_of_one() -> None:
    model = build()
    pairs = [[a, b] for a in range(40) for b in range(40)]
    total = log_likelihoods(model, prefixes(model, "next_code")[:1], [pairs])[0].logsumexp(0)
    assert float(total) == pytest.approx(0.0, abs=1e-4)


@torch.no_grad()
def test_tokens_at_once_leave_the_state_that_one_at_a_time_leaves() -> None:
    """Rows of unequal runs: what a shorter row had behind its own is as if it had never been fed."""
    model = build()
    documents = prefixes(model, "masked_code")
    at_once, _ = GenerationState.prefill(model, documents)
    in_turn, _ = GenerationState.prefill(model, documents)
    ids, counts = torch.randint(6, 40, (5, 4), generator=torch.Generator().manual_seed(0)), [4, 0, 2, 3, 1]
    hidden = at_once.feed_tokens(ids, counts)
    for step in range(4):
        one = in_turn.feed_text(ids[:, step].tolist(), [step < count for count in counts])
        for b, count in enumerate(counts):
            if step < count:
                torch.testing.assert_close(hidden[b, step], one[b], atol=1e-5, rtol=1e-4)
    assert (at_once.lengths, at_once.last) == (in_turn.lengths, in_turn.last)
    torch.testing.assert_close(at_once.feed_text([7] * 5), in_turn.feed_text([7] * 5), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_scored_is_named() -> None:
    model = build()
    documents = prefixes(model, "next_code")[:2]
    assert [scores.tolist() for scores in log_likelihoods(model, documents, [[], []])] == [[], []]
    with pytest.raises(ValueError, match="texts: expected 2 lists, one a prefix, got 1"):
        log_likelihoods(model, documents, [[[7]]])
    with pytest.raises(ValueError, match=r"texts\[1\]\[0\]: expected at least one token"):
        log_likelihoods(model, documents, [[[7]], [[]]])
    with pytest.raises(ValueError, match=r"prefixes\[0\]: expected at least one token"):
        log_likelihoods(model, [[]], [[[7]]])
