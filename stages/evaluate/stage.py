"""Stage `evaluate`: what the tokenizer and the unified model can do on the held-out split, in figures and in a report.

In: records, tokens, the visual tokenizer where there is one, the trained model, and the studies that the pipeline has;
of a language model only what it reads and writes is measured. Out: `report.html`, `metrics.json`, `pictures/*.png`,
`samples.jsonl`. The model is registered, and gets its alias only where a `gate` is given and passed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from omniloom.infra import storage
from omniloom.infra.errors import within
from omniloom.infra.figures import finite
from omniloom.stages.base import PLACEMENT, Needs, StageContext
from omniloom.stages.evaluate.gate import Gate, judge
from omniloom.stages.evaluate.measures import measured, named

VERSION = 3
SERVING = Path(__file__).parents[1] / "inference" / "serving.py"  # kept as source with each registered model


class MeasureConfig(BaseModel):
    """How a unified model is measured; `stages.studies.objectives` measures its models in the same way."""

    model_config = ConfigDict(extra="forbid")
    split: str = Field(
        "test",
        pattern="^(validation|test)$",
        description="what is measured on; items are drawn from it by the seed, evenly over sources and labels",
    )
    drawings: int = Field(256, ge=0, description="pictures drawn from held-out captions")
    captions: int = Field(256, ge=0, description="held-out pictures that are described")
    retrieval_captions: int = Field(
        100,
        ge=0,
        description="distinct captions of the split, its own among them, that "
        "each described picture is held against; below 2 nothing is ranked",
    )
    texts: int = Field(200, ge=0, description="held-out texts for bits per byte")
    num_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(2.0, ge=0)
    class_examples: int = Field(20, ge=2, description="train pictures a label needs to count as a class")
    class_pixels: int = Field(
        8, ge=2, description="side of the shrunken pictures for the classifier, coverage and the Fréchet distance"
    )
    seed: int = Field(0, ge=0, lt=1 << 63)
    cpus: float = Field(2, gt=0, json_schema_extra=PLACEMENT)
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)


class Config(MeasureConfig):
    reconstructions: int = Field(256, ge=1, description="pictures, and as many videos, that are reconstructed")
    gate: Gate = Field(
        default_factory=Gate,
        description="bounds of figures, such as {caption_accuracy: {min: 0.9}, "
        "bits_per_byte: {max: 2.5}, better_than_champion: caption_accuracy}; the model gets the alias "
        "where all hold, and never without a gate",
    )
    alias: str = Field("champion", description="of the model in the registry that passed the gate last")


def needs(config: Config) -> Needs:
    return Needs(cpus=config.cpus, gpus=config.gpus)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """That the gate is of figures that are measured of the model that is trained."""
    if model := upstream.get("model"):
        with within("gate"):
            config.gate.check(measured(config, model.trained))


def run(context: StageContext) -> dict:
    import torch

    from omniloom.stages.evaluate.drawing import draw, show_videos
    from omniloom.stages.evaluate.evaluation import Evaluation
    from omniloom.stages.evaluate.tokenizer import codebook, reconstruct
    from omniloom.stages.evaluate.writing import describe, read_text, retrieve

    config: Config = context.config
    torch.set_num_threads(max(1, int(config.cpus)))
    evaluation = Evaluation(config, context.inputs, "cuda" if config.gpus and torch.cuda.is_available() else "cpu")
    parts = (
        (reconstruct, codebook, read_text, draw, describe, retrieve, show_videos)
        if evaluation.objectives
        else (read_text,)
    )
    for number, part in enumerate(parts):
        context.progress(number, len(parts), "parts")
        part(evaluation)
    context.progress(len(parts), len(parts), "parts")
    _write(context, evaluation)
    return evaluation.metrics


def _write(context: StageContext, evaluation: Any) -> None:
    from omniloom.stages.evaluate import report as evaluation_report
    from omniloom.stages.reporting import report

    output, tracker = context.output, context.tracker
    name = tracker.settings.register_as
    verdict = judge(context.config.gate, evaluation.metrics, _champion(context, name))
    evaluation.metrics["gate_passed"] = None if verdict.passed is None else int(verdict.passed)
    evaluation.metrics = metrics = finite(evaluation.metrics)
    for title, picture in evaluation.pictures.items():
        storage.write_bytes(storage.join(output, "pictures", f"{title}.png"), picture)
        tracker.log_image(picture, title)
    storage.write_bytes(
        storage.join(output, "samples.jsonl"),
        "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in evaluation.samples).encode(),
    )
    storage.write_json(storage.join(output, "metrics.json"), metrics)
    html = report.render(evaluation_report.content(evaluation, verdict))
    storage.write_bytes(storage.join(output, "report.html"), html.encode())
    tracker.log_text(html, "report.html")
    _register(context, name, verdict.passed is True, metrics)


def _champion(context: StageContext, name: str | None) -> dict | None | str:
    """The figures of the model that holds the alias, where the gate asks for them; None where there is none, or it is
    this very model; why they are not known where the registry does not say."""
    from omniloom.infra.tracking import champion

    if not context.config.gate.better_than_champion:
        return None
    if name is None:
        return "tracking.register_as names no model"
    try:
        held = champion(context.tracker, name, context.config.alias)
    except Exception as error:  # whatever the store answers, the report is written and the alias stays where it is
        return f"the registry does not answer: {type(error).__name__}: {error}".splitlines()[0]
    return None if held is None or held.fingerprint == context.inputs["train"].fingerprint else dict(held.metrics)


def _register(context: StageContext, name: str | None, passed: bool, metrics: dict) -> None:
    """The model into the registry; the alias only where a gate is passed."""

    from omniloom.infra.tracking import register_model

    train = context.inputs["train"]
    if name is None:
        return
    _, why_not = register_model(
        context.tracker,
        train.local() / "model",
        SERVING,
        name,
        train.fingerprint,
        alias=context.config.alias if passed else None,
        metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)},
        example=[{"prompt": _example(context)}],
        no_worse={k: named(k).better for k in context.config.gate.better_than_champion},
    )
    if why_not:
        metrics["not_registered"] = why_not  # a closing line of the run


def _example(context: StageContext) -> str:
    prompts = storage.read_json(context.inputs["train"].file("report", "prompts.json"))
    return ((prompts or {}).get("captions") or ["a picture"])[0]
