"""What a checkpoint costs a training: time, pause and memory, beside the training or while it waits.

    python tests/benchmarks/checkpoint.py                  300 million parameters on 2 gloo ranks
    python tests/benchmarks/checkpoint.py --peers --million 100

In one run the same engine takes steps without a save, with a save beside them, and with a save that it waits for. Of
each rank: the peak of its memory (resident, by the kernel's own mark, which is reset before each part), how long the
training stood still, and how long the save took from its start until the checkpoint counted. `--peers` measures
DeepSpeed's own checkpoint with its conversion to a universal one, and torch's DCP, of the same state.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

WIDTH, ROWS, STEPS_BETWEEN = 1024, 4, 3


class Blocks(nn.Module):
    """Residual two-layer blocks of width 1024: 8.4 million parameters each."""

    def __init__(self, count: int):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(count))
        self.down = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(count))

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.nn.functional.gelu(up(x)))
        return (x - 1).square().mean(), {}


def build(million: int, stage: int):
    from omniloom.infra.training.config import EngineConfig, OptimizerConfig
    from omniloom.infra.training.engine import Engine

    torch.manual_seed(0)
    module = Blocks(max(1, round(million / 8.4)))
    settings = EngineConfig(zero_stage=stage, ema_decay=0.999)
    return Engine(module, OptimizerConfig(lr=1e-4, warmup_steps=0), settings, 1000, ROWS)


def step(engine: Any, number: int, tokens: int) -> float:
    """Seconds of a step on so many tokens a row."""
    began = time.perf_counter()
    x = torch.randn(ROWS, tokens, WIDTH, generator=torch.Generator().manual_seed(number))
    engine.backward(engine(x)[0])
    engine.step(number)
    return time.perf_counter() - began


def resident(name: str) -> float:
    """Of this process in MB: VmRSS (now) or VmHWM (the most since it was last reset)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(do: Callable[[], None]) -> dict[str, float]:
    """Peak memory in MB and seconds of something that all ranks do."""
    dist.barrier()
    reset_peak()
    began = time.perf_counter()
    do()
    seconds = time.perf_counter() - began
    return {"peak_mb": resident("VmHWM"), "seconds": seconds}


def ours(engine: Any, folder: Path, tokens: int) -> dict[str, dict[str, float]]:
    """Steps alone, steps beside a save, and a save that is waited for."""
    from omniloom.infra.training.saving import Saver

    number = iter(range(1000))
    for _ in range(2):
        step(engine, next(number), tokens)
    found: dict[str, dict[str, float]] = {}

    def steps() -> None:
        times.extend(step(engine, next(number), tokens) for _ in range(STEPS_BETWEEN))

    times: list[float] = []
    found["steps"] = measured(steps) | {"step_seconds": min(times)}

    saver = Saver(str(folder), {"model": engine}, keep=1)
    waited: list[float] = []
    released = engine.released

    def timed() -> None:
        began = time.perf_counter()
        released()
        waited.append(time.perf_counter() - began)

    engine.released = timed
    done: list[float] = []

    def beside() -> None:
        began = time.perf_counter()
        saver.start(1, {})
        started = time.perf_counter() - began
        thread = saver._save._thread
        threading.Thread(target=lambda: (thread.join(), done.append(time.perf_counter() - began))).start()
        while thread.is_alive() or len(waited) < 2:
            step(engine, next(number), tokens)
        error = saver.finish()
        assert error is None, error
        waited.append(started)

    found["beside"] = measured(beside)
    while not done:
        time.sleep(0.01)
    found["beside"] |= {"pause_seconds": sum(waited), "save_seconds": done[0]}
    engine.released = released
    found["waited for"] = measured(lambda: saver.save(2, {}))
    found["waited for"] |= {name: found["waited for"]["seconds"] for name in ("pause_seconds", "save_seconds")}
    found["loaded"] = measured(lambda: _load(engine, folder))
    return found


def _load(engine: Any, folder: Path) -> None:
    from omniloom.infra.training import checkpoint

    found = checkpoint.latest(str(folder))
    assert found
    checkpoint.load(found, {"model": engine})


def peers(engine: Any, folder: Path) -> dict[str, dict[str, float]]:
    """DeepSpeed's own files, its conversion to a universal checkpoint, and torch's DCP of the same numbers."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

    from omniloom.infra.training.shards import shards

    rank = dist.get_rank()
    found = {"DeepSpeed, by rank": measured(lambda: engine.engine.save_checkpoint(str(folder / "ds"), tag="x"))}

    def convert() -> None:
        if rank == 0:
            from deepspeed.checkpoint.ds_to_universal import main as to_universal

            arguments = argparse.Namespace(
                input_folder=str(folder / "ds" / "x"),
                output_folder=str(folder / "universal"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
            to_universal(arguments)
        dist.barrier()

    found["DeepSpeed, converted on rank 0"] = measured(convert)
    # A key of its own a rank: DCP takes tensors whole, and DeepSpeed's ranges of a flat tensor are no DTensor's.
    state = {f"{rank}/{shard.key}": shard.values for shard in shards(engine)}
    found["DCP"] = measured(lambda: dcp.save(state, storage_writer=FileSystemWriter(folder / "dcp")))
    found["DCP, async"] = measured(lambda: _wait(dcp.async_save(state, storage_writer=FileSystemWriter(folder / "a"))))
    found["DCP, loaded"] = measured(lambda: dcp.load(state, storage_reader=FileSystemReader(folder / "dcp")))
    return found


def _wait(save: Any) -> None:
    save.result()


def _rank(rank: int, ranks: int, folder: str, arguments: argparse.Namespace, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    engine = build(arguments.million, arguments.stage)
    found = ours(engine, Path(folder, "ours"), arguments.tokens)
    if arguments.peers:
        shutil.rmtree(Path(folder, "ours"), ignore_errors=True)
        found |= peers(engine, Path(folder))
    everywhere: list[Any] = [None] * ranks
    dist.all_gather_object(everywhere, found)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(everywhere))
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=int, default=300, help="parameters")
    parser.add_argument("--stage", type=int, default=1, help="of ZeRO")
    parser.add_argument("--tokens", type=int, default=128, help="of each of a rank's 4 rows")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--folder", help="where to write; the temporary folder where not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omniloom-benchmark-", dir=arguments.folder) as folder:
        spawn = torch.multiprocessing.spawn
        spawn(_rank, (arguments.ranks, folder, arguments, sys.path), nprocs=arguments.ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    print(f"{arguments.million} million parameters, {arguments.ranks} ranks, ZeRO {arguments.stage}; worst rank")
    for name in found[0]:
        worst = {key: max(rank[name][key] for rank in found) for key in found[0][name]}
        print(f"{name:32}", "  ".join(f"{key} {value:9.2f}" for key, value in worst.items()))
    most = max(rank["beside"]["peak_mb"] / rank["steps"]["peak_mb"] for rank in found)
    save = found[0]["beside"]["save_seconds"]  # rank 0's ends when the checkpoint counts
    pause = max(rank["beside"]["pause_seconds"] for rank in found)
    share = f"pause {pause:.2f} s = {100 * pause / save:.1f}% of {save:.1f} s"
    print(f"beside: peak {100 * (most - 1):+.1f}% of a step's, {share}")
    return 0 if most <= 1.10 and pause <= 0.05 * save else 1


if __name__ == "__main__":
    sys.exit(main())
