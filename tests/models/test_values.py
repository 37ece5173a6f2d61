"""Configs and tables are values: what is shared by models, stages and files never changes under its readers."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from omniloom import models
from omniloom.models.tokenizer.config import TiTokConfig, TokenizerConfig
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.tokenizer.quantizers.config import VQConfig
from omniloom.models.tokenizer.titok import TiTok
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.model import UnifiedModel

ROOT = Path(__file__).parents[2]

# What is filled in or handed on piece by piece while a batch is made, a picture drawn or a video read.
FILLED = {
    "Batch",
    "BlockAttend",
    "BlockTables",
    "Chain",
    "DenseAttend",
    "FlexAttend",
    "GridTables",
    "Here",
    "Modulation",
    "Places",
    "QueryBlocks",
    "Segment",
    "Shown",
    "SquaredReluAttend",
    "TemporalState",
    "VisualInput",
    "VisualPart",
    "VisualTask",
    "Canvas",
    "PlacedSegment",
    "Request",
}


def test_all_others_are_frozen_and_can_be_keys():
    found = {
        value
        for module in pkgutil.walk_packages(models.__path__, "omniloom.models.")
        for value in vars(importlib.import_module(module.name)).values()
        if dataclasses.is_dataclass(value) and value.__module__.startswith("omniloom.models.")
    }
    frozen = {value for value in found if value.__dataclass_params__.frozen}
    assert {value.__qualname__ for value in found - frozen} == FILLED
    assert len(frozen) > 10 and all(value.__hash__ for value in frozen)


@pytest.mark.parametrize("package", ["omniloom.models.unified", "omniloom.models.tokenizer"])
def test_names_of_a_package_are_loaded_on_first_use_and_others_are_none(package):
    module = importlib.import_module(package)
    assert {name for name in module.__all__ if getattr(module, name).__name__ == name} == set(module.__all__) != set()
    assert not hasattr(module, "nothing")


def test_importing_a_package_imports_no_torch():
    code = "import sys, models.unified, models.tokenizer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_a_model_does_only_when_asked_is_off():
    """Nothing is computed twice where nobody asks for it."""
    small = {"width": 16, "heads": 1, "head_dim": 16}
    vq = VQConfig(codebook_size=8, latent_dim=2)
    made = (
        OmniTokenizer(TokenizerConfig(**small, spatial_layers="t", decoder_spatial_layers="t", quantizer=vq)),
        TiTok(TiTokConfig(**small, image_size=32, encoder_layers=1, decoder_layers=1, quantizer=vq)),
        UnifiedModel(UnifiedConfig(vocab_size=8, width=16, layers=1, heads=2)),
    )
    flags = [
        module.activation_checkpointing
        for model in made
        for module in model.modules()
        if hasattr(module, "activation_checkpointing")
    ]
    assert flags and not any(flags) and not made[2].checkpoint_activations
