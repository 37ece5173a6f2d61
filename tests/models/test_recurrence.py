"""The gated linear recurrence: its parallel form against a loop in float64, RG-LRU and Griffin's block against
`transformers` on copied weights, pictures beside texts written out place by place, and what generation keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import build, config_of, documents, drawing, values
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock
from visual_batches import is_visual

from omniloom.models.checks import FieldError
from omniloom.models.unified.adapter.config import AdapterConfig
from omniloom.models.unified.batch import collate
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.layouts import prefix_for_visual
from omniloom.models.unified.llama.config import config_from_llama
from omniloom.models.unified.recurrence import Recurrence, _linear_scan, chain_of, linear_scan
from omniloom.stages.train.config import TrainEngineConfig

WIDTH, HEADS = 48, 4


def recurrence(seed: int = 0) -> Recurrence:
    torch.manual_seed(seed)
    module = Recurrence(config_of("recurrent"))
    module.reset_scales()
    with torch.no_grad():
        for linear in (module.branches, module.out):
            linear.weight.normal_(std=0.2)
        for bias in (module.tap_bias, module.gate_bias):
            bias.normal_(std=0.3)
    return module.double()


def loop(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    h, found = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        found.append(h)
    return torch.stack(found, 1)


@given(st.integers(1, 2), st.integers(1, 300), st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_parallel_form_is_the_loop(B: int, N: int, D: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, grad = (torch.rand(B, N, D, dtype=torch.float64, generator=generator) for _ in range(3))
    a[torch.rand(a.shape, generator=generator) < 0.1] = 0.0
    a[torch.rand(a.shape, generator=generator) < 0.2] = 1.0
    found = []
    for scan in (loop, linear_scan, _linear_scan):  # the last is what a compiler takes
        leaves = [x.clone().requires_grad_() for x in (a, b)]
        out = scan(*leaves)
        out.backward(grad)
        found.append((out.detach(), *(leaf.grad for leaf in leaves)))
    with torch.no_grad():
        found.append((linear_scan(a, b), *found[0][1:]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "without a convolution, packed"])
def test_it_is_griffins_block_of_transformers(packed: bool) -> None:
    """Whose convolution does not begin anew with a document."""
    ours = recurrence()
    config = RecurrentGemmaConfig(
        hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=HEADS, conv1d_width=4, num_hidden_layers=3
    )
    theirs = RecurrentGemmaRecurrentBlock(config, 0).double()
    inputs = WIDTH // HEADS
    with torch.no_grad():
        if packed:
            ours.taps[WIDTH:] = 0.0
        theirs.linear_y.weight.copy_(ours.branches.weight[:WIDTH])
        theirs.linear_x.weight.copy_(ours.branches.weight[WIDTH:])
        theirs.linear_out.weight.copy_(ours.out.weight)
        for linear in (theirs.linear_y, theirs.linear_x, theirs.linear_out):
            linear.bias.zero_()
        theirs.conv_1d.weight.copy_(ours.taps.view(4, WIDTH).flip(0).T[:, None])
        theirs.conv_1d.bias.copy_(ours.tap_bias)
        theirs.rg_lru.recurrent_param.copy_(ours.decay)
        bias = ours.gate_bias.view(HEADS, 2, inputs)
        for i, name in enumerate(("input", "recurrent")):
            getattr(theirs.rg_lru, f"{name}_gate_weight").copy_(ours.gates[..., i * inputs : (i + 1) * inputs])
            getattr(theirs.rg_lru, f"{name}_gate_bias").copy_(bias[:, i])
    starts = (
        torch.tensor([[0] * 7 + [7] * 20 + [27] * 13, [0] * 30 + [30] * 10]) if packed else torch.zeros(2, 40).long()
    )
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(40) - starts
    wanted, _ = theirs(x, positions, None, use_cache=False)
    found = ours(x, chain_of(starts, None))
    # Gates, rates and states are float32 in both.
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (found, wanted)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def by_place(module: Recurrence, x: torch.Tensor, starts: list[int], visual: list[bool]) -> torch.Tensor:
    """One row, (N, D), place by place in float64, from the definitions."""
    heads, inputs, _ = module.gates.shape
    gate, u = F.linear(x, module.branches.weight).chunk(2, dim=-1)
    taps, bias, rate = module.taps.view(4, -1), module.gate_bias.view(heads, 2, inputs), F.softplus(module.decay)
    h, seen, out = torch.zeros_like(u[0]), [], []
    for t, (start, is_picture) in enumerate(zip(starts, visual)):
        if t == start:
            h, seen = torch.zeros_like(h), []
        around = [u[t], *reversed(seen[-3:])]
        v = module.tap_bias + sum(tap * value for tap, value in zip(taps, around))
        both = torch.sigmoid((v.view(heads, 1, inputs) @ module.gates).view(heads, 2, inputs) + bias)
        i, r = both[:, 0].flatten(), both[:, 1].flatten()
        a = torch.exp(-8 * rate * r)
        new = i * v if t == start else a * h + (1 - a * a).sqrt() * i * v
        out.append(F.gelu(gate[t], approximate="tanh") * new)
        if not is_picture:
            h, seen = new, [*seen, u[t]]
    return F.linear(torch.stack(out), module.out.weight)


def layout() -> tuple[torch.Tensor, torch.Tensor]:
    """starts and pictures' places of packed rows, padding included."""
    config = config_of("recurrent")
    batch = collate([documents(), documents()[2:5]], 112, config)
    return batch.start, is_visual(batch)


def test_pictures_come_behind_the_text_before_them_and_change_nothing() -> None:
    module, (starts, visual) = recurrence(), layout()
    assert visual.any() and (~visual).any()
    x = torch.randn(2, 112, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        found = module(x, chain_of(starts, visual))
        wanted = torch.stack([by_place(module, x[b], starts[b].tolist(), visual[b].tolist()) for b in range(2)])
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_documents_alone_are_as_packed(sizes: list[tuple[int, int, int]], seed: int) -> None:
    """Documents of a text, a picture and a text."""
    module = recurrence()
    starts, visual, at = [], [], 0
    for before, picture, behind in sizes:
        starts += [at] * (before + picture + behind)
        visual += [False] * before + [True] * picture + [False] * behind
        at = len(starts)
    x = torch.randn(1, at, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    starts, visual = torch.tensor(starts), torch.tensor(visual)
    with torch.no_grad():
        packed = module(x, chain_of(starts[None], visual[None]))
        for first in starts.unique().tolist():
            own = starts == first
            alone = module(x[:, own], chain_of(torch.zeros(1, int(own.sum())).long(), visual[None, own]))
            torch.testing.assert_close(packed[:, own], alone, atol=1e-10, rtol=1e-10)
            # The order of a picture's positions says nothing.
            order = torch.where(own)[0].clone()
            order[visual[own]] = order[visual[own]].flip(0)
            turned = module(x[:, order], chain_of(torch.zeros(1, len(order)).long(), visual[None, own]))
            back = torch.empty_like(turned).index_copy_(1, order - first, turned)
            torch.testing.assert_close(packed[:, own], back, atol=1e-10, rtol=1e-10)


def test_states_fade_as_the_paper_draws_them() -> None:
    torch.manual_seed(0)
    module = Recurrence(config_of("recurrent", width=512, heads=4))
    module.reset_scales()
    faded = torch.exp(-8 * F.softplus(module.decay.double()))
    assert 0.9 <= faded.min() < 0.905 and 0.99 < faded.max() <= 0.999
    assert faded.mean().item() == pytest.approx(0.9495, abs=0.005)


# ---- generation ----


@pytest.fixture(scope="module")
def model():
    return build(config_of("recurrent")).eval()


def test_ragged_rows_go_on_from_their_own_states(model) -> None:
    """Prefixes so unlike that they are read in two passes; tokens that one row keeps and another does not."""
    special = model.config.specials
    texts = [[special.bos, *range(6, 6 + n)] for n in (3, 33, 1, 30)]
    prefixes = [prefix_for_visual(ids[1:], special) for ids in texts]
    with torch.no_grad():
        state, hidden = GenerationState.prefill(model, prefixes)
        told = [model.text_logits(torch.tensor([ids]))[0] for ids in texts]
        torch.testing.assert_close(model.text_head(hidden), torch.stack([t[-1] for t in told]), atol=1e-4, rtol=1e-4)
        fed = torch.tensor([[20, 21, 22], [23, 24, 25], [26, 27, 28], [29, 30, 31]])
        counts = [3, 0, 1, 2]
        state.feed_tokens(fed, counts)
        texts = [ids + row[:count] for ids, row, count in zip(texts, fed.tolist(), counts)]
        state.feed_text([35] * 4, [False] * 4)
        both = state.select([2, 0]).stack(state.select([1, 3]))
        both.put([0], state.select([3]))
        order = [3, 0, 1, 3]
        found = model.text_head(both.feed_text([34] * 4))
        wanted = [model.text_logits(torch.tensor([[*texts[row], 34]]))[0, -1] for row in order]
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_a_picture_leaves_the_state_as_it_was(model) -> None:
    special = model.config.specials
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, [prefix_for_visual([9, 8], special)] * 2)
        state.feed_text([special.boi] * 2)
        before = [layer.held() for layer in state.layers if hasattr(layer, "state")]
        given = torch.stack([torch.from_numpy(values("latent_diffusion", (1, 3, 2), i)) for i in range(2)])
        for keep in (False, True):
            state.feed_visual("latent_diffusion", given, (1, 3, 2), 0.5, keep=keep)
        behind = [layer.held() for layer in state.layers if hasattr(layer, "state")]
        assert len(before) == 3
        for one, other in zip(before, behind):
            torch.testing.assert_close(other, one, atol=0, rtol=0)
            assert one[0].any()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"attention_every": 1}, "attention_every"),
        ({"attention_every": 6}, "attention_every"),
        ({"attention_every": True}, "attention_every"),
        ({"block": "gau"}, "attention_every"),
        ({"rope_scheme": "one_place"}, "attention_every"),
        ({"width": 50, "head_dim": 12}, "width"),
        ({"mup": {"width": 24}}, "mup"),
    ],
)
def test_bad_fields_are_named(fields: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"UnifiedConfig.{wrong}"):
        config_of("recurrent", **fields)


def test_what_a_recurrence_cannot_have_is_refused() -> None:
    config = config_of("recurrent")
    with pytest.raises(FieldError, match=r"AdapterConfig.targets: a model with attention_every"):
        AdapterConfig(rank=2).chosen(config)
    with pytest.raises(ValueError, match="engine.sequence_parallel: expected 1 with model.attention_every"):
        TrainEngineConfig(sequence_parallel=2).check_heads(config)
    TrainEngineConfig(sequence_parallel=1).check_heads(config)
    llama = {
        "architectures": ["LlamaForCausalLM"],
        **{"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4},
        "num_attention_heads": 4,
    }
    with pytest.raises(ValueError, match="attention_every: config.json says None, got 2; leave it out"):
        config_from_llama(llama, "config.json", attention_every=2)
    batch = collate([[drawing("next_code")]], 20, config)
    model, given = build(config), {name: part.values for name, part in batch.parts.items()}
    with pytest.raises(ValueError, match="share: a recurrence goes through whole rows"):
        model(batch, given, dict.fromkeys(given, torch.zeros(1, 1)), {}, share=object())
