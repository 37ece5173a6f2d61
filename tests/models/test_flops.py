"""The closed form of a step's operations against torch's own count, which sees what really runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omniloom.models.unified.adapter import lora
from omniloom.models.unified.adapter.config import AdapterConfig
from omniloom.models.unified.batch import Batch, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import (
    CouplingConfig,
    DensityConfig,
    DiffusionHeadConfig,
    FourierConfig,
    MixtureConfig,
)
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.flops import step_flops
from omniloom.models.unified.layouts import plain_text, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective

SIZES = {
    "latent_diffusion": {"latent_dim": 3},
    "pixel_diffusion": {"pixel_dim": 12, "pixel_bottleneck": 8},
    "next_code": {"codebook_size": 64},
    "masked_code": {"codebook_size": 64},
    "next_latent": {"latent_dim": 3, "density": MixtureConfig(components=5)},
}
HEADS = (
    MixtureConfig(components=5),
    CouplingConfig(layers=3, width=20),
    CouplingConfig(coupling="additive", layers=2, width=20),
    FourierConfig(frequencies=5, width=20),
    DiffusionHeadConfig(layers=2, width=20, times=3),
)
GRID = (1, 4, 6)


def values(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if "code" in name:
        return rng.integers(0, 64, 24)
    return rng.normal(size=(24, 3 if "latent" in name else 12)).astype(np.float32)


def row(config: UnifiedConfig, names: tuple[str, ...]) -> list:
    special = config.specials
    documents = [text_to_visual([9, 8], values(name), GRID, special, objective=name) for name in names]
    documents += [visual_to_text(values(name), GRID, [7], special, name) for name in names]
    return [*documents, plain_text(range(6, 30), special)]


def counted(config: UnifiedConfig, batch: Batch, names: tuple[str, ...]) -> int:
    """By torch, with attention written out: then its two products are counted for all pairs."""
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig(), objectives=names)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(replace(batch, plan=None), 0)[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("latent_diffusion",),
        ("pixel_diffusion",),
        ("next_code",),
        ("next_latent",),
        ("latent_diffusion", "pixel_diffusion", "next_code", "next_latent"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("fields", [{}, {"kv_heads": 2, "head_dim": 20, "hidden": 100, "tied": False}], ids=["", "gqa"])
def test_operations_are_those_that_torch_counts_less_masked_pairs(names: tuple[str, ...], fields: dict) -> None:
    sizes = {key: value for name in names for key, value in SIZES[name].items()}
    config = UnifiedConfig(vocab_size=50, width=32, layers=3, heads=4, time_dim=16, **sizes, **fields)
    documents = row(config, names)
    length = sum(segment.length for document in documents for segment in document)
    batch = collate([documents, documents], length, config)
    assert batch.tokens["padding"] == 0
    pairs = int((batch.end - batch.start).sum())
    hidden = 12 * config.layers * config.heads * config.head_dim * (2 * length**2 - pairs)
    assert step_flops(config, batch) + hidden == counted(config, batch, names)


@pytest.mark.parametrize(
    "fields",
    [
        {"block": "gau"},
        {"block": "gau", "hidden": 48, "long_skips": True},
        {"block": "gau", "gau_length": 9},
        {"step_sizes": True},
        {"long_skips": True, "layers": 4},
        {"latent_patchifier": "bottleneck", "pixel_patchifier": "linear"},
        {"patch_mask_high": 0.5},
        {"latent_patchifier": "unet", "pixel_patchifier": "unet"},
        {"latent_patchifier": "unet", "pixel_patchifier": "unet", "unet_depth": 3},
        {"flow_head_layers": 2, "flow_head_width": 20},
        {"modulation": "adaln_zero"},
        {"modulation": "adaln_zero", "block": "gau"},
        {"modality_experts": "feed_forward"},
        {"modality_experts": "all", "kv_heads": 2},
        {"attention_every": 2, "layers": 5, "kv_heads": 2},
        {"feed_forward": "gelu", "head_bias": True, "norm_kind": "layer"},
        {"feed_forward": "gelu", "parallel": True, "rotary_fraction": 0.8, "joined_frame": True},
        {"block": "gau", "long_skips": True, "latent_patchifier": "unet", "flow_head_layers": 1},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_operations_of_the_options_are_those_that_torch_counts(fields: dict) -> None:
    names = ("latent_diffusion", "pixel_diffusion", "next_code")
    sizes = {key: value for name in names for key, value in SIZES[name].items()}
    config = UnifiedConfig(
        **{"vocab_size": 50, "width": 32, "layers": 3, "heads": 4, "time_dim": 16, "unet_width": 12, **sizes, **fields}
    )
    documents = row(config, names)
    odd = text_to_visual([9], values("latent_diffusion")[:15], (1, 3, 5), config.specials)  # cells that are cut
    documents.append(odd)
    length = sum(segment.length for document in documents for segment in document)
    batch = collate([documents, documents], length, config)
    assert batch.tokens["padding"] == 0
    attended = config.hidden if config.block == "gau" else config.heads * config.head_dim
    hidden = 12 * config.attention_layers * attended * (2 * length**2 - int((batch.end - batch.start).sum()))
    assert step_flops(config, batch) + hidden == counted(config, batch, names)


@pytest.mark.parametrize("density", HEADS, ids=lambda head: head.head)
def test_operations_of_the_density_heads_are_those_that_torch_counts(density: DensityConfig) -> None:
    config = UnifiedConfig(vocab_size=50, width=32, layers=1, heads=4, time_dim=16, latent_dim=3, density=density)
    documents = row(config, ("next_latent",))
    length = sum(segment.length for document in documents for segment in document)
    batch = collate([documents], length, config)
    hidden = 12 * config.heads * config.head_dim * (length**2 - int((batch.end - batch.start).sum()))
    assert step_flops(config, batch) + hidden == counted(config, batch, ("next_latent",))


def test_padding_costs_nothing_and_rows_add_up() -> None:
    config = UnifiedConfig(vocab_size=50, width=32, layers=2, heads=4, **SIZES["next_code"])
    documents = row(config, ("next_code",))
    one, padded = (collate([documents], length, config) for length in (90, 200))
    both = collate([documents, documents], 90, config)
    assert step_flops(config, one) == step_flops(config, padded) == step_flops(config, both) // 2
    assert step_flops(config, collate([[]], 8, config)) == 0


def test_the_head_of_masked_codes_is_counted_in_the_mean() -> None:
    config = UnifiedConfig(vocab_size=50, width=32, layers=1, heads=4, codebook_size=64)
    batch = collate([row(config, ("masked_code",))] * 40, 90, config)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig(), objectives=("masked_code",))
    shown = (objective.show(batch, list(range(i, i + 40)))["masked_code"] for i in range(0, 400, 40))
    asked = np.mean([len(own.places) for own in shown])
    head = 6 * 64 * 32
    causal = collate([row(config, ("next_code",))] * 40, 90, config)
    pairs = int((batch.end - batch.start).sum() - (causal.end - causal.start).sum())
    difference = step_flops(config, causal) - step_flops(config, batch) + 12 * 32 * pairs
    counted = batch.targets["masked_code"] - difference / head
    assert counted <= asked == pytest.approx(counted, rel=0.1)  # a share of 24 codes is rounded up
    assert torch.equal(batch.ids, causal.ids)


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"block": "gau"}, {"modality_experts": "feed_forward"}, {"modality_experts": "all"}),
        *({"feed_forward": "gelu", "modality_experts": "feed_forward"}, {"feed_forward": "gelu", "parallel": True}),
    ],
    ids=str,
)
def test_frozen_matrices_beside_an_adapter_have_no_gradient_to_compute(fields: dict) -> None:
    config = UnifiedConfig(vocab_size=50, width=32, layers=3, heads=4, time_dim=16, latent_dim=3, **fields)
    adapter = AdapterConfig(rank=4, targets=("v_proj", "o_proj"))
    documents = row(config, ("latent_diffusion",))
    length = sum(segment.length for document in documents for segment in document)
    batch = collate([documents, documents], length, config)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig(), objectives=("latent_diffusion",))
    lora.attach(objective.model, adapter)
    trains = lora.trains(adapter, config, replace(config, latent_dim=None))
    for name, parameter in objective.model.named_parameters():
        parameter.requires_grad_(trains(name))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(replace(batch, plan=None), 0)[0].backward()
    pairs, attended = int((batch.end - batch.start).sum()), 64 if config.block == "gau" else 32
    hidden = 12 * config.layers * attended * (2 * length**2 - pairs)
    assert step_flops(config, batch, adapter) + hidden == counter.get_total_flops()
    assert step_flops(config, batch, adapter) < (0.95 if config.has_experts else 0.85) * step_flops(config, batch)
