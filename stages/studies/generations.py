"""Optional stage `generation_study`: what data made by models do to models. A small model, then one that is trained on
its predecessor's pictures, and so on, for several shares of such pictures.

In: records, tokens, the visual tokenizer. Out: `study.json`, a row a model with its held-out figures; `report.html`,
each figure over generations with a curve for each share, and from which share on the last generation is worse than
under none. Source: Self-Consuming Generative Models Go MAD, arXiv 2307.01850: without fresh real data quality or
diversity falls generation by generation, with enough of it neither does.

The first generation is trained on real pictures alone and is one for all shares. Under share 0 each later one is too,
by another seed: what its figures move by is no effect of the data. What a killed run had finished is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.infra.figures import finite
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.launch import launch
from omniloom.stages.base import StageContext
from omniloom.stages.evaluate.features.checks import check_features
from omniloom.stages.studies.base import Named, Share
from omniloom.stages.studies.objectives import Measurement, StudyMeasureConfig, measure_worker, needs
from omniloom.stages.train import stage as train
from omniloom.stages.train.config import Config as TrainingConfig
from omniloom.stages.train.job import Job

__all__ = ["VERSION", "Config", "check", "check_counts", "needs", "run"]

VERSION = 1
REAL = "generation_1"
_SHOWN = ("image_coverage", "image_class_agreement", "image_memorised", "caption_accuracy")


class GenerationStudyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    training: TrainingConfig
    """How every generation is trained, by one objective; each from new weights, by a seed of its own."""
    generations: int = Field(5, ge=2)
    """How many there are, the first on real pictures."""
    shares: tuple[float, ...] = Field((1.0, 0.5, 0.0), min_length=1)
    """Of a generation's train pictures, how many the one before has drawn, from 0 to 1; each share is a line of
    generations. 0 is what the others are held against."""
    evaluation: StudyMeasureConfig = Field(default_factory=StudyMeasureConfig)
    """How the models are measured, and how the pictures are drawn that the next one learns from."""

    @model_validator(mode="after")
    def _fits(self) -> GenerationStudyConfig:
        if any(not 0 <= share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise ValueError(f"shares: expected different numbers from 0 to 1, got {list(self.shares)}")
        if len({round(100 * share) for share in self.shares}) < len(self.shares):  # which name the models' folders
            raise ValueError(f"shares: expected numbers that differ by a hundredth, got {list(self.shares)}")
        if 0.0 not in self.shares:
            raise ValueError("shares: expected 0 among them, which the others are held against")
        if len(self.training.trained) != 1:
            raise ValueError(f"training.objectives: expected one of pictures, got {list(self.training.trained)}")
        if self.training.continue_from or self.training.keep_checkpoint:
            field = "continue_from" if self.training.continue_from else "keep_checkpoint"
            raise ValueError(f"training.{field}: each generation is trained from its first step, and keeps none")
        if self.evaluation.drawings < 1:
            raise ValueError("evaluation.drawings: nothing would be measured of what is drawn")
        return self


Config = GenerationStudyConfig


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    with within("evaluation"):
        check_features(config.evaluation, config.training.trained, files)
    with within("training"):
        train.check(config.training, upstream, files)
    if getattr(upstream.get("tokens"), "features", None):
        raise InputError(
            "drawn pictures have no features of a vision encoder; leave stages.pretokenize.features out",
            field="training",
        )


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    with within("training"):
        train.check_counts(config.training, upstream, counts)


def run(context: StageContext) -> dict:
    with within("training"):
        train.check_tokens(context.config.training, context.tokens, context.tokenizer)
    rows = _Study(context).rows()
    config: Config = context.config
    study = {"steps": config.training.steps, "rows": rows, "worse": _worse(context, rows)}
    storage.write_json(storage.join(context.output, "study.json"), finite(study))
    html = _report(study, context.output)
    storage.write_bytes(storage.join(context.output, "report.html"), html.encode())
    context.tracker.log_text(html, "report.html")
    return {
        f"{row['name']}_{key}": row[key] for row in rows for key in row if key not in ("name", "share", "generation")
    }


def name_of(share: float, generation: int) -> str:
    return REAL if generation == 1 else f"share_{round(100 * share)}_generation_{generation}"


class _Study:
    def __init__(self, context: StageContext):
        self.context, self.config = context, context.config
        self.count = 1 + len(self.config.shares) * (self.config.generations - 1)
        self.number = 0

    def rows(self) -> list[dict[str, Any]]:
        first = self._made(REAL, 1, self.context.tokens)
        found = []
        for share in self.config.shares:
            found.append({"name": REAL, "share": share, "generation": 1, **first})
            for generation in range(2, self.config.generations + 1):
                name, before = name_of(share, generation), name_of(share, generation - 1)
                tokens = self._tokens(name, before, share, generation)
                found.append(
                    {"name": name, "share": share, "generation": generation} | self._made(name, generation, tokens)
                )
        return found

    def _tokens(self, name: str, before: str, share: float, generation: int) -> Artifact:
        from omniloom.stages.studies.consumed import Consumption, consume, written

        context, config = self.context, self.config
        if not share:
            return context.tokens
        assert context.tokenizer  # `check` has seen that one is made
        sampling = dict(config.evaluation.chosen(objective=config.training.trained[0]))
        job = Consumption(
            context.tokens,
            context.tokenizer,
            storage.join(context.output, before, "model"),
            share,
            config.training.seed + generation,
            sampling,
            config.evaluation.gpus,
            storage.join(context.state, name, "tokens"),
            storage.join(context.state, name),
            self._progress(),
            Named(context.tracker, name),
        )
        if (found := written(job)) is None:
            self._launch(consume, job, f"{name}-drawn", storage.join(context.state, name))
            found = written(job)
        assert found
        return found

    def _made(self, name: str, generation: int, tokens: Artifact) -> dict[str, Any]:
        """Train and measure one model, as far as it is not done; its figures."""
        context, config = self.context, self.config
        state, output = storage.join(context.state, name), storage.join(context.output, name)
        tracker = Named(context.tracker, name)
        training = config.training.model_copy(update={"seed": config.training.seed + generation - 1})
        if not storage.exists(storage.join(state, "metrics.json")):
            job = Job(training, tokens, context.tokenizer, output, state, self._progress(), tracker)
            launch(train.work, job, training.workers, self._run(name), state)
        measured = storage.join(state, "measured.json")
        if not storage.exists(measured):
            inputs = context.inputs
            measurement = Measurement(config.evaluation, training, inputs, output, state, self._progress(), tracker)
            self._launch(measure_worker, measurement, f"{name}-measured", state)
        self.number += 1
        return storage.load_json(measured)

    def _launch(self, work: Any, job: Any, name: str, state: str) -> None:
        evaluation = self.config.evaluation
        launch(work, job, WorkersConfig(count=1, cpus=evaluation.cpus, gpus=evaluation.gpus), self._run(name), state)

    def _run(self, name: str) -> str:
        return f"{self.context.stage}-{self.context.fingerprint[:12]}-{name}"

    def _progress(self) -> Share:
        return Share(self.context.progress, self.number, self.count)


def _worse(context: StageContext, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By share, the figures in which its last generation is worse than that of share 0, by the paired test over
    held-out captions."""
    from omniloom.stages.evaluate import items
    from omniloom.stages.evaluate.comparing import compare

    last = {row["share"]: row["name"] for row in rows}
    held = {share: items.read(storage.join(context.output, name, "report")) for share, name in last.items()}
    found = {}
    for share, own in held.items():
        real = held[0.0]
        if share and own and real:
            figures = compare(real, own).figures
            found[f"{share:g}"] = [figure.measure for figure in figures if figure.decision == "worse"]
    return found


def _report(study: dict, output: str) -> str:
    """Figures over generations, and what the last ones draw."""
    from omniloom.stages.reporting import report

    rows = study["rows"]
    distances = sorted({n for row in rows for n in row if n.startswith("frechet_pixels") and "_" not in n[14:]})
    shown = [name for name in (*_SHOWN, *distances) if any(name in row for row in rows)]
    curves = [
        {
            "title": name.replace("_", " "),
            "x": "generation",
            "series": {
                f"{share:.0%} drawn": [(r["generation"], r[name]) for r in rows if r["share"] == share and name in r]
                for share in dict.fromkeys(row["share"] for row in rows)
            },
        }
        for name in shown
    ]
    pictures = []
    for share, name in {row["share"]: row["name"] for row in rows}.items():
        folder = storage.join(output, name, "report")
        pictures += [
            {
                "png": storage.read_bytes(storage.join(folder, file)),
                "caption": f"{share:.0%} drawn, the last generation",
            }
            for file in storage.list_files(folder)
            if file.startswith("drawn_images")
        ]
    return report.render(
        {
            "title": "Generations that learn from each other's pictures",
            "verdict": {"text": verdict(study), "passed": None},
            "sections": [
                {"title": "Over generations", "curves": curves},
                {"title": "Figures", "tables": [table(study, shown)]},
                {"title": "Drawn from held-out captions", "images": pictures},
            ],
        }
    )


def verdict(study: dict) -> str:
    """From which share on the last generation is worse."""
    worse = {float(share): figures for share, figures in study["worse"].items()}
    found = sorted(share for share, figures in worse.items() if figures)
    safe = [share for share in worse if not found or share < found[0]]
    parts = [f"{share:.0%} of drawn pictures: worse in {', '.join(worse[share])}." for share in found]
    if safe:
        parts.append(f"Up to {max(safe):.0%} nothing is worse than without, as far as the test sees.")
    return " ".join(parts) or "Only share 0 was tried."


def table(study: dict, shown: list[str]) -> dict:
    return {
        "caption": f"Models after {study['steps']} steps each",
        "columns": ["share drawn", "generation", *(name.replace("_", " ") for name in shown)],
        "rows": [[row["share"], row["generation"], *(row.get(name) for name in shown)] for row in study["rows"]],
    }
