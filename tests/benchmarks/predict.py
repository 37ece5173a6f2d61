"""Predicted against measured, of small trainings on this machine: memory of a worker by ZeRO stage, ranks, rows,
accumulation and recomputation; and seconds of a step from the rate of another size.

    python tests/benchmarks/predict.py [--threads 1]

Memory is what torch's allocator gave out (`tests/allocated.py`). A step's seconds are CPU seconds of one thread, the
fastest of three, of a case that differs from the first in one thing; the prediction is the first's, times the ratio of
operations. Several ranks are processes on this machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

from allocated import Case, Taken, measured, predicted  # noqa: E402

from omniloom.infra.training.config import EngineConfig  # noqa: E402
from omniloom.models.unified.config import UnifiedConfig  # noqa: E402
from omniloom.models.unified.flops import step_flops  # noqa: E402

CONFIG = UnifiedConfig(vocab_size=2048, latent_dim=4, width=192, heads=6, kv_heads=2, hidden=512, layers=4)
BASE = Case(CONFIG, EngineConfig(zero_stage=1))


def engine(**fields) -> Case:
    return replace(BASE, engine=EngineConfig(**{"zero_stage": 1, **fields}))


CASES = {
    "ZeRO 1": BASE,
    "two rows": replace(BASE, rows=2),
    "rows of 1024": replace(BASE, length=1024),
    "two passes": replace(BASE, accumulate=2),
    "wider": replace(BASE, config=replace(CONFIG, width=288, heads=9, kv_heads=3, head_dim=32, hidden=768)),
    "deeper": replace(BASE, config=replace(CONFIG, layers=8)),
    "recomputed": engine(activation_checkpointing=True),
    "EMA": engine(ema_decay=0.999),
    "ZeRO 0": engine(zero_stage=0),
    "ZeRO 2": engine(zero_stage=2),
    "ZeRO 3": engine(zero_stage=3),
    **{f"ZeRO {stage}, 2 ranks": replace(engine(zero_stage=stage), ranks=2) for stage in (1, 2, 3)},
}
TIMED = ("two rows", "rows of 1024", "two passes", "wider", "deeper")


def rank(number: int, case: Case, port: int, threads: int, answers) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(case.ranks)}
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", rank=number, world_size=case.ranks)
    taken = measured(case, seed=number)
    if number == 0:
        answers.put(taken)
    dist.barrier()
    dist.destroy_process_group()


def run(case: Case, threads: int) -> Taken:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    multiprocessing.spawn(rank, (case, port, threads, answers), nprocs=case.ranks)
    return answers.get()


def flops(case: Case) -> float:
    return case.accumulate * step_flops(case.config, case.batch())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    o = parser.parse_args()
    print(f"{'case':18} {'state MB':>20} {'most MB':>24} {'seconds a step':>24}")
    rate = None
    for name in o.cases:
        case = CASES[name]
        found, told = run(case, o.threads), predicted(case)
        columns = [(told.state / 1e6, found.state / 1e6), (told.peak / 1e6, found.peak / 1e6)]
        if name == "ZeRO 1":
            rate = flops(case) / found.seconds
        if rate and name in TIMED:
            columns.append((flops(case) / rate, found.seconds))
        shown = [f"{a:8.2f} of {b:8.2f} {a / b - 1:+4.0%}" for a, b in columns]
        print(f"{name:18} " + "  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
