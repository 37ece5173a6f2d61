"""Precision: what the products inside DeepSpeed's forward are computed in, on a GPU as on a CPU.

DeepSpeed asks `torch.is_autocast_enabled()`, which means CUDA's, and switches an autocast around its engine off where
that is on: on CPUs the question is answered with no. The tests set CUDA's flag, which gives the answer of a GPU. What
CUDA's autocast does to norms (float32 in and out) is done by `CudaNorms`.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine
from omniloom.models.norms import GroupNorm, LayerNorm, RMSNorm, rms_norm
from omniloom.models.tokenizer.adversarial import DiscriminatorObjective
from omniloom.models.tokenizer.build import config_from_dict
from omniloom.models.tokenizer.losses import TokenizerObjective
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.unified.batch import collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import text_to_visual
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective

BF16 = EngineConfig(precision="bf16", ema_decay=0.9)
TOKENIZER = config_from_dict(
    {
        "patch_size": 8,
        "temporal_patch": 4,
        "width": 16,
        "heads": 2,
        "head_dim": 8,
        "spatial_layers": "tw",
        "temporal_layers": 1,
        "decoder_spatial_layers": "t",
        "patch_norm": True,
        "quantizer": {"codebook_size": 32, "latent_dim": 4},
    }
)
PRODUCTS, NORMS = (nn.Linear, nn.Conv2d), (nn.LayerNorm, nn.GroupNorm, RMSNorm)


@pytest.fixture(autouse=True)
def as_on_a_gpu(process_group):
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


class CudaNorms(TorchFunctionMode):
    """Norms under autocast as CUDA's does them: every argument in float32, and so the result."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in (
            F.layer_norm,
            F.group_norm,
            F.rms_norm,
            torch.rms_norm,
            torch.layer_norm,
            torch.group_norm,
        ) and torch.is_autocast_enabled("cpu"):
            arguments = [a.float() if isinstance(a, torch.Tensor) else a for a in arguments]
            keywords = {k: a.float() if isinstance(a, torch.Tensor) else a for k, a in (keywords or {}).items()}
        return function(*arguments, **(keywords or {}))


def recorded(module: nn.Module, kinds: tuple[type, ...]) -> list[tuple[torch.dtype, torch.dtype]]:
    """(in, out) of each call of a submodule of these kinds, from now on."""
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for part in module.modules():
        if isinstance(part, kinds):
            part.register_forward_hook(lambda _, given, out: seen.append((given[0].dtype, out.dtype)))
    return seen


def unified(zero_stage: int) -> tuple[Engine, tuple]:
    config = UnifiedConfig(vocab_size=7000, latent_dim=3, width=16, layers=2, heads=2, time_dim=8, qk_norm=True)
    torch.manual_seed(0)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig(), objectives=("latent_diffusion",))
    document = text_to_visual(
        torch.arange(6, 12).numpy(), torch.randn(4, 3).numpy(), (1, 2, 2), config.specials, objective="latent_diffusion"
    )
    arguments = (collate([[document]], 32, config), [1])
    return Engine(objective, OptimizerConfig(), BF16.model_copy(update={"zero_stage": zero_stage}), 10, 1), arguments


def generator(zero_stage: int) -> tuple[Engine, tuple]:
    torch.manual_seed(0)
    objective = TokenizerObjective(TOKENIZER, TokenizerLossConfig(), None)
    settings = BF16.model_copy(update={"zero_stage": zero_stage})
    return Engine(objective, OptimizerConfig(), settings, 10, 2), (torch.rand(2, 3, 5, 16, 16) - 0.5,)


def discriminator(zero_stage: int) -> tuple[Engine, tuple]:
    torch.manual_seed(0)
    settings = BF16.model_copy(update={"zero_stage": min(1, zero_stage)})  # as stages.train_tokenizer makes it
    pixels = torch.rand(2, 2, 3, 16, 16) - 0.5
    return Engine(
        DiscriminatorObjective(DiscriminatorConfig(channels=4, layers=2)), OptimizerConfig(), settings, 10, 2
    ), (pixels[0], pixels[1], 0)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("build", [unified, generator, discriminator])
def test_products_inside_the_engine_are_bf16(build, zero_stage):
    engine, arguments = build(zero_stage)
    # A quantizer's projections are outside on purpose: codes are chosen in float32.
    seen = recorded(engine.module, PRODUCTS)
    loss = engine(*arguments)[0]
    assert loss.dtype == torch.float32
    engine.backward(loss)
    engine.step(0)
    assert not torch.is_autocast_enabled("cpu")  # nothing of it is left outside
    kinds = [out for _, out in seen]
    assert kinds.count(torch.bfloat16) > 0.8 * len(kinds) > 3, kinds
    assert all(p.dtype == torch.float32 for p in engine.state_dict().values() if p.is_floating_point())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_validation_computes_as_training_does(zero_stage):
    engine, arguments = unified(zero_stage)
    trained, (batch, seeds) = recorded(engine.module, PRODUCTS + NORMS), arguments
    training = float(engine(batch, seeds)[0].detach())
    seen, expected = list(trained), None
    with engine.evaluated() as module, torch.no_grad():
        trained.clear()
        again = trained if module is engine.module else recorded(module, PRODUCTS + NORMS)
        expected = float(module(batch, seeds)[0])
        assert again == seen
        with engine.autocast():  # as stages use parts of a module
            assert float(module(batch, seeds)[0]) == expected
    assert expected == pytest.approx(training, rel=1e-6)


def test_fp32_stays_fp32():
    torch.manual_seed(0)
    objective = TokenizerObjective(TOKENIZER, TokenizerLossConfig(), None)
    engine = Engine(objective, OptimizerConfig(), EngineConfig(), 10, 2)
    seen = recorded(engine.module, PRODUCTS)
    engine(torch.rand(2, 3, 16, 16) - 0.5)
    assert {out for _, out in seen} == {torch.float32}


@pytest.mark.parametrize("build", [unified, generator, discriminator])
def test_norms_give_back_what_came_in_whatever_autocast_lists(build):
    """So a GPU carries what a CPU does: the same types at every product and norm, and the same loss."""
    engine, arguments = build(1)
    seen = recorded(engine.module, NORMS + PRODUCTS)
    state, random = copy.deepcopy(engine.module.state_dict()), torch.get_rng_state()
    plain = float(engine(*arguments)[0].detach())
    as_on_cpu = list(seen)
    engine.module.load_state_dict(state)
    seen.clear()
    torch.set_rng_state(random)
    with CudaNorms():
        listed = float(engine(*arguments)[0].detach())
    assert seen == as_on_cpu and any(kind == torch.bfloat16 for kind, _ in seen)
    assert listed == pytest.approx(plain, rel=2e-2)


def test_norms_are_those_of_float32_rounded_once():
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(64, 32)).bfloat16()
    wide, layer, group, rms = x.float(), LayerNorm(32), GroupNorm(4, 32), RMSNorm(32, 1e-6)
    for norm in (layer, group, rms):
        nn.init.normal_(norm.weight)
    expected = {
        layer: F.layer_norm(wide, (32,), layer.weight, layer.bias),
        group: F.group_norm(wide, 4, group.weight, group.bias),
        rms: wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * rms.weight,
    }
    for norm, value in expected.items():
        found = norm(x)
        assert found.dtype == torch.bfloat16
        # A last bit of bf16 is 2^-8: a half of it for the one rounding, and nearly nothing for float32's.
        torch.testing.assert_close(found.float(), value, rtol=2**-8, atol=1e-3)
    assert rms_norm(x.double(), None, 1e-6).dtype == torch.float64
    torch.testing.assert_close(rms(wide), expected[rms], rtol=1e-6, atol=1e-6)
