"""Trainings that are killed and go on under other ranks, ZeRO stages and accumulation, against an undisturbed one.

    python tests/chaos/elastic.py --schedules 20 --seed 0

A schedule is drawn from its seed: ranks are killed at random steps, between steps or while a checkpoint is written; the
group then starts again with another number of ranks, another ZeRO stage and another accumulation. Every fourth keeps
what it began with. Each is the whole `train` stage's worker on gloo. Of each it is asked:

    rows      in every step the multiset of (documents and how they are arranged, seed of the noise) that the ranks have
              collated, of the attempt that the training went on from, equals the undisturbed run's
    losses    of every step within 1e-5 of the undisturbed run's
    weights   equal bit for bit, where ranks, stage and accumulation stayed the same, to those of the undisturbed run of
              that division
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
STEPS, ROWS, EVERY = 10, 8, 2
LIMIT = 300.0  # seconds of one attempt


@dataclass(frozen=True)
class Attempt:
    """A start of the group: how it is divided, and the step at which which rank is killed (none: it comes to the end),
    `saving` while it writes a checkpoint."""

    ranks: int
    stage: int
    accumulate: int
    kill_step: int | None = None
    kill_rank: int = 0
    saving: bool = False

    @property
    def told(self) -> str:
        end = "" if self.kill_step is None else f" killed {'saving ' if self.saving else ''}{self.kill_step}"
        return f"{self.ranks}xZ{self.stage}/{self.accumulate}{end}"


def schedule(seed: int) -> list[Attempt]:
    """One to three kills and an end; every fourth seed keeps ranks, stage and accumulation."""
    draw = random.Random(seed)

    def division() -> dict[str, int]:
        ranks = draw.choice([1, 2, 3, 4])
        return {"ranks": ranks, "stage": draw.randrange(4), "accumulate": 1 if ranks == 3 else draw.choice([1, 2])}

    attempts, first = [], division() | ({"ranks": 2} if seed % 4 == 0 else {})
    for number in range(draw.randint(1, 3)):
        divided = first if seed % 4 == 0 or not number else division()
        kill = draw.randrange(1, STEPS)
        victim = {"kill_step": kill, "kill_rank": draw.randrange(divided["ranks"]), "saving": draw.random() < 0.3}
        attempts.append(Attempt(**divided, **victim))
    return [*attempts, Attempt(**(first if seed % 4 == 0 else division()))]


# ---- one rank ----


def _config(attempt: Attempt) -> Any:
    from omniloom.stages.train.config import Config

    return Config.model_validate(
        {
            "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
            "packing": {"length": 64, "window_rows": 6, "condition_dropout": 0.3},
            "objectives": {"latent_diffusion": 1.0, "next_code": 1.0},
            "batch_rows": ROWS,
            "steps": STEPS,
            "seed": 3,
            "optimizer": {"lr": 3e-3, "warmup_steps": 3},
            "engine": {"zero_stage": attempt.stage, "ema_decay": 0.9},
            "workers": {
                # Three of four workers divide the rows unevenly, which a number alone may not ask for.
                "count": {"min": 1, "max": 4} if attempt.ranks == 3 else attempt.ranks,
                "accumulate": attempt.accumulate,
                "checkpoint_every": EVERY,
                "log_every": 1,
            },
            "validate_every": STEPS,
            "validation_rows": 3,
            "samples": {"count": 0},
        }
    )


def _rank(rank: int, attempt: Attempt, number: int, folder: str, tokens: Any, visual: Any) -> None:
    sys.path.insert(0, str(TESTS))
    import corpora
    import torch
    import torch.distributed as dist

    from omniloom.stages.train.job import Job
    from omniloom.stages.train.worker import train_worker

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(attempt.ranks)}
    torch.set_num_threads(1)
    record(Path(folder, "seen", f"{number:02d}-{rank}.jsonl"))
    if attempt.kill_step is not None and rank == attempt.kill_rank:
        _kill(attempt)
    dist.init_process_group("gloo", f"file://{folder}/store-{number}", rank=rank, world_size=attempt.ranks)
    places = {"output": f"{folder}/output", "state": f"{folder}/state"}
    train_worker(Job(_config(attempt), tokens, visual, **places, progress=corpora.Silent(), tracker=corpora.Silent()))
    dist.destroy_process_group()


def record(file: Path) -> None:
    """Write down what this rank collates: by step, for each of its rows what stands in it and its seed."""
    from omniloom.stages.data.documents import Documents
    from omniloom.stages.train.rows import RowLoader

    file.parent.mkdir(parents=True, exist_ok=True)
    segments, load = Documents.segments, RowLoader._load
    placed: list[Any] = []

    def noted(self: Documents, what: Any, seed: int | None = None) -> Any:
        placed.append(what)
        return segments(self, what, seed)

    def loaded(self: RowLoader, step: int) -> Any:
        placed.clear()
        found = load(self, step)
        rows, there = [], iter(placed)
        for micro, seeds in found[0]:
            for seed, row in zip(seeds, micro.document_index, strict=True):
                rows.append([seed, [_told(next(there)) for _ in range(int(row.max()) + 1)]])
        with file.open("a") as out:
            out.write(json.dumps({"step": step, "rows": rows}) + "\n")
        return found

    Documents.segments, RowLoader._load = noted, loaded  # type: ignore[method-assign]


def _told(placed: Any) -> str:
    return repr({name: sorted(v) if isinstance(v, frozenset) else v for name, v in vars(placed).items()})


def _kill(attempt: Attempt) -> None:
    """This process ends by SIGKILL at the step, or at the first save from then on."""
    from omniloom.infra.training import tensors
    from omniloom.stages.train.trainer import UnifiedTrainer

    step_of, write = UnifiedTrainer.train_step, tensors.write
    due = [False]

    def train_step(self: UnifiedTrainer, step: int, batch: Any) -> Any:
        due[0] = step >= (attempt.kill_step or 0)
        if due[0] and not attempt.saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return step_of(self, step, batch)

    def writes(*arguments: Any) -> Any:
        found = write(*arguments)
        if due[0] and attempt.saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    UnifiedTrainer.train_step, tensors.write = train_step, writes  # type: ignore[method-assign]


# ---- all of them ----


def start(context: Any, attempt: Attempt, number: int, folder: Path, corpus: tuple[Any, Any]) -> bool:
    """Whether the attempt came to its end; where one rank is gone the others are ended, as Ray Train does."""
    ranks = [
        context.Process(target=_rank, args=(rank, attempt, number, str(folder), *corpus))
        for rank in range(attempt.ranks)
    ]
    for process in ranks:
        process.start()
    until = time.monotonic() + LIMIT
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks) or time.monotonic() > until:
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    for process in ranks:
        process.join()
    return all(process.exitcode == 0 for process in ranks)


@dataclass
class Outcome:
    """What a run of attempts gave: rows by step, losses by step, the weights' file."""

    rows: dict[int, list[str]]
    losses: dict[int, float]
    weights: bytes


def run(context: Any, attempts: list[Attempt], folder: Path, corpus: tuple[Any, Any]) -> Outcome:
    for number, attempt in enumerate(attempts):
        done = start(context, attempt, number, folder, corpus)
        if done != (attempt.kill_step is None):
            # A kill that is due at a save after the last one lets the attempt end: there is nothing left to do then.
            if done:
                break
            raise AssertionError(f"{attempt.told} did not come to its end; see {folder}")
    history = [json.loads(line) for line in (folder / "output" / "report" / "history.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in history if "loss" in row}
    return Outcome(_rows(folder), losses, (folder / "output" / "model" / "unified.safetensors").read_bytes())


def _rows(folder: Path) -> dict[int, list[str]]:
    """By step what the ranks of the last attempt that collated it had; steps that are loaded ahead of the end are not
    trained."""
    found: dict[int, dict[int, list[str]]] = {}
    for file in sorted((folder / "seen").iterdir()):
        number = int(file.name.partition("-")[0])
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["step"] < STEPS:
                found.setdefault(row["step"], {}).setdefault(number, []).extend(map(json.dumps, row["rows"]))
    return {step: sorted(by_attempt[max(by_attempt)]) for step, by_attempt in found.items()}


def corpus_in(folder: Path) -> tuple[Any, Any]:
    sys.path.insert(0, str(TESTS))
    import corpora
    import numpy as np

    visual, text, rng = corpora.tokenizer(folder / "tokenizer"), corpora.text_tokenizer(), np.random.default_rng(0)
    train = corpora.token_rows(text, rng, images=30, videos=6, texts=8, documents=6)
    held_out = corpora.token_rows(text, rng, images=6, videos=1, texts=2, documents=0)
    splits = {"train": [train[:20], train[20:]], "validation": [held_out]}
    return corpora.pretokenize(folder / "tokens", splits, text, visual_digest=visual.digest), visual


def compare(schedules: list[int], folder: Path) -> list[dict[str, Any]]:
    """A row of facts a schedule."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["omniloom.stages.train.worker", "omniloom.stages.train.job", "deepspeed"])
    corpus = corpus_in(folder)
    plain = run(context, [Attempt(1, 1, 1)], folder / "plain", corpus)
    undisturbed: dict[Attempt, Outcome] = {}
    table = []
    for seed in schedules:
        attempts = schedule(seed)
        began = time.monotonic()
        found = run(context, attempts, folder / f"{seed}", corpus)
        same = len({(a.ranks, a.stage, a.accumulate) for a in attempts}) == 1
        if same and attempts[-1] not in undisturbed:
            undisturbed[attempts[-1]] = run(context, attempts[-1:], folder / f"{seed}-undisturbed", corpus)
        apart = max(abs(found.losses[step] - loss) for step, loss in plain.losses.items())
        table.append(
            {
                "schedule": seed,
                "attempts": ", ".join(attempt.told for attempt in attempts),
                "rows": found.rows == plain.rows,
                "losses apart": apart,
                "weights": found.weights == undisturbed[attempts[-1]].weights if same else None,
                "seconds": time.monotonic() - began,
            }
        )
        print(_line(table[-1]), flush=True)
    return table


def holds(row: dict[str, Any]) -> bool:
    return row["rows"] and row["losses apart"] <= 1e-5 and row["weights"] is not False


def _line(row: dict[str, Any]) -> str:
    words = {True: "equal", False: "DIFFER", None: "-"}
    return (
        f"{row['schedule']:>3} | {words[row['rows']]} | {row['losses apart']:.1e} | {words[row['weights']]} | "
        f"{row['seconds']:.0f} s | {row['attempts']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    arguments = parser.parse_args()
    print(
        "schedule | rows of each step | losses apart at most | weights (same division) | time | ranks x ZeRO / passes"
    )
    with tempfile.TemporaryDirectory(prefix="omniloom-elastic-") as folder:
        table = compare(list(range(arguments.seed, arguments.seed + arguments.schedules)), Path(folder))
    held = sum(map(holds, table))
    print(f"{held} of {len(table)} hold")
    return 0 if held == len(table) else 1


if __name__ == "__main__":
    sys.exit(main())
