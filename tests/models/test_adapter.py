"""Adapters in the model against a second implementation: forward, gradients, merging; where they may stand; what is
trained beside them; dropout by the rows' seeds; how many numbers there are."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.checks import FieldError
from omniloom.models.unified.adapter import lora
from omniloom.models.unified.adapter.config import AdapterConfig, targets_of, trained_parameters
from omniloom.models.unified.adapter.dropout import Dropout, dropouts, seed_dropout
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.model import UnifiedModel

SHAPE = {"vocab_size": 40, "width": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 40, "layers": 3}
LLAMA = UnifiedConfig(**SHAPE, latent_dim=3)
GAU = UnifiedConfig(**{**SHAPE, "kv_heads": 4}, latent_dim=3, block="gau")
CONFIGS = {
    "llama": LLAMA,
    "biases and an untied head": replace(LLAMA, qkv_bias=True, out_bias=True, tied=False),
    "gau": GAU,
    "phi": replace(
        LLAMA,
        **{"norm_kind": "layer", "parallel": True, "feed_forward": "gelu", "rotary_fraction": 0.75, "head_bias": True},
        **{"qk_norm_kind": "shared_layer", "qkv_bias": True, "out_bias": True, "tied": False},
    ),
}
TARGETS = {"all": None, "some rows of a matrix": ("v_proj", "up_proj"), "one": ("o_proj",)}
IDS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))
NEW = (3, 38, 39)


def adapter(**fields) -> AdapterConfig:
    return AdapterConfig(**{"rank": 3, "alpha": 6.0, **fields})


def random_adapters(model: UnifiedModel, seed: int = 5, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name or name.endswith(".new_rows"):
                parameter.normal_(std=std, generator=generator)


def adapted(config: UnifiedConfig, options: AdapterConfig, new: tuple[int, ...] = NEW) -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(config)
    if options.targets and (unknown := set(options.targets) - set(targets_of(config))):
        options = replace(options, targets=tuple({*options.targets} - unknown))
    lora.attach(model, options, new)
    return model


def second(model: UnifiedModel, scale: float, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a plain model, its matrices written out from the `factors` by the layout of the blocks alone."""
    torch.manual_seed(0)
    plain = UnifiedModel(model.config).double()
    c = model.config
    rows = {"q_proj": (0, 32), "k_proj": (32, 48), "v_proj": (48, 64), "gate_proj": (0, 40), "up_proj": (40, 80)}
    if c.block == "gau":
        rows = {"z_proj": (0, 8), "v_proj": (8, 48), "u_proj": (48, 88)}
    dense = {name: value.detach().clone() for name, value in plain.state_dict().items()}
    for name in {key.rpartition(".")[0] for key in factors if ".adapters." in key}:
        matrix, _, target = name.partition(".adapters.")
        low, high = rows.get(target, (0, len(dense[f"{matrix}.weight"])))
        delta = torch.zeros_like(dense[f"{matrix}.weight"])
        delta[low:high] = scale * factors[f"{name}.B"] @ factors[f"{name}.A"]
        dense[f"{matrix}.weight"] = dense[f"{matrix}.weight"] + delta
    for key in ("embed", "head"):
        if (held := factors.get(f"{key}.new_rows")) is None and c.tied:
            held = factors.get("embed.new_rows")
        if held is not None:
            grown = torch.zeros_like(dense[f"{key}.weight"])
            grown[list(NEW)] = held
            dense[f"{key}.weight"] = dense[f"{key}.weight"] + grown
    return dense


def of_adapters(model: UnifiedModel) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if ".adapters." in n or n.endswith(".new_rows")}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("shape", CONFIGS)
def test_outputs_and_gradients_are_those_of_the_written_out_matrices(shape, targets):
    options = adapter(targets=TARGETS[targets], rank_stabilized=targets == "one")
    model = adapted(CONFIGS[shape], options).double()
    random_adapters(model)
    scale = 6 / math.sqrt(3) if targets == "one" else 2.0
    factors = {name: p.detach().clone().requires_grad_() for name, p in of_adapters(model).items()}
    dense = second(model, scale, factors)
    plain = UnifiedModel(model.config).double()
    logits = model.text_logits(IDS)
    wanted = _text_logits(plain, dense)
    assert torch.allclose(logits, wanted, atol=1e-12)
    weights = torch.randn(logits.shape, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    (wanted * weights).sum().backward()
    for name, parameter in of_adapters(model).items():
        assert factors[name].grad.abs().max() > 1e-4, name
        assert torch.allclose(parameter.grad, factors[name].grad, atol=1e-11), name


def _text_logits(plain: UnifiedModel, dense: dict[str, Tensor]) -> Tensor:
    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = plain

        def forward(self, ids):
            return self.model.text_logits(ids)

    return torch.func.functional_call(Text(), {f"model.{n}": v for n, v in dense.items()}, (IDS,), tie_weights=False)


@pytest.mark.parametrize("shape", CONFIGS)
def test_a_merged_model_computes_the_same(shape):
    model = adapted(CONFIGS[shape], adapter())
    random_adapters(model, std=0.05)
    plain = UnifiedModel(model.config)
    plain.load_state_dict(merged(model))
    with torch.no_grad():
        assert (model.text_logits(IDS) - plain.text_logits(IDS)).abs().max() < 1e-6


def merged(model: UnifiedModel) -> dict[str, Tensor]:
    state, added = model.state_dict(), lora.additions(model)
    plain = [name for name in state if ".adapters." not in name and not name.endswith(".new_rows")]
    tensors = ((name, state[name]) for name in lora.wanted(plain, added))
    return {name: value for name, value in lora.merged(tensors, added)}


@pytest.mark.parametrize("shape", CONFIGS)
def test_before_the_first_step_it_is_the_start_to_the_last_bit(shape):
    torch.manual_seed(0)
    plain = UnifiedModel(CONFIGS[shape])
    with torch.no_grad():
        before = plain.text_logits(IDS)
        assert torch.equal(adapted(CONFIGS[shape], adapter()).text_logits(IDS), before)
    assert {name: value.tolist() for name, value in merged(adapted(CONFIGS[shape], adapter())).items()} == {
        name: value.tolist() for name, value in plain.state_dict().items()
    }


def test_the_first_factor_is_drawn_as_in_peft_and_the_second_is_zero():
    model = adapted(replace(LLAMA, width=64, hidden=96), adapter(rank=16))
    factors = of_adapters(model)
    A = factors["blocks.0.mlp.gate_up.adapters.gate_proj.A"].detach()
    assert A.shape == (16, 64) and A.abs().max() <= 1 / 8 < 1.02 * A.abs().max()
    assert A.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert all((value == 0).all() for name, value in factors.items() if not name.endswith(".A"))
    assert len({float(value.sum()) for name, value in factors.items() if name.endswith(".A")}) == 3 * 7


def test_the_state_has_the_names_that_it_had():
    names = set(UnifiedModel(LLAMA).state_dict())
    model = adapted(LLAMA, adapter())
    assert names == {n for n in model.state_dict() if ".adapters." not in n and not n.endswith(".new_rows")}
    assert model.head.weight is model.embed.weight and model.head.new_rows is model.embed.new_rows


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"rank": 0}, "rank", "a positive integer"),
        ({"rank": 25}, "rank", "expected at most 16, as k_proj is 16 x 24, got 25"),
        ({"rank": 25, "targets": ("o_proj",)}, "rank", "expected at most 24, as o_proj is 24 x 32, got 25"),
        ({"alpha": 0}, "alpha", "a positive number"),
        ({"dropout": 1.0}, "dropout", "below 1"),
        ({"targets": ()}, "targets", "or null for all"),
        ({"targets": ("q_proj", "v_porj")}, "targets", "unknown matrix 'v_porj'; did you mean 'v_proj'"),
        ({"targets": ("attention",)}, "targets", "expected some of q_proj, k_proj"),
        ({"targets": ("z_proj",)}, "targets", "unknown matrix 'z_proj'"),
        ({"trained_whole": ("head",)}, "trained_whole", "some of vocabulary, norms, visual"),
    ],
)
def test_what_does_not_fit_is_named(fields, field, message):
    with pytest.raises(FieldError) as caught:
        adapter(**fields).chosen(LLAMA)
    assert caught.value.field == field and message in caught.value.reason


STARTS = {
    "a language model": replace(LLAMA, latent_dim=None, vocab_size=37),
    "the same": LLAMA,
    "codes": replace(LLAMA, latent_dim=None, codebook_size=8),
}


@pytest.mark.parametrize("whole", [(), ("vocabulary",), ("norms",), ("visual",), ("vocabulary", "norms", "visual")])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        replace(LLAMA, tied=False, pixel_dim=12, codebook_size=8),
        replace(LLAMA, long_skips=True, qk_norm=False),
        GAU,
        replace(CONFIGS["phi"], vocab_size=43),
    ],
    ids=["latents", "three", "skips", "gau", "phi"],
)
def test_what_is_trained_is_counted(config, start, whole):
    known = STARTS[start]
    kinds = ("norm_kind", "parallel", "feed_forward", "rotary_fraction", "head_bias", "qk_norm_kind")
    same = ("block", "kv_heads", "tied", "qk_norm", "qkv_bias", "out_bias", *kinds)
    known = replace(known, **{n: getattr(config, n) for n in same})
    options = adapter(trained_whole=whole)
    model = adapted(config, options, tuple(range(known.vocab_size, config.vocab_size)))
    trains = lora.trains(options, config, known)
    own = {name for name, _ in UnifiedModel(config).named_parameters()}
    sizes = {name: p.numel() for name, p in model.named_parameters() if trains(name)}
    added = sum(size for name, size in sizes.items() if name not in own)
    assert trained_parameters(options, config, known) == (added, sum(sizes.values()) - added)
    fresh = {n for n in own if n.startswith(("pixel_", "code_", "visual_", "time.")) or ".skip." in n}
    if start == "a language model":
        assert fresh <= set(sizes)
    assert ("blocks.0.mlp.down.weight" in own) == (config.block == "llama")
    assert not any(
        name.startswith("blocks.") and name in own and "norm" not in name and ".skip." not in name for name in sizes
    )
    assert ("norm.weight" in sizes) == ("norms" in whole) and ("embed.weight" in sizes) == ("vocabulary" in whole)


def test_an_adapter_of_llama_3_8b_has_as_many_numbers_as_pefts():
    """PEFT counts 41,943,040 at rank 16 on all of its linear layers."""
    shape = {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "hidden": 14336, "qk_norm": False, "tied": False}
    llama = UnifiedConfig(vocab_size=128256, **shape)
    assert trained_parameters(AdapterConfig(rank=16), llama, llama) == (41_943_040, 0)


def dropped(seeds: list[int], number: int = 0, share: float = 0.25) -> Tensor:
    layer = Dropout(share, number)
    seed_dropout([layer], seeds)
    return layer(torch.ones(len(seeds), 50, 40))


def test_what_is_dropped_of_a_row_follows_from_its_seed_alone():
    both = dropped([7, 11])
    assert torch.equal(both[1:], dropped([11])) and torch.equal(both, dropped([7, 11]))
    assert torch.equal(both[:1], dropped([7, 5, 3])[:1])
    assert both.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    for other in (dropped([8, 12]), dropped([7, 11], number=1)):
        agree = ((other == 0) == (both == 0)).float().mean()
        assert agree == pytest.approx(0.25**2 + 0.75**2, abs=0.03)
    assert (both == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert (dropped([2**63 + 5, -1], share=0.9) == 0).float().mean() == pytest.approx(0.9, abs=0.02)


def test_ranks_that_share_rows_out_drop_what_one_rank_drops():
    layer, rows = Dropout(0.25, 3), torch.ones(2, 50, 40)
    seed_dropout([layer], [7, 11])
    whole = layer(rows)
    for first, count in ((0, 17), (17, 17), (34, 17)):  # the last of 3 ranks has one place of padding
        seed_dropout([layer], [7, 11], first, 50)
        part = layer(torch.ones(2, count, 40))
        assert torch.equal(part[:, : 50 - first], whole[:, first : first + count])
    assert not part[:, 16:].any()


def test_dropout_is_of_training_and_of_what_the_adapter_sees_alone():
    model = adapted(LLAMA, adapter(dropout=0.5))
    assert sorted(layer.number for layer in dropouts(model)) == list(range(3 * 4))
    with torch.no_grad():
        with pytest.raises(ValueError, match="expected 2 seeds, one a row"):
            model.text_logits(IDS)
        seed_dropout(dropouts(model), [1, 2])
        torch.manual_seed(0)
        assert torch.equal(model.text_logits(IDS), UnifiedModel(LLAMA).text_logits(IDS))
        random_adapters(model)
        first = model.text_logits(IDS)
        assert torch.equal(first, model.text_logits(IDS))
        assert not torch.allclose(first, model.eval().text_logits(IDS), atol=1e-3)
    block = copy.deepcopy(model.blocks[0].attention.out).train()
    seed_dropout([block.dropout], [1, 2])
    x = torch.randn(2, 5, 32)
    kept = Dropout(0.5, block.dropout.number)
    seed_dropout([kept], [1, 2])
    own = block.adapters["o_proj"]
    assert torch.allclose(block(x), F.linear(x, block.weight) + 2.0 * kept(x) @ own.A.T @ own.B.T, atol=1e-6)


def test_new_rows_are_added_to_the_rows_of_their_tokens_alone():
    model = adapted(replace(LLAMA, tied=False), adapter(), NEW)
    with torch.no_grad():
        model.embed.new_rows.copy_(torch.arange(3.0)[:, None] + 1)
        grown = model.embed(torch.arange(40)) - F.embedding(torch.arange(40), model.embed.weight)
    assert {row: round(float(value)) for row, value in enumerate(grown.mean(-1)) if value.abs() > 0.5} == {
        3: 1,
        38: 2,
        39: 3,
    }
    assert adapted(LLAMA, adapter(trained_whole=("vocabulary",))).embed.__class__ is torch.nn.Embedding


def test_blocks_with_adapters_compile():
    model = adapted(LLAMA, adapter(dropout=0.2))
    random_adapters(model, std=0.05)
    seed_dropout(dropouts(model), [1, 2])
    model.text_logits(IDS).sum().backward()
    expected = {name: p.grad.clone() for name, p in of_adapters(model).items()}
    model.zero_grad()
    model.compile_blocks(backend="eager", fullgraph=True)
    model.text_logits(IDS).sum().backward()
    for name, p in of_adapters(model).items():
        assert torch.allclose(p.grad, expected[name], atol=1e-5 * float(p.grad.abs().max())), name


def test_what_a_parallel_block_takes_twice_is_kept_once():
    """Into attention and into feed-forward goes the same: where one of them is adapted, it is kept."""
    phi = CONFIGS["phi"]
    assert adapter(targets=("fc1",)).kept(phi) == (3, 0, 32 + 40)  # frozen alone see o_proj's and fc2's inputs
    assert adapter(targets=("o_proj",)).kept(phi) == (3, 0, 24 + 40)
    assert adapter(targets=("o_proj",)).kept(replace(phi, parallel=None)) == (3, 0, 24 + 24 + 40)
