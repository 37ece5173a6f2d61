"""What `distill` gained: the teacher at its own steps and at the student's, and the student, on the same captions and
noise.

    omniloom run distill && python tests/benchmarks/few_steps.py runs/demo

Figures: class agreement, coverage and the Fréchet distance of shrunken pixels, as `evaluate` measures them;
the root mean square distance of the drawn latents to those of the teacher at its own steps, where 1 is their deviation;
and the CPU's seconds a picture, tokenizer included, of which the best of three counts. Of the newest distilled model of
the storage.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.models.unified.generation.generate import generate_visual
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.drawing import draw
from omniloom.stages.evaluate.evaluation import Evaluation

TIMED, PAIRED = 32, 96  # pictures
SHOWN = ("image_class_agreement", "image_coverage", "frechet_pixels{}", "frechet_pixels{}_train")


def inputs_of(store: ArtifactStore, model: Artifact) -> dict[str, Artifact]:
    """What an evaluation of the model reads."""
    read = {stage: store.find(stage, name) for stage, name in model.manifest["inputs"].items()}
    tokens = read["pretokenize"]
    records = next(store.find(stage, name) for stage, name in tokens.manifest["inputs"].items() if stage == "ingest")
    tokenizer = next(artifact for stage, artifact in read.items() if stage.startswith("tokenizer"))
    return {"records": records, "tokenizer": tokenizer, "tokens": tokens, "model": model}


class Row:
    """A model and how it is asked to draw."""

    def __init__(self, name: str, inputs: dict[str, Artifact], asked: dict[str, Any], side: int):
        self.name = name
        self.evaluation = Evaluation(EvaluateConfig(**asked, counterfactuals=0, class_pixels=side), inputs, "cpu")
        self.visual = self.evaluation.loom.resolve(self.evaluation.visual())
        self.captions = [self.evaluation.caption(i) for i in self.evaluation.plain]

    def latents(self) -> torch.Tensor:
        loom, captions = self.evaluation.loom, self.captions[:PAIRED]
        grid = loom.grid(1, *loom.size_of(self.visual), self.visual.objective)
        return generate_visual(loom.model, loom.prefixes(captions, None, self.visual), grid, self.visual, 10_000)

    def seconds(self) -> float:
        began = time.process_time()
        self.evaluation.loom.text_to_image(self.captions[:TIMED], self.visual)
        return (time.process_time() - began) / TIMED

    def figures(self, side: int) -> list[float]:
        draw(self.evaluation)
        return [self.evaluation.metrics[name.format(side)] for name in SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--side", type=int, default=8, help="of the shrunken pictures (evaluate.class_pixels)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = ArtifactStore(str(arguments.storage.resolve()))
    student = max(store.all("distill"), key=lambda made: made.manifest["times"]["ended_unix"], default=None)
    if student is None:
        sys.exit(f"{arguments.storage}: no distilled model")
    teacher = store.find("train", student.manifest["inputs"]["train"])
    told, side = student.manifest["config"], arguments.side
    of_student, of_teacher = inputs_of(store, student), {**inputs_of(store, student), "model": teacher}
    guided = {"guidance_scale": told["guidance_scale"]}
    rows = [
        Row("teacher", of_teacher, {**guided, "num_steps": told["teacher_steps"]}, side),
        Row("teacher", of_teacher, {**guided, "num_steps": told["num_steps"]}, side),
        Row("teacher", of_teacher, {"guidance_scale": 1.0, "num_steps": told["num_steps"]}, side),
        Row(told["method"], of_student, {}, side),
    ]
    fine = rows[0].latents()
    seconds = [min(found) for found in zip(*([row.seconds() for row in rows] for _ in range(3)), strict=True)]
    print("model        steps  guidance  agreement  coverage  distance (train's)  to teacher  s/picture  times")
    for row, cost in zip(rows, seconds, strict=True):
        agreement, coverage, distance, floor = row.figures(side)
        apart = float((row.latents() - fine).square().mean().sqrt() / fine.std())
        how = row.visual
        print(
            f"{row.name:<12} {how.num_steps:5}  {how.guidance_scale:8.1f}  {agreement:9.3f}  {coverage:8.3f}  "
            f"{distance:8.3f}  ({floor:6.3f})  {apart:10.3f}  {cost:9.4f}  {seconds[0] / cost:5.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
