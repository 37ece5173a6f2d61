"""Equal models, really trained: how often `omniloom compare` calls two trainings different that only their seeds tell
apart, and two recipes that are one.

    python tests/benchmarks/seeds.py runs/demo --out /tmp/seeds                20 models of a finished demo's tokens
    python tests/benchmarks/seeds.py runs/demo --out /tmp/seeds --trainings 5  recipes by five trainings each

Every model is trained by stage train's own worker, in one process, and measured as stage evaluate does: pictures drawn
and described, texts read. What is in the folder already is not made again. Two tests are counted: that of two models by
their items, over all pairs, and that of two recipes by several trainings of each, over 200 draws of as many models for
either side, none of them on both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

import corpora  # noqa: E402

from omniloom.infra.artifacts import Artifact, ArtifactStore  # noqa: E402
from omniloom.infra.training.launch import single_process  # noqa: E402
from omniloom.stages.evaluate import items, over_seeds  # noqa: E402
from omniloom.stages.evaluate.comparing import Comparison, compare  # noqa: E402
from omniloom.stages.evaluate.config import EvaluateConfig  # noqa: E402
from omniloom.stages.evaluate.drawing import draw  # noqa: E402
from omniloom.stages.evaluate.evaluation import Evaluation  # noqa: E402
from omniloom.stages.evaluate.writing import describe, read_text  # noqa: E402
from omniloom.stages.train import worker  # noqa: E402
from omniloom.stages.train.config import Config  # noqa: E402

TRAINING = {
    "model": {"width": 64, "layers": 2, "heads": 2, "time_dim": 32},
    "diffusion": {"predict": "v"},
    "packing": {"length": 256, "mixture": {"image": 0.8, "text": 0.2, "video": 0.0}, "window_rows": 64},
    "batch_rows": 4,
    "optimizer": {"lr": 3.0e-3, "warmup_steps": 20},
    "engine": {"zero_stage": 1, "ema_decay": 0.98},
    "workers": {"count": 1},
    "validate_every": 100_000,
    "samples": {"count": 0},
}
MEASURED = {"drawings": 30, "captions": 30, "texts": 20, "counterfactuals": 0, "num_steps": 6}


def newest(store: ArtifactStore, stage: str) -> Artifact:
    return max(store.all(stage), key=lambda found: found.manifest["times"]["ended_unix"])


def make(folder: Path, inputs: dict[str, Artifact], seed: int, steps: int) -> None:
    config = Config.model_validate({**TRAINING, "seed": seed, "steps": steps})
    places = {"output": str(folder / "output"), "state": str(folder / "state")}
    silent = corpora.Silent()
    worker.train_worker(
        worker.Job(config, inputs["tokens"], inputs["tokenizer"], progress=silent, tracker=silent, **places)
    )
    asked = EvaluateConfig.model_validate(MEASURED)
    model, training = folder / "output" / "model", config.model_dump(mode="json")
    evaluation = Evaluation(asked, inputs, "cpu", folder=model, training=training)
    for part in (read_text, draw, describe):
        part(evaluation)
    items.write(str(folder), evaluation.items)


def told(what: str, comparisons: list[Comparison]) -> None:
    different = [found for found in comparisons if found.decision != "undecided"]
    print(f"{what}: {len(different)} of {len(comparisons)} called different ({len(different) / len(comparisons):.1%})")
    names = [figure.measure for found in different for figure in found.figures if figure.decision != "undecided"]
    for name in sorted(set(names)):
        print(f"  by {name}: {names.count(name)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("storage", help="of a finished pipeline, such as runs/demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--trainings", type=int, default=3, help="of each recipe")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = ArtifactStore(asked.storage)
    tokens = newest(store, "pretokenize")
    tokenizer = store.find("tokenizer_joint", tokens.manifest["inputs"]["tokenizer_joint"])
    assert tokenizer, "the tokens' tokenizer is gone"
    inputs = {"records": newest(store, "ingest"), "tokens": tokens, "tokenizer": tokenizer}
    found = []
    with single_process():
        for seed in range(asked.models):
            folder, began = asked.out / str(seed), time.process_time()
            if not (folder / items.FILE).exists():
                make(folder, inputs, seed, asked.steps)
                print(f"model {seed}: {time.process_time() - began:.1f} CPU s", flush=True)
            found.append(items.read(str(folder)) or {})
    for name in sorted(found[0]):
        means = np.array([held[name].mean for held in found])
        print(f"{name:32} {means.mean():.4g} +- {means.std(ddof=1):.2g} over seeds")
    told("two models, by items", [compare(a, b) for a, b in itertools.combinations(found, 2)])
    rng, count = np.random.default_rng(0), asked.trainings
    draws = [rng.permutation(len(found))[: 2 * count] for _ in range(200)]
    sides = [([found[n] for n in chosen[:count]], [found[n] for n in chosen[count:]]) for chosen in draws]
    told(f"two recipes, by {count} trainings each", [over_seeds.compare(*pair) for pair in sides])


if __name__ == "__main__":
    main()
