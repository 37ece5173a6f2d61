"""DeepSpeed in a rank's process: what its import brings along, seen in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

_RANK = """
import sys
from omniloom.infra.training.accelerated import import_deepspeed
from omniloom.infra.training.engine import Engine
deepspeed = import_deepspeed()
print(*sorted({"mlflow", "torch._dynamo", "deepspeed.autotuning.autotuner"} & set(sys.modules)))
from deepspeed.runtime.config import DeepSpeedConfig
print(DeepSpeedConfig({"train_micro_batch_size_per_gpu": 3}).autotuning_config.enabled)
"""


def test_deepspeed_comes_without_mlflow_and_the_compiler():
    """Each takes a rank as long as PyTorch; DeepSpeed's own config is read all the same."""
    told = subprocess.run([sys.executable, "-c", _RANK], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-2:] == ["", "False"]
