"""Rows that several ranks share out: what is refused, which rank has which rows, and trainings by real ranks that agree
with one rank's, also where they go on with another division."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.launch import single_process
from omniloom.infra.training.ranks import run_on_ranks
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.replay import Replay, replay
from omniloom.stages.reporting import history
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train.config import Config
from omniloom.stages.train.job import Job
from omniloom.stages.train.replayed import parts
from omniloom.stages.train.rows import RowLoader
from omniloom.stages.train.worker import train_worker


def config(count: int = 1, size: int = 1, **fields) -> Config:
    """`count` workers, of which `size` share rows out."""
    engine = {"ema_decay": 0.9, "sequence_parallel": size, **fields.pop("engine", {})}
    workers = {"count": count, "checkpoint_every": 3, "log_every": 1, **fields.pop("workers", {})}
    return Config.model_validate(
        {
            "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 1, "time_dim": 16},
            "packing": {"length": 67, "window_rows": 6},
            "batch_rows": 4,
            "steps": 6,
            "seed": 3,
            "optimizer": {"lr": 5e-3, "warmup_steps": 3},
            "validate_every": 6,
            "validation_rows": 3,
            "samples": {"count": 0},
            "engine": engine,
            "workers": workers,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, visual):
    text, rng = corpora.text_tokenizer(), np.random.default_rng(0)
    train = corpora.token_rows(text, rng, images=30, videos=6, texts=8, documents=6)
    held_out = corpora.token_rows(text, rng, images=6, videos=1, texts=2, documents=0)
    return corpora.pretokenize(
        tmp_path_factory.mktemp("tokens") / "tokens",
        {"train": [train], "validation": [held_out]},
        text,
        visual_digest=visual.digest,
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"count": 2, "size": 4}, "engine.sequence_parallel: expected a divisor of workers.count 2, got 4"),
        ({"count": 8, "size": 8}, "sequence_parallel: expected a divisor of the attention heads, model.heads = 4"),
        ({"count": 2, "size": 0}, "greater than or equal to 1"),
        ({"count": {"min": 2, "max": 4}, "size": 2}, "sequence_parallel: expected 1 with a range of workers.count"),
        (
            {"count": 4, "size": 2, "batch_rows": 3},
            "batch_rows: 3 does not divide by workers.count \\* accumulate / engine.sequence_parallel = 2",
        ),
        (
            {"count": 4, "size": 4, "model": {"block": "gau", "width": 32, "heads": 4, "hidden": 48}},
            "hidden / head_dim = 6, got 4",
        ),
        (
            {"count": 2, "size": 2, "init_from": "/some/llama", "adapter": {"rank": 2, "dropout": 0.1}},
            "adapter.dropout: expected 0 with engine.sequence_parallel 2",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_shared_out_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        config(**fields)


def test_an_objective_that_needs_all_predictions_at_once_is_named(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "next_code", replace(OBJECTIVES["next_code"], separable=False))
    with pytest.raises(ValidationError, match="engine.sequence_parallel: expected 1 with next_code"):
        config(2, 2, objectives={"latent_diffusion": 1, "next_code": 1})
    assert config(2, 1, objectives={"next_code": 1}).trained == ("next_code",)


def test_tokenizers_have_no_rows():
    with pytest.raises(ValidationError, match="sequence_parallel"):
        TokenizerConfig.model_validate({"engine": {"sequence_parallel": 1}})


def test_a_checkpoint_s_heads_are_asked_for_once_it_is_read():
    with pytest.raises(ValueError, match="engine.sequence_parallel: expected a divisor of the attention heads"):
        config(3, 3, init_from="/some/llama", batch_rows=3).check_model(UnifiedConfig(vocab_size=9, width=32, heads=4))


def test_ranks_side_by_side_take_the_same_rows():
    workers = WorkersConfig(count=8, accumulate=2)
    taken = [workers.division(16, rank, 8, 4) for rank in range(8)]
    assert taken[:4] == [[range(0, 4), range(4, 8)]] * 4 and taken[4:] == [[range(8, 12), range(12, 16)]] * 4
    assert workers.division(16, 1, 4, 4) == [range(at, at + 4) for at in (0, 4, 8, 12)]  # no pass has more rows


def test_the_loaders_of_a_group_give_the_same_rows_and_noise(tokens):
    from omniloom.stages.train.config import unified_config, visual_sizes

    held = TokenSet(tokens, "train")
    shape = unified_config(config(), held.facts["vocab_size"], visual_sizes(held.facts), held.facts["specials"])

    def given(rank: int, ranks: int, size: int) -> list[tuple[list[int], list[list[int]]]]:
        loader = RowLoader(held, shape, config(ranks, size), rank, ranks)
        found = [(seeds, batch.ids.tolist()) for step in range(3) for batch, seeds in loader.at(step)]
        loader.close()
        return found

    alone = given(0, 1, 1)
    assert given(0, 2, 2) == given(1, 2, 2) == alone
    halves = [given(rank, 4, 2) for rank in range(4)]
    assert halves[0] == halves[1] and halves[2] == halves[3]
    rows = [[row for part in both for row in part[1]] for both in zip(halves[0], halves[2], strict=True)]
    assert rows == [ids for _, ids in alone]


# ---- trainings by real ranks ----


def _on_rank(path: list[str], jobs: list[tuple[str, Config]], tokens, visual) -> None:
    sys.path[:0] = path
    for folder, settings in jobs:
        output, state = (str(Path(folder, name)) for name in ("output", "state"))
        train_worker(Job(settings, tokens, visual, output, state, corpora.Silent(), corpora.Silent()))


def train(jobs: dict[Path, Config], tokens, visual) -> None:
    """Each in its folder, those of one number of workers by the same processes."""
    for count in sorted({settings.workers.count for settings in jobs.values()}):
        mine = [(str(folder), settings) for folder, settings in jobs.items() if settings.workers.count == count]
        run_on_ranks(_on_rank, count, sys.path, mine, tokens, visual)


def outcome(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The curves without what depends on the clock, and the weights."""
    rows = history.load(str(folder / "output" / "report" / "history.jsonl"))
    curves = [{name: value for name, value in row.items() if not name.endswith("per_second")} for row in rows]
    return curves, load_file(folder / "output" / "model" / "unified.safetensors")


def agree(found: Path, wanted: Path) -> None:
    (curves, weights), (others, like) = outcome(found), outcome(wanted)
    assert len(curves) == len(others) > 6 and any("validation_text_loss" in row for row in curves)
    for row, other in zip(curves, others, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name, value in like.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-5, msg=name)


MIX = {
    "objectives": {"latent_diffusion": 1.0, "next_code": 1.0, "masked_code": 1.0},
    "packing": {"length": 67, "window_rows": 6, "caption_first": 0.7},
    "optimizer": {"lr": 5e-3, "warmup_steps": 3, "schedule": "constant"},
}


def divided(count: int, size: int, stage: int, **fields) -> Config:
    return config(count, size, engine={"zero_stage": stage}, **MIX, **fields)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokens, visual) -> Path:
    """What one rank trains that has each row for itself."""
    folder = tmp_path_factory.mktemp("alone")
    train({folder: divided(1, 1, 1)}, tokens, visual)
    return folder


@pytest.mark.slow
def test_ranks_that_share_rows_out_train_as_one(tmp_path, alone, tokens, visual):
    divisions = [(2, 1, 1), (2, 2, 0), (2, 2, 1), (2, 2, 3), (4, 2, 2), (4, 4, 1)]
    train({tmp_path / f"{one}": divided(*one) for one in divisions}, tokens, visual)
    for one in divisions:
        agree(tmp_path / f"{one}", alone)


@pytest.mark.slow
def test_it_goes_on_with_another_division(tmp_path, alone, tokens, visual):
    changes = [((2, 2, 1), (1, 1, 1)), ((2, 1, 3), (4, 2, 1)), ((4, 2, 2), (2, 2, 3))]
    train({tmp_path / f"{one[0]}": divided(*one[0], steps=3) for one in changes}, tokens, visual)
    train({tmp_path / f"{one[0]}": divided(*one[1]) for one in changes}, tokens, visual)
    for one in changes:
        agree(tmp_path / f"{one[0]}", alone)


@pytest.mark.slow
def test_a_step_is_replayed_by_ranks_that_share_rows_out(tmp_path, alone, tokens, visual):
    """Each document's loss and gradient norm are those that one rank finds."""
    train({tmp_path: divided(2, 2, 1)}, tokens, visual)

    def replayed(folder: Path, settings: Config) -> dict:
        job = Job(settings, tokens, visual, "", "", corpora.Silent(), corpora.Silent())
        curve = [row for row in history.load(str(folder / "state" / "history.jsonl")) if "loss" in row]
        return replay(Replay(parts, job, str(folder / "state"), 4, curve, [], settings.workers.count, 4))

    with single_process():
        wanted = replayed(alone, divided(1, 1, 1))
    found = replayed(tmp_path, divided(2, 2, 1))
    assert wanted["equal"] and found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert len(found["documents"]) == len(wanted["documents"]) > 4
    by_place = [{(d["id"], d["row"], d["task"]): d for d in one["documents"]} for one in (found, wanted)]
    assert by_place[0].keys() == by_place[1].keys()
    for place, document in by_place[0].items():
        figures = [{name: d[name] for name in ("loss", "grad_norm")} for d in (document, by_place[1][place])]
        assert figures[0] == pytest.approx(figures[1], rel=1e-4)
