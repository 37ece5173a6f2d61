"""Optional stage `objective_study`: the same unified model under the same budget by one visual objective after another.

In: records, tokens, the visual tokenizer. Out: `study.json`, one row an objective with its held-out figures, which
`report.html` and the report of `evaluate` show as a table; each model with its curves and sample grids in a folder of
its name. The models are trained by `train`'s worker and measured by what `evaluate` measures with. What a killed run
had finished is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, join_fields, within
from omniloom.infra.figures import finite
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.launch import launch
from omniloom.models.checks import FieldError
from omniloom.models.unified.representations import OBJECTIVES, Objective
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.evaluate.config import MeasureConfig
from omniloom.stages.evaluate.features.checks import check_features
from omniloom.stages.studies.base import Named, Share, curves
from omniloom.stages.train import stage as train
from omniloom.stages.train.config import Config as TrainingConfig
from omniloom.stages.train.config import placeholder_model
from omniloom.stages.train.job import Job

VERSION = 3

_COLUMNS = {
    "image_class_agreement": "class agreement",
    "caption_accuracy": "caption accuracy",
    "image_coverage": "coverage",
    "caption_exact": "exact captions",
}
_BITS = ("image_bits_per_dimension", "image_bits_per_pixel", "image_bits_per_pixel_png", "image_bits_per_pixel_webp")
_TIMED = 32  # pictures that are drawn together to see how long one takes
_IN_FEATURES = ("fid", "kid", "fd_dinov2", "cmmd", "clip_score")  # where the networks are given


class StudyMeasureConfig(MeasureConfig):
    """As `evaluate` measures. The split is another than its default: what is chosen by one split is judged on
    another."""

    split: str = Field("validation", pattern="^(validation|test)$")
    """Split that the models are compared on."""


class StudiedObjective(BaseModel):
    """An objective whose model differs from the others'."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    objective: Objective
    """What it is trained by."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of training.model that it has others of, such as {density: {head: flow}}."""


def _form(value: Any) -> str:
    return "(objective)" if isinstance(value, str) else "(mapping)"


Studied = Annotated[
    Annotated[Objective, Tag("(objective)")] | Annotated[StudiedObjective, Tag("(mapping)")], Discriminator(_form)
]


def _named(studied: Any) -> Any:
    """The objective of a row, also before it is validated."""
    return studied.get("objective") if isinstance(studied, Mapping) else getattr(studied, "objective", studied)


# The heads of the density objective are chosen row by row.
_USUAL = [row.name for row in OBJECTIVES.values() if not row.by_density]


def _usual() -> dict[str, Any]:
    return {name: name for name in _USUAL}


class ObjectiveStudyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    training: TrainingConfig
    """The budget that all share; its objectives are set in turn, and of loss.objective_weights each has its own;
    alignment is of diffusions alone."""
    objectives: dict[str, Studied] = Field(
        default_factory=_usual,
        min_length=1,
    )
    """A name for the table: an objective, or {objective: NAME, model: {FIELD: VALUE}} where the model has fields of its
    own. By default all but next_latent, whose head is chosen so."""
    evaluation: StudyMeasureConfig = Field(default_factory=StudyMeasureConfig)
    """How the models are measured."""

    @model_validator(mode="before")
    @classmethod
    def _shares(cls, values: Any) -> Any:
        """The training that all share has what is asked of any of them, such as a weight by objective."""
        if isinstance(values, dict) and isinstance(training := values.get("training"), dict):
            studied = values.get("objectives") or _usual()
            if "objectives" not in training and isinstance(studied, dict):
                shares = {name: 1.0 for name in OBJECTIVES if name in map(_named, studied.values())}
                values = {**values, "training": {**training, "objectives": shares or {next(iter(OBJECTIVES)): 1.0}}}
        return values

    @model_validator(mode="after")
    def _names(self) -> ObjectiveStudyConfig:
        if self.training.continue_from or self.training.keep_checkpoint:
            field = "continue_from" if self.training.continue_from else "keep_checkpoint"
            raise ValueError(f"training.{field}: a study compares trainings from their first step, and keeps none")
        for name in self.objectives:
            if not name.isidentifier():
                raise ValueError(f"objectives: expected names of letters, digits and _, got {name!r}")
            self._check_model(name)
        return self

    def _check_model(self, name: str) -> None:
        """ValueError where the fields of a row's own are none of a model, or have no effect."""
        studied = self.objectives[name]
        if isinstance(studied, str) or not studied.model:
            return
        try:
            training = budget(self.training, studied)
            if not training.init_from:
                placeholder_model(training).check_uses(studied.model)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(key) for key in first["loc"])
            raise ValueError(f"objectives.{name}.model.{place}: {first['msg']}") from None
        except FieldError as error:
            raise ValueError(f"objectives.{name}.model.{error.field}: {error.reason}") from None


Config = ObjectiveStudyConfig


def needs(config: Config) -> Needs:
    """Trainings and measurements take turns."""
    training = train.needs(config.training)
    return replace(
        training,
        worker_cpus=max(training.worker_cpus, config.evaluation.cpus),
        worker_gpus=max(training.worker_gpus, config.evaluation.gpus),
    )


def budget(config: TrainingConfig, studied: str | StudiedObjective) -> TrainingConfig:
    """The training with one objective alone, and the model's fields that it has of its own."""
    objective, model = _named(studied), config.model
    if isinstance(studied, StudiedObjective):
        model = type(model).model_validate({**model.model_dump(exclude_unset=True), **studied.model})
    weights = {name: weight for name, weight in config.loss.objective_weights.items() if name == objective}
    loss = config.loss.model_copy(update={"objective_weights": weights})
    alignment = config.alignment if OBJECTIVES[objective].is_diffusion else None
    changed = {"objectives": {objective: 1.0}, "loss": loss, "alignment": alignment, "model": model}
    return config.model_copy(update=changed)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    with within("evaluation"):
        check_features(config.evaluation, tuple(dict.fromkeys(map(_named, config.objectives.values()))), files)
    for name, studied in config.objectives.items():
        with _of_training(name):
            train.check(budget(config.training, studied), upstream, files)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    for name, studied in config.objectives.items():
        with _of_training(name):
            train.check_counts(budget(config.training, studied), upstream, counts)


@contextlib.contextmanager
def _of_training(name: str) -> Iterator[None]:
    """InputErrors of one training are about `training`, or about its objective in `objectives`."""
    try:
        yield
    except InputError as error:
        objective = error.field == "objectives"
        error.field = f"objectives.{name}" if objective else join_fields("training", error.field)
        raise


@dataclass
class Measurement:
    """What the measuring worker gets; picklable. `output` is the folder that `training` filled."""

    config: MeasureConfig
    training: TrainingConfig
    inputs: dict[str, Artifact]
    output: str
    state: str
    progress: Any
    tracker: Any


def run(context: StageContext) -> dict:
    config: Config = context.config
    trainings = {name: budget(config.training, studied) for name, studied in config.objectives.items()}
    for name, training in trainings.items():
        with _of_training(name):
            train.check_tokens(training, context.tokens, context.tokenizer)
            train.left_out_of(training, context.tokens, context.progress)
    rows = []
    for number, (name, training) in enumerate(trainings.items()):
        found = _make(context, name, training, Share(context.progress, number, len(trainings)))
        rows.append({"name": name, "objective": _named(config.objectives[name]), **found})
    study = {"steps": config.training.steps, "split": config.evaluation.split, "rows": rows}
    storage.write_json(storage.join(context.output, "study.json"), finite(study))
    html = _report(study, context.output)
    storage.write_bytes(storage.join(context.output, "report.html"), html.encode())
    context.tracker.log_text(html, "report.html")
    return {
        f"{row['name']}_{key}": value for row in rows for key, value in row.items() if key not in ("name", "objective")
    }


def _make(context: StageContext, name: str, training: TrainingConfig, progress: Share) -> dict:
    """Train and measure one model, as far as it is not done; its figures."""
    config: Config = context.config
    state, output = storage.join(context.state, name), storage.join(context.output, name)
    tracker, run_name = Named(context.tracker, name), f"{context.stage}-{context.fingerprint[:12]}-{name}"
    if not storage.exists(storage.join(state, "metrics.json")):
        job = Job(training, context.tokens, context.tokenizer, output, state, progress, tracker)
        launch(train.work, job, training.workers, run_name, state)
    measured = storage.join(state, "measured.json")
    if not storage.exists(measured):
        where = WorkersConfig(count=1, cpus=config.evaluation.cpus, gpus=config.evaluation.gpus)
        measurement = Measurement(config.evaluation, training, context.inputs, output, state, progress, tracker)
        launch(measure_worker, measurement, where, f"{run_name}-measured", state)
    return {**storage.load_json(measured), **_cost(storage.load_json(storage.join(state, "metrics.json")), output)}


def _cost(trained: dict, output: str) -> dict:
    """Size and speed from the curves, which a resumed training goes on with."""
    from omniloom.stages.reporting import history

    rows = [row for row in history.load(storage.join(output, "report", "history.jsonl")) if "tokens_per_second" in row]
    before = [0, *(row["units"] for row in rows)]
    return {
        "parameters": trained["parameters"],
        "tokens_per_second": median(row["tokens_per_second"] for row in rows),
        "training_seconds": sum(
            (row["units"] - start) / row["tokens_per_second"] for start, row in zip(before, rows, strict=False)
        ),
    }


def measure_worker(job: Measurement) -> None:
    """The held-out figures of one model, its pictures beside its curves, and its samples."""
    import json

    import torch

    from omniloom.stages.checkpoints.language_model import local_folder
    from omniloom.stages.evaluate import items
    from omniloom.stages.evaluate.drawing import draw
    from omniloom.stages.evaluate.evaluation import Evaluation
    from omniloom.stages.evaluate.likelihoods import measure_bits
    from omniloom.stages.evaluate.writing import describe, read_text, retrieve

    device = "cuda" if job.config.gpus and torch.cuda.is_available() else "cpu"
    evaluation = Evaluation(
        job.config,
        job.inputs,
        device,
        local_folder(storage.join(job.output, "model")),
        job.training.model_dump(mode="json"),
    )
    for part in (read_text, draw, measure_bits, describe, retrieve):
        part(evaluation)
    _time_drawing(evaluation)
    evaluation.close()
    items.write(storage.join(job.output, "report"), evaluation.items)
    for name, picture in evaluation.pictures.items():
        storage.write_bytes(storage.join(job.output, "report", f"{name}.png"), picture)
        job.tracker.log_image(picture, name, 0)
    storage.write_bytes(
        storage.join(job.output, "report", "samples.jsonl"),
        "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in evaluation.samples).encode(),
    )
    storage.write_json(storage.join(job.state, "measured.json"), finite(evaluation.metrics))


def _time_drawing(evaluation: Any) -> None:
    """`seconds_to_draw`: of a picture among some that are drawn together, their pixels decoded."""
    import time

    from omniloom.stages.evaluate.drawing import drawn_for

    chosen = evaluation.plain[:_TIMED]
    if chosen and evaluation.config.drawings:
        began = time.perf_counter()
        drawn_for(evaluation, chosen, evaluation.objectives[0])
        evaluation.metrics["seconds_to_draw"] = (time.perf_counter() - began) / len(chosen)


def _report(study: dict, output: str) -> str:
    """The table, the curves of all in one chart each, and what the models draw and describe."""
    from omniloom.stages.reporting import report

    found = curves(
        study, output, ("visual_loss", "text_loss", "validation_visual_loss", "validation_text_loss", "grad_norm")
    )
    pictures = []
    for row in study["rows"]:
        folder = storage.join(output, row["name"], "report")
        pictures += [
            {"png": storage.read_bytes(storage.join(folder, file)), "caption": f"{row['name']}: {what}"}
            for file in storage.list_files(folder)
            for prefix, what in (("drawn_images", "drawn"), ("described_images", "described"))
            if file.startswith(prefix)
        ]
    shown = [
        {"title": title.replace("_", " "), "series": series, "log": "loss" in title}
        for title, series in found.items()
        if series
    ]
    return report.render(
        {
            "title": "Objectives under the same budget",
            "sections": [
                {"title": "Figures", "tables": [table(study)]},
                {
                    "title": "Curves",
                    "text": "Losses of pictures are of different things: each has its own scale.",
                    "curves": shown,
                },
                {"title": "Drawn from held-out captions, and described", "images": pictures},
            ],
        }
    )


def table(study: dict) -> dict:
    """The study as a table for `stages.reporting.report.render`; a figure that was not measured is left out."""
    rows = study["rows"]
    distances = sorted(
        {name for row in rows for name in row if name.startswith("frechet_pixels") and not name.endswith("_train")}
    )
    names = [
        name
        for name in (
            *_COLUMNS,
            *distances,
            *_IN_FEATURES,
            *_BITS,
            "bits_per_byte",
            "parameters",
            "tokens_per_second",
            "training_seconds",
            "seconds_to_draw",
        )
        if any(name in row for row in rows)
    ]
    titles = [_COLUMNS.get(name, name.replace("_", " ")) for name in names]
    called = [row["name"] + (f" ({row['objective']})" if row["name"] != row["objective"] else "") for row in rows]
    return {
        "caption": f"Models after {study['steps']} steps each, on the {study['split']} split",
        "columns": ["objective", *titles],
        "rows": [[title, *(row.get(name) for name in names)] for title, row in zip(called, rows, strict=True)],
    }
