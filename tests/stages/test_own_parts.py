"""What a training that starts from a model of ours may add to its blocks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from backbone_cases import config_of

from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.stages.checkpoints.own_model import start_config

SIZES = {"latent_dim": 3}


def folder(path: Path, config: UnifiedConfig) -> str:
    (path / "config.json").write_text(json.dumps({"unified": asdict(config)}))
    return str(path)


def test_own_parts_of_pictures_may_be_added_but_not_changed(tmp_path):
    plain = folder(tmp_path, config_of("none"))
    for which in ("feed_forward", "all"):
        assert start_config(plain, {"modality_experts": which}, SIZES).modality_experts == which
    assert start_config(plain, {}, SIZES).modality_experts is None
    own = folder(tmp_path, config_of("experts"))
    assert start_config(own, {}, SIZES).modality_experts == "feed_forward"
    with pytest.raises(InputError, match="the model has 'feed_forward', got 'all'"):
        start_config(own, {"modality_experts": "all"}, SIZES)


def test_a_modulation_is_for_a_model_without_diffusions(tmp_path):
    """Whose fresh gates would undo what the blocks of another have learnt of pictures."""
    with pytest.raises(InputError, match="the model has None, got 'adaln_zero'"):
        start_config(folder(tmp_path, config_of("none")), {"modulation": "adaln_zero"}, SIZES)
    codes = folder(tmp_path, config_of("none", latent_dim=None, pixel_dim=None))
    assert start_config(codes, {"modulation": "adaln_zero"}, SIZES).is_modulated
    assert start_config(folder(tmp_path, config_of("modulated")), {}, SIZES).is_modulated


def test_a_recurrence_is_chosen_from_scratch(tmp_path):
    with pytest.raises(InputError, match="the model has None, got 2"):
        start_config(folder(tmp_path, config_of("none")), {"attention_every": 2}, SIZES)
