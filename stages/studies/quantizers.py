"""Optional stage `quantizer_study`: the same tokenizer under the same budget with one bottleneck after another.

In: records. Out: `study.json`, one row a quantizer with its held-out figures, which `report.html` and the
report of `evaluate` show as a table; each tokenizer with its curves and reconstructions in a folder of its name.
What a killed run had finished is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omniloom.infra import storage
from omniloom.infra.errors import within
from omniloom.infra.figures import finite
from omniloom.infra.training.launch import launch
from omniloom.models.tokenizer.config import RAEConfig
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.studies.base import Named, Share, curves
from omniloom.stages.tokenizer import stage as tokenizer
from omniloom.stages.tokenizer.config import Config as TrainingConfig
from omniloom.stages.tokenizer.job import Job

VERSION = 3


class QuantizerStudyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    training: TrainingConfig
    """The budget that all share; its quantizer is set in turn."""
    quantizers: dict[str, QuantizerConfig] = Field(min_length=1)
    """A name for the table: a quantizer."""

    @model_validator(mode="after")
    def _complete(self) -> QuantizerStudyConfig:
        if self.training.model is None:
            raise ValueError("training.model is missing: the architecture of the tokenizers")
        if isinstance(self.training.model, RAEConfig):
            raise ValueError("training.model: an RAE has no quantizer to study, expected another architecture")
        for name in self.quantizers:
            if not name.isidentifier():
                raise ValueError(f"quantizers: expected names of letters, digits and _, got {name!r}")
        return self


Config = QuantizerStudyConfig


def needs(config: Config) -> Needs:
    return tokenizer.needs(config.training)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    for name, quantizer in config.quantizers.items():
        with within(f"quantizers.{name}"):
            replace(cast(Any, config.training.model), quantizer=quantizer)
    with within("training"):
        tokenizer.check(config.training, {"records": upstream.get("records")}, files)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    with within("training"):
        yield from tokenizer.check_counts(config.training, upstream, counts)


def run(context: StageContext) -> dict:
    config: Config = context.config
    metrics: dict[str, Any] = {}
    rows = []
    for number, (name, quantizer) in enumerate(config.quantizers.items()):
        state = storage.join(context.state, name)
        if not storage.exists(storage.join(state, "metrics.json")):
            job = Job(
                config.training,
                replace(cast(Any, config.training.model), quantizer=quantizer),
                context.records,
                None,
                storage.join(context.output, name),
                state,
                Share(context.progress, number, len(config.quantizers)),
                Named(context.tracker, name),
            )
            launch(
                tokenizer.work,
                job,
                config.training.workers,
                f"{context.stage}-{context.fingerprint[:12]}-{name}",
                state,
            )
        found = storage.load_json(storage.join(state, "metrics.json"))
        rows.append(
            {
                "name": name,
                "kind": quantizer.kind,
                "codes": quantizer.size,
                "channels": quantizer.dim,
                "clips_per_second": found["units"] / found["seconds"],
                **found,
            }
        )
        metrics |= {
            f"{name}_{key.removeprefix('validation_')}": value
            for key, value in found.items()
            if key.startswith("validation_")
        }
    study = {"steps": config.training.steps, "rows": rows}
    storage.write_json(storage.join(context.output, "study.json"), finite(study))
    html = _report(study, context.output)
    storage.write_bytes(storage.join(context.output, "report.html"), html.encode())
    context.tracker.log_text(html, "report.html")
    return metrics


def _report(study: dict, output: str) -> str:
    """The table, the curves of all in one chart each, and what the tokenizers make of the same held-out clips."""
    from omniloom.stages.reporting import report

    found = curves(study, output, ("validation_psnr_image", "validation_psnr_video", "loss", "image_codebook_usage"))
    pictures = []
    for row in study["rows"]:
        folder = storage.join(output, row["name"], "report")
        picture = storage.join(folder, "reconstruction.png")
        if storage.exists(picture):
            pictures.append({"png": storage.read_bytes(picture), "caption": row["name"]})
    shown = [
        {"title": title.replace("_", " "), "series": series, "log": title == "loss"}
        for title, series in found.items()
        if series
    ]
    return report.render(
        {
            "title": "Quantizers under the same budget",
            "sections": [
                {"title": "Figures", "tables": [table(study)]},
                {"title": "Curves", "curves": shown},
                {"title": "Originals above reconstructions", "images": pictures},
            ],
        }
    )


def table(study: dict) -> dict:
    """The study as a table for `stages.reporting.report.render`; a figure that a quantizer has not is left empty."""
    figures = [
        "validation_psnr_image",
        "validation_psnr_video",
        "validation_codebook_usage",
        "validation_perplexity",
        "parameters",
        "clips_per_second",
    ]
    shown = [name for name in figures if any(name in row for row in study["rows"])]
    return {
        "caption": f"Quantizers after {study['steps']} steps each, on held-out clips",
        "columns": ["quantizer", "kind", "codes", "channels", *(name.removeprefix("validation_") for name in shown)],
        "rows": [
            [row["name"], row["kind"], row["codes"], row["channels"], *(row.get(name) for name in shown)]
            for row in study["rows"]
        ],
    }
