"""muP in stage `train`: where it is refused, that without it nothing changes, and a rank's learning rates."""

from __future__ import annotations

import pytest
import torch

from omniloom.infra.errors import InputError
from omniloom.models.unified.model import UnifiedModel
from omniloom.pipelines.config import load
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.train.config import TrainConfig, unified_config
from omniloom.stages.train.worker import engine_of, objective_of

DEMO = [
    "storage=/nowhere",
    "stages.train.optimizer.muon=null",
    "stages.train.model={width: 64, layers: 4, heads: 4, mup: {width: 32, layers: 2}}",
]


def test_without_mup_the_canonical_form_does_not_know_it() -> None:
    assert "mup" not in canonical(TrainConfig())["model"]
    stages = load("demo", DEMO).stages
    assert canonical(stages.train)["model"]["mup"] == {"width": 32, "layers": 2, "heads": None}


@pytest.mark.parametrize(
    "override, told",
    [
        ("stages.train.optimizer.muon={momentum: 0.9}", "Adam's"),
        ("stages.train.model.mup.width=30", "no base of this shape"),
        ("stages.train.init_from=/somewhere", "begins at random"),
        ("stages.train.model.mup.hidden=30", "mup.hidden"),
    ],
)
def test_what_does_not_go_with_it_is_refused(override: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load("demo", [*DEMO, override])


def test_a_rank_trains_each_part_at_its_rate(process_group) -> None:
    fields = {"model": {"width": 64, "layers": 8, "heads": 4, "mup": {"width": 16, "layers": 2}}, "batch_rows": 2}
    config = TrainConfig.model_validate(fields | {"optimizer": {"weight_decay": 0.1}, "engine": {"zero_stage": 0}})
    shape = unified_config(config, 40, {"latent_dim": 3, "pixel_dim": None, "codebook_size": None}, None)
    torch.manual_seed(0)
    engine = engine_of(objective_of(UnifiedModel(shape), config, {}), config, 1)
    engine.step(config.optimizer.warmup_steps - 1)  # the schedule's rate from here on
    names = {id(p): name for name, p in engine.module.named_parameters()}
    found = {
        names[id(p)]: (group["lr"] / config.optimizer.lr, group["weight_decay"])
        for group in engine.engine.optimizer.param_groups
        for p in group["params"]
    }
    assert set(found) == set(names.values())
    assert found["model.embed.weight"] == pytest.approx((1.0, 0.1))
    assert found["model.visual_out.weight"] == pytest.approx((1 / 4, 0.4))
    assert found["model.blocks.5.attention.qkv.weight"] == pytest.approx((1 / 4 / 2, 0.8))
    # The base has 64 inner channels, the model 192.
    assert found["model.blocks.5.mlp.down.weight"] == pytest.approx((1 / 3 / 2 / 2, 1.2))
    assert found["model.blocks.5.mlp_norm.weight"] == pytest.approx((1 / 2, 0.0))
