"""A corpus of which some pictures have another's caption, really: how many a scorer finds that nobody told.

    python tests/benchmarks/recaption.py digits --out /tmp/noisy              the demo's digits
    python tests/benchmarks/recaption.py emoji --images DIR --out /tmp/noisy  DIR/emoji and DIR/manifest.jsonl

Ingest, the captions of a share of the train split changed for those of other pictures (of digits: of another digit),
`train_scorer` with folds by its own worker in one process, and `recaption` without a model. What is in the folder
already is not made again. Wrong is a changed caption that says another thing than the picture's own; the stages read
nothing of which those are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

import corpora  # noqa: E402

from omniloom.infra import storage  # noqa: E402
from omniloom.infra.artifacts import Artifact  # noqa: E402
from omniloom.infra.training.launch import single_process  # noqa: E402
from omniloom.stages.base import StageContext  # noqa: E402
from omniloom.stages.data import records  # noqa: E402
from omniloom.stages.ingest import stage as ingest  # noqa: E402
from omniloom.stages.recaption import stage as recaption  # noqa: E402
from omniloom.stages.scorer import stage as scorer  # noqa: E402
from omniloom.stages.scorer.job import Job  # noqa: E402
from omniloom.stages.scorer.worker import train_worker  # noqa: E402

_SPLITS = {"train": 0.85, "validation": 0.05, "test": 0.1}


class Told(corpora.Silent):
    """Says on the terminal what validations give."""

    def measured(self, step: int, figures: Any) -> None:
        print(step, {name: round(value, 3) for name, value in figures.items()}, flush=True)


def clean(corpus: str, images: str | None, out: Path) -> None:
    captions: dict[str, Any] = {"manifest": "manifest.jsonl"}
    source: dict[str, Any] = {"kind": "image_folder", "uri": "digits://images", "captions": captions}
    if corpus == "digits":
        captions["group_field"] = "group"
    else:
        source |= {"uri": images, "include": f"{corpus}/*"}
    config = ingest.Config.model_validate({"sources": [source], "splits": _SPLITS})
    places = {"output": str(out / "clean"), "state": str(out / "clean-state")}
    ingest.listing(config)
    ingest.run(SimpleNamespace(config=config, predecessor=None, progress=lambda *a, **k: None, **places))  # type: ignore[arg-type]


def noisy(corpus: str, out: Path, share: float, seed: int) -> None:
    """The records with captions changed, and by path which of them say another thing than their picture's own."""
    rows = list(records.iterate(str(out / "clean")))
    train = [i for i, row in enumerate(rows) if row["split"] == "train" and row["captions"]]
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(train)[: round(share * len(train))]
    said = [rows[i] for i in np.roll(chosen, 1)]
    wrong = []
    for i, other in zip(chosen, said, strict=True):
        if other["label" if corpus == "digits" else "caption"] != rows[i]["label" if corpus == "digits" else "caption"]:
            wrong.append(rows[i]["path"])
        rows[i] = {**rows[i], "caption": other["caption"], "captions": other["captions"]}
    records.write_shard(str(out / "noisy" / records.shard_name(0)), rows)
    storage.write_json(str(out / "wrong.json"), {"wrong": wrong})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("corpus", choices=("digits", "emoji"))
    parser.add_argument("--images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wrong", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scorer", type=json.loads, default={}, help="fields of train_scorer, as JSON")
    asked = parser.parse_args()
    if not (asked.out / "clean").exists():
        clean(asked.corpus, asked.images, asked.out)
    if not (asked.out / "wrong.json").exists():
        noisy(asked.corpus, asked.out, asked.wrong, asked.seed)
    held = corpora.seal(asked.out / "noisy", "ingest")
    began, used = time.time(), time.process_time()
    fields = {"folds": 2, "workers": {"count": 1, "checkpoint_every": 50}, **asked.scorer}
    made = trained(scorer.Config.model_validate(fields), held, asked.out / "scorer")
    print(f"scorer: {time.time() - began:.0f} s, {time.process_time() - used:.0f} CPU s")
    places = (str(asked.out / "recaption"), corpora.Silent(), corpora.Silent())
    inputs = {"records": held, "scorer": made}
    storage.remove(places[0])
    metrics = recaption.run(StageContext("recaption", "0" * 64, recaption.Config(), inputs, *places))
    lines = storage.read_bytes(f"{places[0]}/output/recaption/decisions.jsonl").decode().splitlines()
    report(lines, set(storage.load_json(str(asked.out / "wrong.json"))["wrong"]), metrics)


def trained(config: scorer.Config, held: Artifact, out: Path) -> Artifact:
    output = out / "output"
    if not (output / "scorer.json").exists():
        words = str(out / "tokenizer.json")
        storage.write_bytes(words, scorer._words(config, held).encode())
        with single_process():
            train_worker(Job(config, held, words, str(output), str(out / "state"), Told(), Told()))
    found = storage.load_json(str(out / "state" / "metrics.json"))
    print({name: value for name, value in found.items() if "recall" in name or "best" in name or "retrieval" in name})
    return corpora.seal(output, "train_scorer", config)


def report(lines: list[str], wrong: set[str], metrics: dict) -> None:
    told = [json.loads(line) for line in lines]
    gone = {line["path"] for line in told if line["outcome"] == "dropped"}
    right = {line["path"] for line in told} - wrong
    print(f"{len(told)} captions to train on, {len(wrong)} of them wrong")
    print(f"found {len(gone & wrong) / len(wrong):.1%} of the wrong ones, {len(gone & right) / len(right):.1%} false")
    figures = {name: round(metrics[f"recaption_{name}"], 4) for name in ("wrong", "threshold", "found", "false")}
    print(f"as the stage estimates: {figures}")
    scores = {line["path"]: line["before"][0][1] for line in told if line["before"]}
    pairs = np.array([(scores[path], path in wrong) for path in scores])
    order = pairs[np.argsort(pairs[:, 0]), 1]
    false = np.cumsum(1 - order) / (1 - order).sum()
    found = np.cumsum(order) / order.sum()
    print(f"with the best threshold, which nobody knows: found {found[false <= 0.05].max():.1%} at 5% false")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
