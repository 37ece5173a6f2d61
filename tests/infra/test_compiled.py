"""Compiled code is kept in the machine's cache: a second process that trains the same compiles nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

TRAINING = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=0, world_size=1)
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.linear(x))


torch.manual_seed(0)
block = Block()
module = nn.Sequential(block, nn.Linear(8, 1))
engine = Engine(module, OptimizerConfig(), EngineConfig(compile=True), 2, 4, compile_parts=block.compile)
loss = engine(torch.ones(4, 8)).square().mean()
engine.backward(loss)
engine.step(0)
found = torch._dynamo.utils.counters["inductor"]
print("compiled", found["fxgraph_cache_miss"], "taken", found["fxgraph_cache_hit"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for CPUs with g++")
def test_a_second_process_takes_what_the_first_has_compiled(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    env["OMNILOOM_CACHE"] = str(tmp_path / "cache")
    told = []
    for number in range(2):
        command = [sys.executable, "-c", TRAINING, str(tmp_path / f"store{number}")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(done.stdout.splitlines()[-1].split())
    (_, first, _, _), (_, compiled, _, taken) = told
    assert int(first) > 0 and int(compiled) == 0 and int(taken) == int(first)
    assert any((tmp_path / "cache" / "compiled").iterdir())


def test_a_folder_that_is_named_is_kept(monkeypatch, tmp_path):
    from omniloom.infra.training import compiled

    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    compiled.keep()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled.keep()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
