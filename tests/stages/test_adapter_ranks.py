"""An adapter on several ranks: the same training whatever divides it, with what is dropped; merged from shards; resumed
on another number of ranks and under another ZeRO stage."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from omniloom.models.text import TextTokenizer
from omniloom.stages.reporting import history


def _rank(rank: int, ranks: int, name: str, folder: str, about: tuple, path: list[str]) -> None:
    sys.path[:] = path
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store-{name}", rank=rank, world_size=ranks)
    from omniloom.stages.train.config import Config
    from omniloom.stages.train.worker import Job, train_worker

    values, tokens, visual, work, killed_at = about
    places = {"output": f"{folder}/{work}/output", "state": f"{folder}/{work}/state"}
    progress = corpora.KilledAt(killed_at) if killed_at else corpora.Silent()
    try:
        train_worker(
            Job(Config.model_validate(values), tokens, visual, **places, progress=progress, tracker=corpora.Silent())
        )
    except (corpora.Killed, RuntimeError):
        if not killed_at:
            raise
        os._exit(0)  # the others lose it, and end too
    dist.destroy_process_group()


def values(llama: Path, ranks: int, zero_stage: int) -> dict:
    return {
        "init_from": str(llama),
        "adapter": {"rank": 4, "alpha": 8.0, "dropout": 0.3, "targets": ["q_proj", "k_proj", "down_proj"]},
        "model": {"time_dim": 16},
        "packing": {"length": 64, "window_rows": 6},
        "batch_rows": 4,
        "steps": 4,
        "seed": 3,
        "optimizer": {"lr": 1e-2, "warmup_steps": 1},
        "engine": {"zero_stage": zero_stage, "ema_decay": 0.5},
        "workers": {"count": ranks, "checkpoint_every": 2, "log_every": 1},
        "validate_every": 4,
        "validation_rows": 2,
        "samples": {"count": 1, "num_steps": 2},
    }


@pytest.mark.slow
def test_ranks_and_zero_stages_do_not_change_what_an_adapter_becomes(tmp_path, visual):
    llama = corpora.language_model(tmp_path / "llama")
    text, rng = TextTokenizer.load(llama / "tokenizer.json"), np.random.default_rng(0)
    rows = corpora.token_rows(text, rng, images=16, videos=2, texts=6, documents=2)
    held_out = corpora.token_rows(text, rng, images=4, videos=1, texts=1, documents=0)
    splits = {"train": [rows], "validation": [held_out]}
    tokens = corpora.pretokenize(tmp_path / "tokens", splits, text, visual_digest=visual.digest)

    def run(name: str, work: str, ranks: int, zero_stage: int, killed_at: int = 0) -> None:
        about = (values(llama, ranks, zero_stage), tokens, visual, work, killed_at)
        arguments = (ranks, name, str(tmp_path), about, sys.path)
        torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)

    run("one", "one", 1, 1)
    run("two", "two", 2, 1)
    run("three", "three", 2, 3)
    run("killed", "moved", 2, 3, killed_at=3)
    run("moved", "moved", 1, 2)
    expected = load_file(tmp_path / "one" / "output" / "model" / "unified.safetensors")
    for work in ("two", "three", "moved"):
        found = load_file(tmp_path / work / "output" / "model" / "unified.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=f"{work}: {name}")
        frozen = [name for name in expected if name.endswith(("norm.weight", "attention.out.weight", "gate_up.weight"))]
        frozen = [name for name in frozen if name.startswith(("blocks.", "norm."))]
        assert len(frozen) == 9
        assert all(torch.equal(found[name], expected[name]) for name in frozen)
        curves = [history.load(str(tmp_path / w / "output" / "report" / "history.jsonl")) for w in ("one", work)]
        losses = [[row["loss"] for row in rows if "loss" in row] for rows in curves]
        assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=1e-4)
        adapters = [load_file(tmp_path / w / "output" / "adapter" / "adapter_model.safetensors") for w in ("one", work)]
        assert adapters[0].keys() == adapters[1].keys() and len(adapters[0]) == 2 * 2 * 3
        for name, value in adapters[0].items():
            torch.testing.assert_close(adapters[1][name], value, rtol=1e-3, atol=1e-4, msg=f"{work}: {name}")
