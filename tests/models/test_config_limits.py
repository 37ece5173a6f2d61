"""Configs at their limits: the last value that is taken and the first that is not, and what a field is where nothing is
said of it, which a stored config relies on."""

from __future__ import annotations

import dataclasses
import math

import pytest

from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, TokenizerConfig
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    LFQConfig,
    VQConfig,
    VQGradientConfig,
)
from omniloom.models.tokenizer.vit_config import ViTConfig
from omniloom.models.unified.config import RopeScaling, SpecialIds, UnifiedConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling

# (taken, refused): a count, one that may be nothing, a number above 0, one that may be 0
ONE, NOUGHT, ABOVE, WEIGHT = (1, 0), (0, -1), (1e-9, 0.0), (0.0, -1e-9)
BASE = {
    RAEConfig: {"encoder": "folder"},
    UnifiedConfig: {"vocab_size": 40},
}
LIMITS = {
    TokenizerConfig: {
        "patch_size": ONE,
        "temporal_patch": ONE,
        "width": ONE,
        "heads": ONE,
        "window": ONE,
        "head_dim": (4, 2),
        "mlp_width": NOUGHT,
        "temporal_layers": NOUGHT,
        "temporal_window": NOUGHT,
        "spatial_layers": ("w", ""),
        "decoder_spatial_layers": ("t", "a"),
        "compat": ("official", "published"),
        "positions": ("rope", "rel"),
        "rel_bias": ("sdpa", "einsum"),
        "causal_attention": (True, False),
        "causal_peg": (True, False),
        "architecture": ("omni", "rae"),
    },
    TiTokConfig: {
        "num_latents": ONE,
        "width": ONE,
        "heads": ONE,
        "encoder_layers": ONE,
        "decoder_layers": ONE,
        "head_dim": (4, 6),
        "mlp_width": NOUGHT,
        "proxy_codes": (2, 1),
        "patch_size": (1, 0),
        "image_size": (16, 0),
        "architecture": ("titok", "omni"),
    },
    RAEConfig: {
        "width": ONE,
        "heads": ONE,
        "decoder_layers": ONE,
        "head_dim": (4, 3),
        "mlp_width": NOUGHT,
        "patch_size": ONE,
        "noise_tau": WEIGHT,
        "encoder": ("x", ""),
        "architecture": ("rae", "titok"),
    },
    DiscriminatorConfig: {
        "channels": (4, 0),
        "layers": ONE,
        "loss": ("wasserstein", "hing"),
        "r1_gamma": WEIGHT,
        "gradient_penalty": ABOVE,
        "r1_every": ONE,
        "lecam_weight": WEIGHT,
        "lecam_decay": (0.0, 1.0),
    },
    TokenizerLossConfig: {
        "reconstruction": ("huber", "l3"),
        "reconstruction_weight": ABOVE,
        "huber_delta": ABOVE,
        "perceptual_weight": WEIGHT,
        "style_weight": WEIGHT,
        "image_adversarial": WEIGHT,
        "video_adversarial": WEIGHT,
        "feature_matching": WEIGHT,
        "adversarial_start": NOUGHT,
        "discriminator_warmup": NOUGHT,
        "adversarial_ramp": NOUGHT,
    },
    VQConfig: {
        "kind": ("vq", "fsq"),
        "codebook_size": (2, 1),
        "latent_dim": (2, 1),
        "commitment": WEIGHT,
        "restart_dead_after": WEIGHT,
        "ema_decay": (0.0, 1.0),
        "kmeans_iterations": NOUGHT,
    },
    VQGradientConfig: {
        "kind": ("vq_gradient", "vq"),
        "codebook_size": (2, 1),
        "latent_dim": (2, 1),
        "commitment": WEIGHT,
        "restart_dead_after": WEIGHT,
        "kmeans_iterations": NOUGHT,
    },
    FSQConfig: {
        "kind": ("fsq", "vq"),
        "levels": ((3,), (3, 2)),
        "commitment": WEIGHT,
        "restart_dead_after": WEIGHT,
        "balance": WEIGHT,
    },
    LFQConfig: {
        "kind": ("lfq", "vq"),
        "codebook_size": (4, 3),
        "commitment": WEIGHT,
        "restart_dead_after": WEIGHT,
        "entropy_weight": WEIGHT,
        "entropy_gamma": WEIGHT,
        "entropy_temperature": ABOVE,
    },
    BSQConfig: {
        "kind": ("bsq", "lfq"),
        "codebook_size": (4, 3),
        "commitment": WEIGHT,
        "restart_dead_after": WEIGHT,
        "entropy_weight": WEIGHT,
        "entropy_gamma": WEIGHT,
        "inverse_temperature": ABOVE,
        "group_size": ONE,
    },
    GumbelConfig: {
        "kind": ("gumbel", "vq"),
        "codebook_size": (2, 1),
        "latent_dim": (2, 1),
        "restart_dead_after": WEIGHT,
        "tau": (1.0, 1.0 + 1e-9),
        "anneal_updates": ONE,
        "kl_weight": WEIGHT,
        "kl_warmup": NOUGHT,
        "balance": WEIGHT,
    },
    GaussianConfig: {"kind": ("kl", "vq"), "latent_dim": (2, 1), "kl_weight": WEIGHT},
    UnifiedConfig: {
        "vocab_size": (6, 5),
        "latent_dim": ONE,
        "layers": ONE,
        "time_dim": (2, 3),
        "pixel_dim": ONE,
        "pixel_bottleneck": ONE,
        "codebook_size": ONE,
        "unet_width": ONE,
        "width": (48, 49),
        "heads": (4, 5),
        "kv_heads": (2, 3),
        "head_dim": (6, 4),
        "hidden": ONE,
        "rope_base": (1 + 1e-9, 1),
        "norm_eps": ABOVE,
        "axes": (2, 1),
        "rope_scheme": ("one_place", "nope"),
        "time_scale": ABOVE,
        "latent_patchifier": ("unet", "conv"),
        "pixel_patchifier": ("linear", "conv"),
        "block": ("gau", "mamba"),
        "flow_head_layers": NOUGHT,
        "flow_head_width": ONE,
        "patch_mask_low": (0.0, 1e-9),
        "patch_mask_high": (1, 1 + 1e-9),
    },
    DiffusionConfig: {
        "formulation": ("edm", "ddpm"),
        "predict": ("noise", "score"),
        "weight": ("min_snr", "snr"),
        "time": ("uniform", "cosine"),
        "time_mean": (-50, math.inf),
        "time_std": ABOVE,
        "shift": ABOVE,
        "snr_gamma": ABOVE,
        "data_std": ABOVE,
        "sigma_min": ABOVE,
        "sigma_max": (0.0021, 0.002),
        "min_time": (1 - 1e-9, 1),
        "sampling_grid": ("logsnr", "even"),
        "multiscale": ONE,
    },
    TextSampling: {
        "max_new_tokens": ONE,
        "temperature": (0, -1e-9),
        "top_k": ONE,
        "top_p": (1, 1 + 1e-9),
    },
    VisualSampling: {
        "objective": ("masked_code", "latents"),
        "size": ((1, 1), (1, 0)),
        "num_frames": ONE,
        "num_steps": ONE,
        "guidance_scale": WEIGHT,
        "image_guidance_scale": WEIGHT,
        "confidence_noise": WEIGHT,
        "temperature": (0, -1e-9),
        "top_k": ONE,
        "top_p": (1, 1 + 1e-9),
        "sampler": ("heun", "nope"),
    },
}


@pytest.mark.parametrize("cls", LIMITS, ids=lambda cls: cls.__name__)
def test_the_last_value_that_is_taken_and_the_first_that_is_not(cls):
    for name, (taken, refused) in LIMITS[cls].items():
        assert getattr(cls(**BASE.get(cls, {}) | {name: taken}), name) == taken
        with pytest.raises(ValueError, match=rf"{name}|{cls.__name__}.width"):
            cls(**BASE.get(cls, {}) | {name: refused})


def test_limits_on_the_other_side():
    for name, cls, refused in (
        ("min_time", DiffusionConfig, (0, 1)),
        ("lecam_decay", DiscriminatorConfig, (-0.1,)),
        ("ema_decay", VQConfig, (-0.1,)),
        ("tau", GumbelConfig, (0.0,)),
        ("shift", DiffusionConfig, (math.inf,)),
        ("sigma_max", DiffusionConfig, (math.inf,)),
        ("top_p", VisualSampling, (0,)),
        ("temperature", VisualSampling, (math.inf, math.nan)),
        ("num_steps", VisualSampling, (True, 2.0, "2", None)),
        ("size", VisualSampling, (16, (16,), (16, 16.0), "16x16")),
        ("sampler", VisualSampling, (None, 3)),
        ("predictor", VisualSampling, ("file",)),
        ("axes", UnifiedConfig, (4,)),
        ("patch_mask_high", UnifiedConfig, (-0.1,)),
        ("patch_mask_low", UnifiedConfig, (-math.inf,)),
        ("layers", UnifiedConfig, (True, 1.0)),
    ):
        for value in refused:
            with pytest.raises(ValueError, match="patch_mask_low" if name == "patch_mask_high" else name):
                cls(**BASE.get(cls, {}) | {name: value})
    assert LFQConfig(codebook_size=4).dim == 2
    assert LFQConfig(codebook_size=2**20).dim == 20
    for size in (2, 3, 6, 2**20 + 1, 2**21):
        with pytest.raises(ValueError, match="codebook_size: expected for lfq, a power of two from 4 to 1048576"):
            LFQConfig(codebook_size=size)
        with pytest.raises(ValueError, match="codebook_size: expected for bsq, a power of two from 4 to 1048576"):
            BSQConfig(codebook_size=size)
    for sides in ((16, 32), [16, 32]):
        assert TiTokConfig(image_size=sides).size == (16, 32)
    for sides in ((16,), (16, 32, 48), (16, 24), (0, 16), 24):
        with pytest.raises(ValueError, match="image_size: expected a positive multiple of patch_size 16"):
            TiTokConfig(image_size=sides)
    with pytest.raises(ValueError, match="quantizer: expected kind vq or kl with compat official"):
        TokenizerConfig(compat="official", quantizer=FSQConfig())
    with pytest.raises(ValueError, match="heads: expected a divisor of width"):
        TokenizerConfig(compat="official", width=36)
    assert UnifiedConfig(vocab_size=40, head_dim=2, axes=1, rope_scheme="rope_1d").axes == 1
    assert UnifiedConfig(vocab_size=40, width=50, heads=4, head_dim=6).width == 50
    assert UnifiedConfig(vocab_size=40, head_dim=2, axes=1, rope_scheme="one_place").axes == 1
    with pytest.raises(ValueError, match="width: expected a multiple of 4"):
        UnifiedConfig(vocab_size=40, width=50, heads=4, head_dim=6, rope_scheme="one_place")


def test_widths_that_follow_from_others():
    """8/3 of the width, rounded up to a multiple of 32; the published computation cuts."""
    for width, inner in ((12, 32), (13, 64), (96, 256), (97, 288), (512, 1376)):
        configs = (TokenizerConfig(width=width), TiTokConfig(width=width), RAEConfig("folder", width=width))
        assert [config.inner_width for config in configs] == [inner] * 3
        assert [type(c)(**vars(c) | {"mlp_width": 7}).inner_width for c in configs] == [7] * 3
        assert UnifiedConfig(vocab_size=40, width=width, heads=1, head_dim=6).hidden == inner
    assert TokenizerConfig(width=512, compat="official").inner_width == 1365
    assert TokenizerConfig(width=512, compat="official", mlp_width=7).inner_width == 7
    assert UnifiedConfig(vocab_size=40, width=13, heads=1, head_dim=6, feed_forward="gelu").hidden == 52
    gau = UnifiedConfig(vocab_size=40, width=48, heads=4, block="gau")
    assert (gau.hidden, gau.head_dim, gau.kv_heads, gau.flow_head_width) == (96, 12, 4, 48)


USUAL = {
    SpecialIds: {"pad": 0, "bos": 1, "eos": 2, "boi": 3, "bov": 4, "eoi": 5},
    RopeScaling: {},
    UnifiedConfig: {
        "latent_dim": None,
        "width": 512,
        "layers": 8,
        "heads": 8,
        "kv_heads": None,
        "head_dim": None,
        "hidden": None,
        "rope_base": 10000.0,
        "rope_scaling": None,
        "rope_scheme": "tie_v2",
        "axes": 3,
        "qk_norm": True,
        "qk_norm_kind": "rms",
        "norm_after": False,
        "qkv_bias": False,
        "out_bias": False,
        "tied": True,
        "norm_eps": 1e-06,
        "time_dim": 256,
        "pixel_dim": None,
        "pixel_bottleneck": 128,
        "codebook_size": None,
        "code_dim": None,
        "mup": None,
        "modulation": None,
        "modality_experts": None,
        "attention_every": None,
        "time_scale": None,
        "density": None,
        "unet_depth": None,
        "step_sizes": None,
        "gau_length": None,
        "norm_kind": None,
        "parallel": None,
        "feed_forward": None,
        "rotary_fraction": None,
        "head_bias": None,
        "joined_frame": None,
        "latent_patchifier": "linear",
        "pixel_patchifier": "bottleneck",
        "unet_width": 128,
        "block": "llama",
        "long_skips": False,
        "flow_head_layers": 0,
        "flow_head_width": None,
        "patch_mask_low": 0.0,
        "patch_mask_high": 0.0,
    },
    DiffusionConfig: {
        "formulation": "flow",
        "predict": "v",
        "time": None,
        "time_mean": None,
        "time_std": None,
        "shift": 1.0,
        "min_time": 0.05,
        "weight": "v",
        "snr_gamma": 5.0,
        "data_std": 1.0,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sampling_grid": None,
        "multiscale": 1,
    },
    TokenizerConfig: {
        "architecture": "omni",
        "patch_size": 8,
        "temporal_patch": 4,
        "width": 512,
        "heads": 8,
        "head_dim": 64,
        "mlp_width": 0,
        "spatial_layers": "ttww",
        "temporal_layers": 4,
        "decoder_spatial_layers": "tttt",
        "window": 8,
        "temporal_window": 8,
        "patch_norm": False,
        "compat": "corrected",
        "positions": "rope",
        "rel_bias": "sdpa",
        "causal_attention": True,
        "causal_peg": True,
    },
    TiTokConfig: {
        "architecture": "titok",
        "image_size": 256,
        "patch_size": 16,
        "num_latents": 128,
        "width": 512,
        "heads": 8,
        "head_dim": 64,
        "mlp_width": 0,
        "encoder_layers": 8,
        "decoder_layers": 8,
        "proxy_codes": None,
    },
    RAEConfig: {
        "architecture": "rae",
        "patch_size": None,
        "width": 1152,
        "heads": 16,
        "head_dim": 72,
        "mlp_width": 0,
        "decoder_layers": 28,
        "noise_tau": 0.8,
    },
    DiscriminatorConfig: {
        "channels": 64,
        "layers": 3,
        "loss": None,
        "r1_gamma": 0.0,
        "gradient_penalty": None,
        "r1_every": 16,
        "lecam_weight": 0.0,
        "lecam_decay": 0.99,
    },
    TokenizerLossConfig: {
        "reconstruction": "l1",
        "reconstruction_weight": 4.0,
        "huber_delta": 0.1,
        "perceptual_weight": 0.0,
        "style_weight": 0.0,
        "image_adversarial": 0.01,
        "video_adversarial": 0.01,
        "feature_matching": 0.25,
        "adversarial_start": 0,
        "discriminator_warmup": 0,
        "adversarial_ramp": 0,
        "adaptive_weight": False,
    },
    VQConfig: {
        "kind": "vq",
        "codebook_size": 8192,
        "latent_dim": 8,
        "commitment": 0.25,
        "restart_dead_after": 16.0,
        "ema_decay": 0.99,
        "rotation_trick": True,
        "kmeans_iterations": 10,
    },
    VQGradientConfig: {
        "kind": "vq_gradient",
        "codebook_size": 8192,
        "latent_dim": 8,
        "commitment": 0.25,
        "restart_dead_after": 16.0,
        "rotation_trick": True,
        "kmeans_iterations": 10,
    },
    FSQConfig: {
        "kind": "fsq",
        "levels": (8, 5, 5, 5),
        "commitment": 0.25,
        "restart_dead_after": 16.0,
        "balance": 0.2,
    },
    LFQConfig: {
        "kind": "lfq",
        "codebook_size": 8192,
        "commitment": 0.25,
        "restart_dead_after": 16.0,
        "entropy_weight": 0.1,
        "entropy_gamma": 1.0,
        "entropy_temperature": 1.0,
    },
    BSQConfig: {
        "kind": "bsq",
        "codebook_size": 8192,
        "commitment": 0.25,
        "restart_dead_after": 16.0,
        "entropy_weight": 0.1,
        "entropy_gamma": 1.0,
        "inverse_temperature": 10.0,
        "group_size": 9,
    },
    GumbelConfig: {
        "kind": "gumbel",
        "codebook_size": 8192,
        "latent_dim": 8,
        "restart_dead_after": 16.0,
        "tau": 0.0625,
        "anneal_updates": 5000,
        "hard": False,
        "kl_weight": 0.0005,
        "kl_warmup": 1000,
        "balance": 0.25,
    },
    GaussianConfig: {"kind": "kl", "latent_dim": 8, "kl_weight": 1e-06},
    ViTConfig: {
        "prefix": 0,
        "pre_norm": False,
        "activation": "gelu",
        "norm_eps": 1e-06,
        "antialias": False,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
    TextSampling: {"max_new_tokens": 64, "temperature": 0.0, "top_k": None, "top_p": None},
    VisualSampling: {
        "objective": None,
        "size": None,
        "num_frames": None,
        "num_steps": 20,
        "guidance_scale": 2.0,
        "image_guidance_scale": None,
        "sampler": "euler",
        "predictor": None,
        "diffusion": None,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "confidence_noise": 4.5,
    },
}


@pytest.mark.parametrize("cls", USUAL, ids=lambda cls: cls.__name__)
def test_what_a_field_is_where_nothing_is_said(cls):
    """A model that was stored with fewer fields written down is read with these."""
    assert {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING} == USUAL[cls]


def test_laws_of_the_times_where_nothing_is_said():
    """Of each formulation those of its authors; of raw pixels JiT's."""
    laws = {name: DiffusionConfig(name) for name in ("flow", "vp", "ve", "edm")}
    assert {name: (c.time, c.time_mean, c.time_std, c.sampling_grid) for name, c in laws.items()} == {
        "flow": ("logit_normal", 0.0, 1.0, "time"),
        "vp": ("uniform", 0.0, 1.0, "time"),
        "ve": ("uniform", 0.0, 1.0, "edm"),
        "edm": ("lognormal", -1.2 + math.log(2), 1.2, "edm"),
    }
    assert DiffusionConfig("edm", data_std=0.5).time_mean == -1.2
    other = DiffusionConfig("edm", time="logit_normal")
    assert (other.time_mean, other.time_std) == (0.0, 1.0)
    pixels = PIXEL_DIFFUSION
    assert (pixels.predict, pixels.time, pixels.time_mean, pixels.time_std) == ("x", "logit_normal", 0.8, 0.8)
