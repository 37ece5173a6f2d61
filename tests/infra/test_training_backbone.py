"""The backbone's options under ZeRO: two ranks that hold different kinds of segments run the same modules, and stage 3
gives the losses of stage 0."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
from backbone_cases import ALL, OPTIONS, config_of, documents, drawing, objective_of

from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine, reduce_sum
from omniloom.models.unified.batch import collate

STEPS = 3
# All kinds of blocks, with everything else.
CASES = {
    "gau": {},
    "llama": {"block": "llama", "layers": 2, "modality_experts": "all", "attention_every": 2},
    "phi": {"block": "llama", "modulation": None, **OPTIONS["phi"]},
}


def losses(case: str, zero_stage: int) -> list[float]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    objective = objective_of(config := config_of("all", **CASES[case]))
    objective.model.checkpoint_activations = True
    engine = Engine(objective, OptimizerConfig(lr=1e-3, warmup_steps=1), EngineConfig(zero_stage=zero_stage), STEPS, 1)
    found = []
    for step in range(STEPS):
        # Text alone, codes alone, latents on several grids: in turn, and never the same on both ranks.
        rows = [documents()[:1], [drawing("next_code")], [drawing(ALL[0], (1, 3, 5)), drawing(ALL[0], (2, 1, 1))]]
        batch = collate([rows[(step + rank) % 3]], 48, config)
        counts = dict(zip(batch.targets, (total / ranks for total in reduce_sum(*batch.targets.values()))))
        loss, logs = engine(batch, [100 * step + rank], counts=counts)
        engine.backward(loss)
        engine.step(step)
        found.append(reduce_sum(float(logs["loss"]))[0] / ranks)
    return found


def _rank(rank: int, ranks: int, folder: str, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {(case, stage): losses(case, stage) for case in CASES for stage in (0, 3)}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_different_segments_train_alike_under_zero_3(tmp_path):
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path), sys.path), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    for case in CASES:
        assert found[case, 3] == pytest.approx(found[case, 0], rel=1e-5)
        assert found[case, 0][0] != found[case, 0][1]
