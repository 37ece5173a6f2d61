"""DeepSpeed in a rank's process: what its import brings along, seen in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

_RANK = """
import sys
import torch
from omniloom.infra.training.accelerated import import_deepspeed
from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.launch import single_process
deepspeed = import_deepspeed()
with single_process():
    for stage, offload in ((0, False), (1, False), (1, True), (2, False)):  # the hooks of 3 bring the compiler
        config = EngineConfig(zero_stage=stage, offload=offload, ema_decay=0.9)
        engine = Engine(torch.nn.Linear(4, 4), OptimizerConfig(lr=1e-3), config, 2, 1)
        for step in range(2):
            engine.backward(engine(torch.randn(2, 4)).square().mean())
            engine.step(step)
print(*sorted({"mlflow", "torch._dynamo", "torch._inductor", "deepspeed.autotuning.autotuner"} & set(sys.modules)))
from deepspeed.runtime.config import DeepSpeedConfig
print(DeepSpeedConfig({"train_micro_batch_size_per_gpu": 3}).autotuning_config.enabled)
"""


def test_deepspeed_comes_without_mlflow_and_the_compiler():
    """Each takes a rank as long as PyTorch, also in the steps; DeepSpeed's own config is read all the same."""
    told = subprocess.run([sys.executable, "-c", _RANK], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-2:] == ["", "False"]
