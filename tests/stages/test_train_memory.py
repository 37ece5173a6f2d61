"""Whether blocks are computed again: as a worker's memory lets them, by the formulas that tests/infra/test_memory.py
holds against what torch allocated."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from omniloom.infra.errors import InputError
from omniloom.infra.training.memory import passing_memory, state_memory
from omniloom.models.unified.memory import pass_memory
from omniloom.pipelines.config import load
from omniloom.pipelines.sizing import sizes
from omniloom.stages.train.config import expected_config, parameters_of
from omniloom.stages.train.memory import device_memory, needs_room, one_pass
from omniloom.stages.train.worker import _blocks_again

GIB = 2**30
CLUSTER = ["storage=/nowhere", "data=/nowhere"]


def train(*overrides: str):
    stages = load("cluster", [*CLUSTER, *overrides]).stages
    tokenizer = stages.tokenizer_image.model
    return stages.train, expected_config(stages.train, stages.pretokenize, tokenizer)


def test_what_fits_is_kept_and_what_does_not_is_computed_again():
    config, model = train()
    trained, frozen = parameters_of(config, model)
    taken = pass_memory(model, one_pass(config, model, 32))
    beside = passing_memory(trained, config.engine, 32, 2, 0, 0)
    needed = sum(state_memory(trained, config.engine, 32, frozen).values()) + sum(taken.values()) + sum(beside.values())
    exact = needed / 0.85  # of a device 15% are left alone
    assert not needs_room(config, model, 32, int(exact * 1.001)) and needs_room(config, model, 32, int(exact * 0.999))
    # The preset on an H100 of 80 GiB keeps all; on half of that it does not; nor does one GPU, with no others to share
    # the optimizer's state, in less than it needs for that.
    assert not needs_room(config, model, 32, 80 * GIB) and needs_room(config, model, 32, 32 * GIB)


def test_twice_the_rows_of_a_pass_take_twice_the_activations():
    config, model = train()
    wide, _ = train("stages.train.workers.accumulate=1")
    one, two = one_pass(config, model, 32), one_pass(wide, model, 32)
    assert (one.positions, two.positions) == (2 * 8192, 4 * 8192) and one.scores == 0 and one.bf16
    told = sizes(load("cluster", CLUSTER))["train"]
    assert told["tokens_per_worker_and_pass"] == one.positions
    assert told["activations_bytes"] == sum(pass_memory(model, one)[name] for name in ("activations", "casts"))


@pytest.mark.parametrize("wanted", [False, True, "auto"])
def test_a_rank_does_as_it_is_told_or_as_it_has_room(process_group, monkeypatch, wanted):
    config, model = train(f"stages.train.engine.activation_checkpointing={wanted}", "stages.train.workers.gpus=0")
    assert dist.get_world_size() == 1
    for memory, small in ((1 << 50, False), (GIB, True)):
        monkeypatch.setattr("omniloom.stages.train.worker.device_memory", lambda gpu, memory=memory: memory)
        assert _blocks_again(config, model, None) is (small if wanted == "auto" else wanted)


def test_ranks_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = device_memory(gpu=False)
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_memory(gpu=False) == whole // 4


def test_tokenizers_refuse_auto_which_has_no_formula_there():
    with pytest.raises(InputError, match="activation_checkpointing"):
        load("demo", ["storage=/nowhere", "stages.tokenizer_image.engine.activation_checkpointing=auto"])


@pytest.mark.parametrize("engine", ["{zero_stage: 2}", "{zero_stage: 3}", "{zero_stage: 1, offload: true}"])
def test_muon_is_refused_where_matrices_are_divided(engine):
    muon = ["storage=/nowhere", "stages.train.optimizer.muon={momentum: 0.9}"]
    assert load("demo", muon).stages.train.optimizer.muon.momentum == 0.9
    with pytest.raises(InputError, match="set engine.zero_stage to 0 or 1 and engine.offload to false"):
        load("demo", [*muon, f"stages.train.engine={engine}"])
    tokenizer = ["storage=/nowhere", "stages.tokenizer_image.optimizer.muon={momentum: 0.9}"]
    assert load("demo", tokenizer).stages.tokenizer_image.optimizer.muon.momentum == 0.9
    with pytest.raises(InputError, match="muon"):
        load("demo", [*tokenizer, f"stages.tokenizer_image.engine={engine}"])
