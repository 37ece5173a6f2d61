"""Poisoned documents: a training that goes back leaves out just them, and learns as if they had never been there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import corpora
import numpy as np
import pytest

from omniloom.infra import storage
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train.worker import Job, train_worker

WORDS = ["red", "green", "blue", "square", "moves", "the", "a"]


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def corpus(folder: Path, count: int, poisoned: int, seed: int = 0):
    """Texts that count through the words from a random one on, of which some hold noise in as many tokens: the
    artifact, the one without noise, and the files that are poisoned."""
    text, rng = corpora.text_tokenizer(), np.random.default_rng(seed)
    bad = set(rng.choice(count, poisoned, replace=False).tolist())
    clean, held_out = [], []
    for number in range(count + 40):
        first, length = rng.integers(len(WORDS)), rng.integers(8, 14)
        ids = text.encode(" ".join(WORDS[(first + n) % len(WORDS)] for n in range(length)))
        row = {
            "id": hashlib.sha256(str(number).encode()).hexdigest(),
            "kind": "text",
            "label": None,
            "source": "texts",
            "path": f"{number}.txt",
            "bytes": 1,
            "segments": [{"kind": "text", "loss": True, "ids": ids}],
        }
        (clean if number < count else held_out).append(row)

    def noise(row: dict) -> dict:
        ids = rng.integers(0, 256, len(row["segments"][0]["ids"]))
        return row | {"segments": [{"kind": "text", "loss": True, "ids": ids.tolist()}]}

    mixed = [noise(row) if number in bad else row for number, row in enumerate(clean)]
    made = [
        corpora.pretokenize(
            folder / name, {"train": [rows[: count // 2], rows[count // 2 :]], "validation": [held_out]}, text
        )
        for name, rows in (("mixed", mixed), ("clean", clean))
    ]
    return *made, {f"{number}.txt" for number in bad}


def config(steps: int, **engine) -> train_unified.Config:
    return train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
            "objectives": {},
            "packing": {"length": 96, "window_rows": 32},
            "batch_rows": 2,
            "steps": steps,
            "optimizer": {"lr": 1e-2, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9, "spike_window": 32, **engine},
            "workers": {"count": 1, "checkpoint_every": 20, "log_every": 1},
            "validate_every": 1000,
            "validation_rows": 4,
        }
    )


def train(folder: Path, tokens, settings) -> dict:
    places = {"output": str(folder / "output"), "state": str(folder / "state"), "tracker": corpora.Silent()}
    train_worker(Job(settings, tokens, None, progress=corpora.Silent(), **places))
    return storage.load_json(str(folder / "state" / "metrics.json"))


def left_out(folder: Path) -> list[dict]:
    found = storage.load_json(str(folder / "output" / "report" / "bad_steps.json"))["found"]
    steps = [bad["step"] for bad in found]
    assert len(set(steps)) == len(steps)  # none was bad again without its documents
    return [document for bad in found for document in bad["documents"]]


def check(tmp_path: Path, count: int, poisoned: int, steps: int, tolerance: float) -> None:
    mixed, clean, bad = corpus(tmp_path / "corpus", count, poisoned)
    metrics = train(tmp_path / "mixed", mixed, config(steps, on_bad_step="rollback"))
    found = left_out(tmp_path / "mixed")
    named = {document["path"] for document in found}
    print(f"{len(bad & named)} of {len(bad)} named, {len(named - bad)} innocent; {metrics}")
    assert named >= bad and len(named - bad) <= 2
    assert metrics["documents_left_out"] == len(found) and metrics["bad_steps"] >= 1
    tokens = TokenSet(mixed, "train")
    places = {tokens.origin(index)["path"]: tokens.origin(index) for index in range(len(tokens))}
    assert all(document | places[document["path"]] == document for document in found)
    loss = train(tmp_path / "clean", clean, config(steps))["validation_text_loss"]
    assert metrics["validation_text_loss"] == pytest.approx(loss, rel=tolerance)


def test_three_among_two_hundred(tmp_path):
    # The steps of before the first was found count among so few.
    check(tmp_path, 200, 3, steps=110, tolerance=0.05)


@pytest.mark.slow
def test_ten_among_ten_thousand(tmp_path):
    check(tmp_path, 10_000, 10, steps=1100, tolerance=0.01)
