"""What the training of a scorer takes by its formulas: parameters and operations against torch's own count of a real
one, memory against what torch gave out."""

from __future__ import annotations

import allocated
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.memory import passing_memory, state_memory
from omniloom.models.features.clip_config import ClipConfig, TowerConfig
from omniloom.models.features.dual import of_config
from omniloom.models.scorer.config import ScorerConfig
from omniloom.models.scorer.objective import ScorerObjective
from omniloom.models.scorer.sizes import num_parameters, pair_flops, pass_memory, step_seconds

SMALL = ScorerConfig(image_size=32, patch_size=8, width=64, heads=4, layers=2, text_layers=1, length=24, dim=32)
CASES = {
    "small": SMALL.clip(300, 299),
    "long texts": ScorerConfig(image_size=16, width=48, layers=1, text_layers=3, length=60).clip(500, 499),
    "quick_gelu": ClipConfig(
        TowerConfig(64, 2, 2, 160, "quick_gelu", 1e-5), 32, 4, 48, TowerConfig(32, 2, 2, 96, "quick_gelu", 1e-5), 99, 12
    ),
    "siglip": ClipConfig(
        *(TowerConfig(64, 2, 2, 160, "gelu_pytorch_tanh", 1e-6), 32, 4, 64),
        *(TowerConfig(64, 2, 2, 96, "gelu_pytorch_tanh", 1e-6), 99, 12, None, "siglip", 1),
    ),
}
PAIRS = 24


def given(clip: ClipConfig) -> tuple[torch.Tensor, list[list[int]]]:
    pixels = torch.randn(PAIRS, 3, clip.image_size, clip.image_size)
    return pixels, torch.randint(clip.vocab_size, (PAIRS, clip.length)).tolist()


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_of_the_module(case, loss):
    objective = ScorerObjective(of_config(CASES[case]), loss)
    assert num_parameters(CASES[case], loss) == sum(p.numel() for p in objective.parameters())


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case):
    """But for the cosines between pairs, three products of (pairs, pairs, dim)."""
    clip = CASES[case]
    objective, batch = ScorerObjective(of_config(clip), "clip"), given(clip)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        objective(*batch)[0].backward()
    cosines = 3 * 2 * PAIRS**2 * clip.dim
    assert counted.get_total_flops() - cosines == PAIRS * pair_flops(clip)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_memory_is_within_a_tenth_of_what_was_allocated(case, precision, process_group):
    clip, settings = CASES[case], EngineConfig(zero_stage=1, precision=precision)

    def steps():
        engine = Engine(ScorerObjective(of_config(clip), "clip"), OptimizerConfig(), settings, 100, PAIRS)
        batch = given(clip)

        def run(step: int) -> None:
            engine.backward(engine(*batch)[0])
            engine.step(step)

        return run

    taken = allocated.measured_steps(steps)
    parameters = num_parameters(clip, "clip")
    kept = pass_memory(clip, PAIRS, PAIRS, precision == "bf16", "clip")
    passing = passing_memory(parameters, settings, 1, 1, kept["activations"] + kept["casts"], kept["logits"])
    told = sum(state_memory(parameters, settings, 1).values()) + sum(passing.values())
    assert told == pytest.approx(taken.peak, rel=0.1)


def test_seconds_grow_with_what_there_is_to_do():
    """A larger batch by nearly as much; two more blocks by what two blocks take."""
    clip = CASES["small"]
    once, twice = (step_seconds(clip, n * 512, "clip") for n in (1, 2))
    assert 1.5 * once < twice < 2 * once
    blocks = [step_seconds(ScorerConfig(width=64, layers=n).clip(300, 299), 64, "clip") for n in (1, 2, 3)]
    assert blocks[2] - blocks[1] == pytest.approx(blocks[1] - blocks[0])
