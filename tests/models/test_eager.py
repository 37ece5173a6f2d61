"""What stays eager in a compiled module, and who imports the compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from omniloom.models.eager import eager

# What `sample`, `evaluate` and pretokenize's actors import of models, and what starts a training without compiling.
_IMPORTED = """
import importlib, pkgutil, sys
import omniloom.models, omniloom.stages.inference.sampling
import omniloom.stages.train.worker, omniloom.stages.tokenizer.worker
for module in pkgutil.walk_packages(omniloom.models.__path__, "omniloom.models."):
    importlib.import_module(module.name)
from omniloom.models.tokenizer.quantizers.vq import VectorQuantizer
from omniloom.models.tokenizer.quantizers.config import VQConfig
import torch
quantizer = VectorQuantizer(VQConfig("vq", 8, 4)).train()
quantizer(torch.randn(16, 4), update=True)
from omniloom.models.meta import without_memory
from omniloom.models.unified.attention import BlockAttend
from omniloom.models.unified.mask import query_blocks
assert without_memory(torch.nn.Embedding, 5, 3).weight.is_meta
q, k, v = torch.randn(3, 1, 2, 8, 4, requires_grad=True)
start, end = torch.zeros(1, 8, dtype=torch.int64), torch.arange(1, 9)[None]
BlockAttend(query_blocks(start.numpy(), end.numpy(), [(0, 0, 8)]))(q, k, v).sum().backward()
print("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_imported_only_where_something_is_compiled():
    found = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "False", found.stdout + found.stderr


class Counting(nn.Module):
    """Reads a value on the host in its midst, which no compiler can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(3, 3), []
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @eager
    @torch.no_grad()
    def count(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.compiler.is_compiling())
        self.calls += 1
        return x * int(self.calls)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x).relu()
        return y + self.count(y)


def test_a_compiled_module_runs_it_eagerly_and_compiles_what_is_around_it_once():
    from torch._dynamo.testing import CompileCounter

    plain, compiled, counter = Counting(), Counting(), CompileCounter()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend=counter)
    x = torch.randn(2, 3)
    for _ in range(4):
        torch.testing.assert_close(compiled(x), plain(x))
    assert compiled.seen == [False] * 4 and int(compiled.calls) == 4
    assert counter.frame_count == 2, "one graph before it and one behind it"
