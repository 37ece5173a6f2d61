"""What tests of the backbone's options share: each option as a config, models whose outputs depend on all that they
see, and documents of every objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from omniloom.models.unified.batch import Segment
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import plain_text, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES

CODES = 11
ALL = tuple(name for name, row in OBJECTIVES.items() if not row.by_density)  # those go with no unet of latents
OPTIONS: dict[str, dict] = {
    "none": {},
    "gau": {"block": "gau"},
    "gau_plain": {"block": "gau", "qk_norm": False, "qkv_bias": True, "out_bias": True, "hidden": 72},
    "gau_squared": {"block": "gau", "gau_length": 6, "layers": 2},
    "skips": {"long_skips": True},
    "skips_gau": {"long_skips": True, "block": "gau", "layers": 2},
    "swapped": {"latent_patchifier": "bottleneck", "pixel_patchifier": "linear"},
    "unet": {"latent_patchifier": "unet", "pixel_patchifier": "unet"},
    "unet_deep": {"latent_patchifier": "unet", "pixel_patchifier": "unet", "unet_depth": 3, "layers": 2},
    "flow": {"flow_head_layers": 2, "flow_head_width": 20},
    "mask": {"patch_mask_low": 0.3, "patch_mask_high": 0.6},
    "modulated": {"modulation": "adaln_zero"},
    "modulated_gau": {"modulation": "adaln_zero", "block": "gau", "layers": 2},
    "experts": {"modality_experts": "feed_forward"},
    "experts_all": {"modality_experts": "all", "qkv_bias": True, "out_bias": True, "kv_heads": 2},
    "experts_plain": {"modality_experts": "all", "qk_norm": False, "modulation": "adaln_zero", "long_skips": True},
    "one_place": {"rope_scheme": "one_place", "time_scale": 1.0, "modality_experts": "all", "qkv_bias": True},
    "recurrent": {"attention_every": 2, "layers": 5},
    "recurrent_experts": {"attention_every": 2, "modality_experts": "all", "modulation": "adaln_zero", "kv_heads": 2},
    "layer_norms": {"norm_kind": "layer", "qk_norm_kind": "shared_layer", "modality_experts": "all", "head_bias": True},
    "gelu": {"feed_forward": "gelu", "modality_experts": "feed_forward", "modulation": "adaln_zero"},
    "half_turned": {"rotary_fraction": 0.5, "qk_norm": False, "joined_frame": True},
    "phi": {
        **{"norm_kind": "layer", "parallel": True, "feed_forward": "gelu", "rotary_fraction": 0.5, "head_bias": True},
        **{"qk_norm_kind": "shared_layer", "joined_frame": True, "qkv_bias": True, "out_bias": True, "tied": False},
    },
    "phi_skips": {
        **{"norm_kind": "layer", "parallel": True, "feed_forward": "gelu", "rotary_fraction": 0.5, "head_bias": True},
        **{"qk_norm": False, "long_skips": True, "kv_heads": 2, "layers": 2},
    },
    "mup": {"mup": {"width": 24, "layers": 1, "heads": 4}},
    "mup_experts": {
        "mup": {"width": 24, "layers": 1, "heads": 4},
        "modality_experts": "all",
        "modulation": "adaln_zero",
    },
    "mup_gau": {"mup": {"width": 24, "heads": 4}, "block": "gau", "qk_norm": False, "flow_head_layers": 1},
    "all": {
        "block": "gau",
        "long_skips": True,
        "latent_patchifier": "unet",
        "pixel_patchifier": "unet",
        "flow_head_layers": 1,
        "patch_mask_high": 0.5,
        "modulation": "adaln_zero",
    },
}


def config_of(option: str, **fields: Any) -> UnifiedConfig:
    return UnifiedConfig(
        **{
            "vocab_size": 40,
            "latent_dim": 3,
            "pixel_dim": 12,
            "pixel_bottleneck": 8,
            "unet_width": 8,
            "codebook_size": CODES,
            "width": 48,
            "layers": 3,
            "heads": 4,
            "time_dim": 32,
            **OPTIONS[option],
            **fields,
        }
    )


def build(config: UnifiedConfig, seed: int = 0) -> UnifiedModel:
    """Nothing is left at 0, where it would hide what else is computed."""
    torch.manual_seed(seed)
    model = UnifiedModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.15 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape) * spread)
    return model


def objective_of(config: UnifiedConfig, seed: int = 0) -> UnifiedObjective:
    return UnifiedObjective(build(config, seed), DiffusionConfig(), objectives=ALL)


def values(objective: str, grid: tuple[int, int, int], seed: int) -> np.ndarray:
    rng, count = np.random.default_rng(seed), int(np.prod(grid))
    if OBJECTIVES[objective].representation.discrete:
        return rng.integers(0, CODES, count)
    return rng.normal(size=(count, 3 if "latent" in objective else 12)).astype(np.float32)


def drawing(objective: str, grid: tuple[int, int, int] = (1, 3, 2), seed: int = 0) -> list[Segment]:
    special = config_of("none").specials
    return text_to_visual([9, 8, 7], values(objective, grid, seed), grid, special, objective=objective)


def documents() -> list[list[Segment]]:
    """Targets and contexts of each objective, on grids of several sizes, and a text; 105 places."""
    special = config_of("none").specials
    found = [plain_text([11, 12, 13], special)]
    for i, name in enumerate(ALL):
        found.append(drawing(name, (1, 3, 2), i))
        found.append(visual_to_text(values(name, (2, 1, 3), 9 + i), (2, 1, 3), [20, 21], special, name))
    return found
