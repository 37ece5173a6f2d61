"""muP: factors by the published tables, written down again here; branches' factors against a model that multiplies;
activations over widths and depths while Adam trains; and, slow, that the best learning rate stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from omniloom.models.unified.config import MupConfig, UnifiedConfig
from omniloom.models.unified.model import UnifiedModel

VOCABULARY = 64


def text_config(width: int, layers: int = 2, base: dict | None = None, **fields) -> UnifiedConfig:
    fields = {"heads": width // 16, **fields}
    return UnifiedConfig(VOCABULARY, width=width, layers=layers, mup=base and MupConfig(**base), **fields)


HIDDEN = (
    r"qkv|attention\.out|gate_up|down|zvu|unit\.out|skip|time\.mlp\.2|visual_out\.(condition|time|layers|modulation).*"
)
OUTPUTS = "visual_out|code_out|visual_out.out"


def expected(width: float, depth: float, name: str) -> tuple[float, float]:
    """(std, rate) of a parameter, by its name; `width` and `depth` are the model's over the base's."""
    std = rate = 1.0
    if re.fullmatch(rf"({OUTPUTS})\.weight", name):
        std, rate = 1 / width, 1 / width
    elif re.fullmatch(rf"(blocks\.\d\.)?(\w+\.)?({HIDDEN})\.weight", name):
        std, rate = width**-0.5, 1 / width
    if name.startswith("blocks"):
        rate *= depth**-0.5
        if re.search(r"attention\.out|down|unit\.out", name):
            rate *= depth**-0.5
    return std, rate


@pytest.mark.parametrize(
    "fields",
    [
        {"latent_dim": 3, "tied": False, "qkv_bias": True, "out_bias": True},
        {"codebook_size": 11, "kv_heads": 4, "long_skips": True},
        {"latent_dim": 3, "flow_head_layers": 2},
        {"block": "gau", "codebook_size": 11, "out_bias": True},
    ],
)
def test_factors_are_those_of_the_published_tables(fields: dict) -> None:
    config = text_config(96, 6, {"width": 24, "layers": 2}, heads=8, **fields)
    assert config.base == replace(
        config, mup=None, width=24, layers=2, heads=2, kv_heads=config.kv_heads // 4, head_dim=12,
        hidden=config.hidden // 4, flow_head_width=24,
    )  # fmt: skip
    model = UnifiedModel(config)
    found = model.mup_factors()
    for name, _ in model.named_parameters():
        own = found.pop(name, (1.0, 1.0))
        assert own == pytest.approx(expected(4.0, 3.0, name)), name
    assert not found


def test_initial_weights_are_the_standard_ones_times_their_factors() -> None:
    config = text_config(96, 6, {"width": 24, "layers": 2}, codebook_size=11, tied=False)
    torch.manual_seed(0)
    model = UnifiedModel(config)
    torch.manual_seed(0)
    standard = dict(UnifiedModel(replace(config, mup=None)).named_parameters())
    factors = model.mup_factors()
    assert {"blocks.3.mlp.down.weight", "code_out.weight"} <= set(factors)
    for name, parameter in model.named_parameters():
        std = factors[name].std if name in factors else 1.0
        torch.testing.assert_close(parameter, standard[name] * std, rtol=1e-6, atol=0)


def test_the_base_itself_is_the_standard_model() -> None:
    config = text_config(48, 3, {"width": 48, "layers": 3}, latent_dim=3)
    assert not UnifiedModel(config).mup_factors() and config.query_scale == 1.0
    torch.manual_seed(0)
    model, ids = UnifiedModel(config).eval(), torch.arange(20)[None]
    standard = UnifiedModel(replace(config, mup=None)).eval()
    standard.load_state_dict(model.state_dict())
    assert torch.equal(model.text_logits(ids), standard.text_logits(ids))


@pytest.mark.parametrize("block, qk_norm", [("llama", True), ("llama", False), ("gau", True)])
def test_attention_divides_by_the_channels_of_a_head_and_logits_shrink_with_the_width(
    block: str, qk_norm: bool
) -> None:
    """Against attention's weights of a model whose queries the test scales itself."""
    config = text_config(64, 2, {"width": 16, "heads": 2}, heads=2, block=block, qk_norm=qk_norm, axes=2)
    standard = replace(config, mup=None)
    model, other = UnifiedModel(config).eval(), UnifiedModel(standard).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        other.load_state_dict(model.state_dict())
        ids = torch.randint(0, VOCABULARY, (2, 12))
        for module in other.blocks:  # sqrt(8) / 32 in place of 1 / sqrt(32): a factor of 1/2
            part = module.attention if block == "llama" else module.unit
            if qk_norm:
                part.q_norm.weight.mul_(0.5)
            else:
                part.qkv.weight[: 2 * 32].mul_(0.5)
        torch.testing.assert_close(model.text_logits(ids), other.text_logits(ids) / 4, atol=1e-5, rtol=1e-4)


def adam(model: UnifiedModel, lr: float, rate: Callable[[str], float], eps: float = 1e-8) -> torch.optim.Adam:
    return torch.optim.Adam(
        [{"params": [p], "lr": lr * rate(name)} for name, p in model.named_parameters()], betas=(0.9, 0.95), eps=eps
    )


def own_rates(model: UnifiedModel) -> Callable[[str], float]:
    factors = model.mup_factors()
    return lambda name: factors[name].rate if name in factors else 1.0


def texts(seed: int, rows: int = 8, length: int = 33) -> torch.Tensor:
    """Of a Markov chain that has four likely successors of each token, int64 (rows, length)."""
    chain = torch.Generator().manual_seed(0)
    likely = torch.randint(6, VOCABULARY, (VOCABULARY, 4), generator=chain)
    drawn = torch.Generator().manual_seed(seed)
    ids = [torch.randint(6, VOCABULARY, (rows,), generator=drawn)]
    for _ in range(length - 1):
        choice = torch.multinomial(torch.tensor([0.6, 0.2, 0.15, 0.05]), rows, True, generator=drawn)
        ids.append(likely[ids[-1], choice])
    return torch.stack(ids, 1)


def loss_of(model: UnifiedModel, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model.text_logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train(model: UnifiedModel, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, texts(step)).backward()
        optimizer.step()


class Multiplied(torch.nn.Module):
    """A linear whose output is multiplied, as the paper has a branch's."""

    def __init__(self, linear: torch.nn.Linear, factor: float):
        super().__init__()
        self.linear, self.factor = linear, factor
        with torch.no_grad():
            linear.weight /= factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def test_branches_are_those_of_a_model_that_multiplies_them() -> None:
    """The same function after some steps of Adam, whose epsilon is the only thing that would tell them apart."""
    config = text_config(32, 8, {"width": 32, "layers": 2})
    torch.manual_seed(0)
    folded = UnifiedModel(config)
    multiplied = UnifiedModel(replace(config, mup=None))
    multiplied.load_state_dict(folded.state_dict())
    for block in multiplied.blocks:
        block.attention.out = Multiplied(block.attention.out, 4**-0.5)
        block.mlp.down = Multiplied(block.mlp.down, 4**-0.5)
    train(folded, adam(folded, 1e-2, own_rates(folded), eps=1e-20), 4)
    train(multiplied, adam(multiplied, 1e-2, lambda n: 4**-0.5 if n.startswith("blocks") else 1.0, eps=1e-20), 4)
    ids = texts(99)
    torch.testing.assert_close(folded.text_logits(ids), multiplied.text_logits(ids), atol=2e-4, rtol=2e-3)


def sizes_after(config: UnifiedConfig, steps: int = 6) -> tuple[float, float]:
    """How much Adam's first steps change hidden states behind the blocks, and logits: roots of mean squares."""
    torch.manual_seed(0)
    model, ids = UnifiedModel(config), texts(1000)
    seen: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    before = model.text_logits(ids).detach()
    train(model, adam(model, 4e-3, own_rates(model)), steps)
    after = model.text_logits(ids).detach()
    return tuple(float((a - b).square().mean().sqrt()) for a, b in ((seen[-1], seen[0]), (after, before)))


def growth(configs: list[UnifiedConfig]) -> tuple[float, float]:
    """Of the last over the first."""
    first, last = sizes_after(configs[0]), sizes_after(configs[-1])
    return last[0] / first[0], last[1] / first[1]


@pytest.mark.parametrize("fields", [{}, {"tied": False, "qk_norm": False}, {"block": "gau"}])
def test_activations_move_alike_at_every_width(fields: dict) -> None:
    """The coordinate check of 2203.03466, appendix D.1. At eight times the width."""
    base = {"width": 32}
    hidden, logits = growth([text_config(w, base=base, **fields) for w in (32, 256)])
    assert 0.6 < hidden < 1.6 and 0.5 < logits < 1.6
    hidden, logits = growth([text_config(w, **fields) for w in (32, 256)])
    assert hidden > 2 and logits > 2.5


def test_activations_move_alike_at_every_depth() -> None:
    hidden, logits = growth([text_config(48, n, {"width": 48, "layers": 2}, heads=3) for n in (2, 32)])
    assert 0.6 < hidden < 1.7 and 0.5 < logits < 1.7
    hidden, _ = growth([text_config(48, n, heads=3) for n in (2, 32)])
    assert hidden > 2


def test_what_is_no_base_is_told() -> None:
    for base, told in (
        ({"width": 0}, "width: expected a positive"),
        ({"width": 30, "heads": 4}, "multiple of heads=4"),
    ):
        with pytest.raises(ValueError, match=told):
            text_config(64, base=base)
    with pytest.raises(ValueError, match=r"UnifiedConfig\.mup\.wide: unknown"):
        UnifiedConfig(VOCABULARY, mup={"wide": 3})


def test_norms_behind_the_branches_are_refused() -> None:
    with pytest.raises(ValueError, match="mup: expected null, as norms behind"):
        text_config(64, base={"width": 32}, norm_after=True)


def test_pictures_own_parts_begin_and_learn_as_those_of_text() -> None:
    fields = {"codebook_size": 11, "modality_experts": "all"}
    torch.manual_seed(0)
    model = UnifiedModel(text_config(96, 8, {"width": 24, "layers": 2}, heads=8, **fields))
    factors, weights = model.mup_factors(), dict(model.named_parameters())
    for name in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"):
        text, visual = f"blocks.3.{name}.weight", f"blocks.3.visual.{name}.weight"
        assert factors[visual] == factors[text]
        assert weights[visual].std().item() == pytest.approx(weights[text].std().item(), rel=0.05)


def best_rate(config: UnifiedConfig, rates: list[float], steps: int) -> float:
    """The learning rate after whose training the loss on new texts is least."""
    found = {}
    for lr in rates:
        torch.manual_seed(0)
        model = UnifiedModel(config)
        train(model, adam(model, lr, own_rates(model)), steps)
        with torch.no_grad():
            found[lr] = sum(float(loss_of(model, texts(10_000 + i, 32))) for i in range(4))
    return min(found, key=found.__getitem__)


@pytest.mark.slow
def test_the_best_learning_rate_stays_where_it_is() -> None:
    rates = [2.0**-n for n in range(11, 3, -1)]
    own = [best_rate(text_config(w, 2, {"width": 32}), rates, 60) for w in (32, 64, 128, 256)]
    assert max(own) <= 2 * min(own), own  # at most a place of the grid
    standard = [best_rate(text_config(w, 2), rates, 60) for w in (32, 256)]
    assert standard[0] >= 4 * standard[1], standard
