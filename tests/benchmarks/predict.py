"""Predicted against measured, of small trainings on this machine: memory of a worker by ZeRO stage, ranks, rows,
accumulation and recomputation; and seconds of a step from the rate of another size.

    python tests/benchmarks/predict.py [--threads 1]

Memory is what torch's allocator gave out (`tests/allocated.py`); several ranks are processes on this machine. A step's
seconds are CPU seconds of one thread, the least of some, in which the cases take turns; the prediction is the first
case's, times the ratio of what `models.unified.seconds` says of both, as `plan` does it, and beside it times the ratio
of operations.
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

from allocated import Case, Taken, measured, predicted, predicted_seconds, seconds  # noqa: E402

from omniloom.infra.training.config import EngineConfig  # noqa: E402
from omniloom.infra.training.launch import single_process  # noqa: E402
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
SMALL = UnifiedConfig(vocab_size=512, latent_dim=4, width=96, heads=4, hidden=256, layers=2)
DEMO = UnifiedConfig(vocab_size=1024, latent_dim=8, width=128, heads=4, hidden=344, layers=4)
LARGE = UnifiedConfig(vocab_size=2048, latent_dim=16, width=512, heads=8, hidden=1376, layers=4)
TIMED = {
    **{name: CASES[name] for name in ("ZeRO 1", "two rows", "rows of 1024", "two passes", "wider", "deeper")},
    "recomputed": CASES["recomputed"],
    "short documents": replace(BASE, caption=58),
    "larger hidden": replace(BASE, config=replace(CONFIG, hidden=1536)),
    "larger vocabulary": replace(BASE, config=replace(CONFIG, vocab_size=8192)),
    "no qk_norm": replace(BASE, config=replace(CONFIG, qk_norm=False)),
    "gau": replace(BASE, config=replace(CONFIG, block="gau", hidden=384, kv_heads=6)),
    "modulated": replace(BASE, config=replace(CONFIG, modulation="adaln_zero")),
    "experts": replace(BASE, config=replace(CONFIG, modality_experts="feed_forward")),
    "experts of all": replace(BASE, config=replace(CONFIG, modality_experts="all")),
    "recurrent": replace(BASE, config=replace(CONFIG, attention_every=4)),
    "0.3 M": replace(BASE, config=SMALL),
    "1 M, rows of 256": replace(BASE, config=DEMO, rows=4, length=256, caption=100),
    "15 M, rows of 1024": replace(BASE, config=LARGE, length=1024),
    "long documents": replace(BASE, length=1536, caption=1400),
}


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
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="of memory")
    parser.add_argument("--turns", type=int, default=8, help="of the steps that are timed")
    o = parser.parse_args()
    print(f"{'case':18} {'state MB':>20} {'most MB':>24}")
    for name in o.cases:
        case = CASES[name]
        found, told = run(case, o.threads), predicted(case)
        columns = [(told.state / 1e6, found.state / 1e6), (told.peak / 1e6, found.peak / 1e6)]
        print(f"{name:18} " + "  ".join(_against(*column) for column in columns), flush=True)
    torch.set_num_threads(o.threads)
    with single_process():
        found = seconds(TIMED, o.turns)
    print(f"\n{'case':18} {'seconds a step':>24} {'by operations':>24}")
    first, *_ = TIMED
    for name, case in TIMED.items():
        columns = [found[first] * of(case) / of(TIMED[first]) for of in (predicted_seconds, flops)]
        print(f"{name:18} " + "  ".join(_against(column, found[name], 4) for column in columns))


def _against(told: float, found: float, digits: int = 2) -> str:
    return f"{told:8.{digits}f} of {found:8.{digits}f} {told / found - 1:+4.0%}"


if __name__ == "__main__":
    main()
