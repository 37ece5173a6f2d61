"""What a training step computes in through `infra.training.engine.Engine`: bf16 against fp32, on this machine's GPU
where there is one, else on the CPU.

    python tests/benchmarks/precision.py [--zero-stage 2] [--width 1024] [--steps 20]

Prints for each precision the type of the matrix products inside the engine, the peak of memory (of the GPU; on a CPU
the process's), useful tokens a second (median of the steps) and the share of what the GPU can compute. On one GPU it
takes about two minutes. Each precision runs in a process of its own, so that peaks are apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from omniloom.infra.training.config import EngineConfig, OptimizerConfig  # noqa: E402
from omniloom.infra.training.engine import Engine  # noqa: E402
from omniloom.infra.training.launch import single_process  # noqa: E402
from omniloom.infra.training.peak import peak_tflops  # noqa: E402
from omniloom.models.unified.batch import collate  # noqa: E402
from omniloom.models.unified.config import UnifiedConfig, num_parameters  # noqa: E402
from omniloom.models.unified.diffusion.config import DiffusionConfig  # noqa: E402
from omniloom.models.unified.flops import step_flops  # noqa: E402
from omniloom.models.unified.layouts import text_to_visual  # noqa: E402
from omniloom.models.unified.model import UnifiedModel  # noqa: E402
from omniloom.models.unified.objectives.objective import UnifiedObjective  # noqa: E402

CAPTION, SIDE, CHANNELS = 200, 16, 8


def measure(o: argparse.Namespace) -> dict:
    config = UnifiedConfig(vocab_size=8192, latent_dim=CHANNELS, width=o.width, layers=o.layers, heads=o.width // 64)
    torch.manual_seed(0)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig(), objectives=("latent_diffusion",))
    products: Counter = Counter()

    def note(module, given, out) -> None:
        products[str(out.dtype).removeprefix("torch.")] += 1

    for part in objective.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(note)
    engine = Engine(
        objective, OptimizerConfig(), EngineConfig(precision=o.precision, zero_stage=o.zero_stage), o.steps, o.rows
    )
    rng, on_gpu = np.random.default_rng(0), engine.device.type == "cuda"

    def document() -> list:
        return text_to_visual(
            rng.integers(6, 8192, CAPTION),
            rng.normal(size=(SIDE * SIDE, CHANNELS)).astype("f4"),
            (1, SIDE, SIDE),
            config.specials,
            objective="latent_diffusion",
        )

    rows = [[document() for _ in range(o.length // (CAPTION + SIDE * SIDE + 6))] for _ in range(o.rows)]
    batch = collate(rows, o.length, config, engine.device.type)
    seconds = []
    for step in range(o.steps):
        began = time.perf_counter()
        loss, _ = engine(batch.to(engine.device), list(range(o.rows)))
        engine.backward(loss)
        engine.step(step)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took, most = statistics.median(seconds[2:]), peak_tflops(o.precision)
    useful = batch.tokens["text"] + batch.tokens["visual"]
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "precision": o.precision,
        "zero_stage": o.zero_stage,
        "parameters": num_parameters(config),
        "products": dict(products),
        "peak_gib": round(peak / 2**30, 3),
        "tokens_per_second": round(useful / took),
        "utilization": most and round(step_flops(config, batch) / took / most / 1e12, 3),
        "loss": float(loss.detach()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    large = torch.cuda.is_available()
    for name, value in (
        ("zero-stage", 1),
        ("width", 1024 if large else 256),
        ("layers", 16 if large else 4),
        ("rows", 4),
        ("length", 4096 if large else 512),
        ("steps", 20 if large else 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="measure this one alone, in this process")
    options = parser.parse_args()
    if options.precision:
        with single_process():
            print(json.dumps(measure(options)))
        return
    found = {}
    for precision in ("fp32", "bf16"):
        command = [sys.executable, __file__, *sys.argv[1:], "--precision", precision]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found[precision] = json.loads(next(line for line in reversed(lines) if line.startswith('{"device')))
        print(json.dumps(found[precision]), flush=True)
    speed, memory = (found["bf16"][name] / found["fp32"][name] for name in ("tokens_per_second", "peak_gib"))
    print(f"bf16 against fp32: {speed:.2f}x tokens a second, {memory:.2f}x peak memory")


if __name__ == "__main__":
    main()
