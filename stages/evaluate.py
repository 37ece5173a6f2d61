"""Stage `evaluate`: what the tokenizer and the unified model can do on the held-out split, in figures and in a report.

In: records, tokens, the visual tokenizer where there is one, the trained model, and the studies that the pipeline has;
of a language model only what it reads and writes is measured. Out: `report.html`, `metrics.json`, `pictures/*.png`,
`samples.jsonl`. The model is registered, and gets its alias only where `gate` is passed.
"""
from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra import storage
from stages.base import PLACEMENT, Needs, StageContext

VERSION = 2


class MeasureConfig(BaseModel):
    """How a unified model is measured; `stages.objective_study` measures its models in the same way."""

    model_config = ConfigDict(extra="forbid")
    split: str = Field("test", pattern="^(validation|test)$")
    drawings: int = Field(256, ge=0, description="pictures drawn from held-out captions")
    captions: int = Field(256, ge=0, description="held-out pictures that are described")
    retrieval_captions: int = Field(100, ge=0, description="distinct captions of the split, its own among them, that "
                                    "each described picture is held against; below 2 nothing is ranked")
    texts: int = Field(200, ge=0, description="held-out texts for bits per byte")
    num_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(2.0, ge=0)
    class_examples: int = Field(20, ge=2, description="train pictures a label needs to count as a class")
    class_pixels: int = Field(8, ge=2, description="side of the shrunken pictures for the classifier, coverage "
                              "and the Fréchet distance")
    seed: int = Field(0, ge=0)
    cpus: float = Field(2, gt=0, json_schema_extra=PLACEMENT)
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)


class Config(MeasureConfig):
    reconstructions: int = Field(256, ge=1, description="pictures, and as many videos, that are reconstructed")
    gate: dict[str, float] = Field(default_factory=dict, description="least values of metrics for the alias")
    alias: str = "champion"


def needs(config: Config) -> Needs:
    return Needs(cpus=config.cpus, gpus=config.gpus)


def run(context: StageContext) -> dict:
    import torch

    from stages.evaluation import Evaluation
    from stages.measure_drawing import draw, show_videos
    from stages.measure_tokenizer import codebook, reconstruct
    from stages.measure_writing import describe, read_text, retrieve

    config: Config = context.config
    torch.set_num_threads(max(1, int(config.cpus)))
    evaluation = Evaluation(config, context.inputs, "cuda" if config.gpus and torch.cuda.is_available() else "cpu")
    parts = ((reconstruct, codebook, read_text, draw, describe, retrieve, show_videos) if evaluation.objectives
             else (read_text,))
    for number, part in enumerate(parts):
        context.progress(number, len(parts), "parts")
        part(evaluation)
    context.progress(len(parts), len(parts), "parts")
    _write(context, evaluation)
    return evaluation.metrics


def _write(context: StageContext, evaluation: Any) -> None:
    from stages import evaluation_report, report

    config, output, metrics = context.config, context.output, evaluation.metrics
    failed = {name: (metrics.get(name), least) for name, least in config.gate.items()
              if metrics.get(name) is None or not metrics[name] >= least}  # nothing compares with NaN
    metrics["gate_passed"] = int(not failed)
    for name, picture in evaluation.pictures.items():
        storage.write_bytes(storage.join(output, "pictures", f"{name}.png"), picture)
        context.tracker.log_image(picture, name)
    storage.write_bytes(storage.join(output, "samples.jsonl"), "".join(
        json.dumps(sample, ensure_ascii=False) + "\n" for sample in evaluation.samples).encode())
    storage.write_json(storage.join(output, "metrics.json"), metrics)
    html = report.render(evaluation_report.content(evaluation, failed))
    storage.write_bytes(storage.join(output, "report.html"), html.encode())
    context.tracker.log_text(html, "report.html")
    _register(context, not failed, metrics)


def _register(context: StageContext, passed: bool, metrics: dict) -> None:
    """The model into the registry; the alias only where the gate is passed."""
    from pathlib import Path

    from infra.tracking import register_model

    train = context.inputs["train"]
    folder = train.local() / "model"
    if (name := context.tracker.settings.register_as) is None:
        return
    _, why_not = register_model(context.tracker, folder, Path(__file__).with_name("serving.py"), name,
                                train.fingerprint, alias=context.config.alias if passed else None,
                                metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)},
                                example=[{"prompt": _example(context)}])
    if why_not:
        metrics["not_registered"] = why_not  # a closing line of the run


def _example(context: StageContext) -> str:
    prompts = storage.read_json(context.inputs["train"].file("report", "prompts.json"))
    return ((prompts or {}).get("captions") or ["a picture"])[0]
