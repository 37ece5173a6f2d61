"""The packed mask in all its forms: a naive reference that reads the rule from the documents, SDPA under the dense
mask, runs of queries on the CPU, and FlexAttention under block tables."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from omniloom.models.unified.attention import BlockAttend, DenseAttend, FlexAttend, attend_for
from omniloom.models.unified.batch import collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.layouts import plain_text
from omniloom.models.unified.mask import (
    BLOCK,
    BlockTables,
    QueryBlocks,
    block_tables,
    dense_mask,
    intervals,
    query_blocks,
)

# A row as documents of runs: (visual, positions); what is left of the row is padding.
runs = st.lists(st.tuples(st.booleans(), st.integers(1, 90)), min_size=1, max_size=4)
rows = st.lists(st.lists(runs, max_size=4), min_size=1, max_size=3)


def laid_out(documents):
    """(length, document spans, spans of visual runs, what each place is of: (document, run, visual))."""
    at, spans, visuals, places = 0, [], [], []
    for d, document in enumerate(documents):
        begin = at
        for r, (visual, n) in enumerate(document):
            if visual:
                visuals.append((at, at + n))
            places += [(d, r, visual)] * n
            at += n
        spans.append((begin, at))
    return at, spans, visuals, places


def batch_of(rows, padding):
    laid = [laid_out(row) for row in rows]
    L = max(length for length, *_ in laid) + padding
    start, end = np.empty((2, len(rows), L), np.int64)
    spans = []
    for b, (_, documents, visuals, _) in enumerate(laid):
        start[b], end[b] = intervals(L, documents, visuals)
        spans += [(b, *span) for span in documents]
    return start, end, spans, [places + [None] * (L - len(places)) for *_, places in laid]


def sees(places, i, j):
    """The rule, as it is said: causal within a document, in full within a visual run; padding sees itself."""
    if places[i] is None or places[j] is None:
        return i == j
    same_run = places[i] == places[j] and places[i][2]
    return places[i][0] == places[j][0] and (j <= i or same_run)


def naive(q, k, v, seen):
    """Softmax attention with explicit scores; seen bool (B, N, N)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhij,bhjd->bhid", weights / weights.sum(-1, keepdim=True), v)


def inputs(B, N, heads=4, kv_heads=2, dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(N)
    return [
        torch.randn(B, h, N, dim, generator=generator, dtype=dtype).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    ]


@settings(max_examples=25, deadline=None)
@given(rows=rows, padding=st.integers(1, 40))
def test_all_backends_give_what_the_rule_says(rows, padding):
    start, end, spans, places = batch_of(rows, padding)
    B, N = start.shape
    seen = torch.tensor([[[sees(row, i, j) for j in range(N)] for i in range(N)] for row in places])
    start_t, end_t = torch.from_numpy(start), torch.from_numpy(end)
    assert torch.equal(dense_mask(start_t, end_t)[:, 0], seen)
    useful = torch.tensor([[place is not None for place in row] for row in places])[:, None, :, None]
    q, k, v = inputs(B, N)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype) * useful
    want = naive(q, k, v, seen)
    gradients = torch.autograd.grad((want * weight).sum(), (q, k, v))
    for attend in (DenseAttend(dense_mask(start_t, end_t)), BlockAttend(query_blocks(start, end, spans))):
        got = attend(q, k, v)
        torch.testing.assert_close(got * useful, want * useful, atol=1e-10, rtol=1e-8)
        for a, b in zip(torch.autograd.grad((got * weight).sum(), (q, k, v)), gradients):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    flex = FlexAttend(block_tables(start, end), start_t, end_t)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is slow without a compiler
        got = flex(*(x.float() for x in (q, k, v)))
    torch.testing.assert_close(got * useful, (want * useful).float(), atol=2e-5, rtol=2e-5)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), min_size=1, max_size=4), max_size=4),
        min_size=1,
        max_size=2,
    ),
    padding=st.integers(0, 300),
)
def test_block_tables_are_what_tracing_the_mask_gives(rows, padding):
    """Against FlexAttention's own create_block_mask, which evaluates the rule at every pair."""
    if not any(rows) and not padding:
        return
    start, end, _, _ = batch_of(rows, padding)
    B, N = start.shape
    starts, ends = torch.from_numpy(start), torch.from_numpy(end)

    def rule(b, h, i, j):
        return (j >= starts[b, i]) & (j < ends[b, i])

    traced = create_block_mask(rule, B, None, N, N, device="cpu", BLOCK_SIZE=BLOCK)
    ours = FlexAttend(block_tables(start, end), starts, ends).block_mask()

    def blocks(counts, indices):
        return {
            (b, i, int(j))
            for b in range(B)
            for i in range(counts.shape[2])
            for j in indices[b, 0, i, : int(counts[b, 0, i])]
        }

    some, full = (blocks(ours.kv_num_blocks, ours.kv_indices), blocks(ours.full_kv_num_blocks, ours.full_kv_indices))
    traced_some, traced_full = (
        blocks(traced.kv_num_blocks, traced.kv_indices),
        blocks(traced.full_kv_num_blocks, traced.full_kv_indices),
    )
    # In a block called full no query asks the mask: exactly those whose every pair is seen, of keys that there are.
    # Places behind the row's end ask for nothing.
    seen = torch.ones(B, N + -N % BLOCK, N + -N % BLOCK, dtype=torch.bool)
    seen[:, :N, :N], seen[:, :N, N:] = dense_mask(starts, ends)[:, 0], False
    whole = seen.unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK)).all(4).all(2)
    if N % BLOCK:
        whole[:, :, -1] = False
    assert full == {tuple(place) for place in whole.nonzero().tolist()}
    assert traced_some | traced_full <= some | full  # every pair that is seen is visited
    assert not some & full
    # By keys it is the same transposed.
    for counts, indices, forward in (
        (ours.q_num_blocks, ours.q_indices, some),
        (ours.full_q_num_blocks, ours.full_q_indices, full),
    ):
        assert {(b, j, i) for b, i, j in blocks(counts, indices)} == forward


def test_no_block_of_two_documents_is_called_full():
    """Two documents of 150: the block of queries 128..255 begins in one and ends in the other."""
    tables = block_tables(*batch_of([[[(False, 150)], [(False, 150)]]], 0)[:2])
    counts, indices = tables.all
    assert [indices[0, 0, i, :count].tolist() for i, count in enumerate(counts[0, 0].tolist())] == [[], [], []]
    tables = block_tables(*batch_of([[[(False, 300)], [(True, 300)]]], 0)[:2])
    counts, indices = tables.all
    assert [indices[0, 0, i, :count].tolist() for i, count in enumerate(counts[0, 0].tolist())] == [
        [],
        [0],
        [],
        [3],
        [3],
    ]


def test_few_blocks_are_visited_that_nobody_sees():
    """The extremes of a block say little only where padding meets documents."""
    rows = [[[(False, 200), (True, 64)], [(True, 256)], [(False, 500)]]]
    start, end, _, _ = batch_of(rows, 4)
    tables = block_tables(start, end)
    visited = int(tables.some[0].sum() + tables.all[0].sum())
    N = start.shape[1]
    seen = dense_mask(torch.from_numpy(start), torch.from_numpy(end))[0, 0]
    padded = torch.zeros(-(-N // BLOCK) * BLOCK, -(-N // BLOCK) * BLOCK, dtype=torch.bool)
    padded[:N, :N] = seen
    needed = int(padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).any(3).any(1).sum())
    assert visited == needed < (-(-N // BLOCK)) ** 2


def test_a_fully_padded_row_is_harmless():
    start, end, spans, _ = batch_of([[[(False, 30), (True, 20)]], []], 5)
    q, k, v = inputs(2, start.shape[1])
    for attend in (
        BlockAttend(query_blocks(start, end, spans)),
        DenseAttend(dense_mask(torch.from_numpy(start), torch.from_numpy(end))),
    ):
        out = attend(q, k, v)
        assert out.isfinite().all()
        # Neither what stands in it nor its gradient reaches the other row.
        gradients = torch.autograd.grad(out[0].sum(), (q, k, v))
        assert all(g.isfinite().all() and not g[1].any() for g in gradients)
    assert not query_blocks(start, end, []).spans.numel()


def test_documents_never_see_each_other():
    start, end, spans, _ = batch_of([[[(False, 150)], [(True, 140)], [(False, 10), (True, 30), (False, 20)]]], 7)
    bounds = [(b, e) for _, b, e in spans]
    for attend in (
        BlockAttend(query_blocks(start, end, spans)),
        DenseAttend(dense_mask(torch.from_numpy(start), torch.from_numpy(end))),
    ):
        q, k, v = inputs(1, start.shape[1])
        out = attend(q, k, v)
        for begin, stop in bounds:
            gradients = torch.autograd.grad(out[:, :, begin:stop].sum(), (q, k, v), retain_graph=True)
            for gradient in gradients:
                assert not gradient[:, :, :begin].any() and not gradient[:, :, stop:].any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
def test_runs_of_queries_in_lower_precision(dtype, tolerance):
    start, end, spans, _ = batch_of([[[(False, 200), (True, 64), (False, 9)], [(True, 49)]]], 6)
    q, k, v = inputs(1, start.shape[1])
    want = DenseAttend(dense_mask(torch.from_numpy(start), torch.from_numpy(end)))(q, k, v)[:, :, :-6]
    low = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    got = BlockAttend(query_blocks(start, end, spans))(*low)[:, :, :-6]
    assert (got.double() - want).norm() < tolerance * want.norm()
    expected = torch.autograd.grad(want.square().sum(), (q, k, v))
    for a, b in zip(torch.autograd.grad(got.float().square().sum(), low), expected):
        assert (a.double() - b).norm() < 2 * tolerance * b.norm()


def test_what_comes_out_lies_place_by_place():
    """So that the product behind takes it without a copy, and gradients go the same way."""
    start, end, spans, _ = batch_of([[[(False, 130), (True, 9)]]], 3)
    attend = BlockAttend(query_blocks(start, end, spans))
    q, k, v = (
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for x in inputs(1, start.shape[1], kv_heads=4)
    )
    out = attend(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    assert all(g.transpose(1, 2).is_contiguous() for g in torch.autograd.grad(out.square().sum(), (q, k, v)))


def test_the_operators_keep_pytorchs_contracts():
    start, end, spans, _ = batch_of([[[(False, 130), (True, 9)]]], 3)
    blocks = query_blocks(start, end, spans)
    q, k, v = inputs(1, start.shape[1], kv_heads=4)
    torch.library.opcheck(torch.ops.omniloom.block_attention, (q, k, v, blocks.spans, blocks.bias))


def test_the_plan_chooses_the_backend():
    start, end, spans, _ = batch_of([[[(False, 3)]]], 0)
    bounds = torch.from_numpy(start), torch.from_numpy(end)
    assert isinstance(attend_for(None, *bounds), DenseAttend)
    assert isinstance(attend_for(query_blocks(start, end, spans), *bounds), BlockAttend)
    assert isinstance(attend_for(block_tables(start, end), *bounds), FlexAttend)


def test_a_plan_for_cpus_stays_behind():
    config = UnifiedConfig(vocab_size=32, latent_dim=2, width=16, layers=1, heads=2)
    rows = [[plain_text([6, 7, 8], config.specials)]]
    batch = collate(rows, 8, config)
    assert isinstance(batch.plan, QueryBlocks) and isinstance(batch.to("cpu").plan, QueryBlocks)
    assert batch.to("meta").plan is None and batch.plan is not None
    assert collate(rows, 8, config, device=None).plan is None
    assert isinstance(collate(rows, 8, config, "cuda").to("meta").plan, BlockTables)
