"""Stage `evaluate`: what the tokenizer and the unified model can do on the held-out split, in figures and in a report.

In: records, tokens, the visual tokenizer where there is one, the trained model, and the scorer and the studies that the
pipeline has; of a language model only what it reads and writes is measured. Out: `report.html`, `metrics.json`,
`items.parquet` (what the figures are means of), `pictures/*.png`, `samples.jsonl`, and `comparison.json` where the
model was held against the one that has the alias; where sampling was swept `sampling.json`, and `model/`, the model's
folder with the chosen settings as its own. The model is registered, and gets its alias only where a `gate` is given and
passed.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import within
from omniloom.infra.figures import finite
from omniloom.infra.secrets import logger
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.evaluate.config import Config
from omniloom.stages.evaluate.features.checks import check_features
from omniloom.stages.evaluate.gate import Verdict, judge
from omniloom.stages.evaluate.measures import measured
from omniloom.stages.evaluate.sweep_config import check_sweep
from omniloom.stages.evaluate.tuned import local_tuned, write_tuned
from omniloom.stages.reporting import ancestry

if TYPE_CHECKING:
    from omniloom.infra.tracking import Champion
    from omniloom.stages.evaluate.comparing import Comparison

VERSION = 6
log = logger(__name__)

SERVING = Path(__file__).parents[1] / "inference" / "serving.py"  # kept as source with each registered model
EVALUATION = "evaluation"  # the folder of the MLflow run that has the items


_DESCRIBED = 4900  # letters: a registry's databases keep 5,000 of a version's description


def needs(config: Config) -> Needs:
    return Needs(cpus=config.cpus, gpus=config.gpus)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that the gate's figures are measured of the model that is trained, and the feature networks' files."""
    model = upstream.get("model")
    check_sweep(config.sweep, model and model.trained, model and model.model.density)
    check_features(config, model and model.trained, files, (*config.gate.bounds, *config.gate.better_than_champion))
    if model:
        with within("gate"):
            config.gate.check(measured(config, model.trained, "scorer" in upstream))


def run(context: StageContext) -> dict:
    import torch

    from omniloom.stages.evaluate.drawing import draw
    from omniloom.stages.evaluate.evaluation import Evaluation
    from omniloom.stages.evaluate.exported import export_gap
    from omniloom.stages.evaluate.filming import film
    from omniloom.stages.evaluate.leaks import leaked_texts
    from omniloom.stages.evaluate.likelihoods import measure_bits
    from omniloom.stages.evaluate.novelty import leaked
    from omniloom.stages.evaluate.sweeping import sweep
    from omniloom.stages.evaluate.tokenizer import codebook, reconstruct
    from omniloom.stages.evaluate.writing import describe, read_text, retrieve

    config: Config = context.config
    torch.set_num_threads(max(1, int(config.cpus)))
    evaluation = Evaluation(config, context.inputs, "cuda" if config.gpus and torch.cuda.is_available() else "cpu")
    parts = (
        (
            *(export_gap, reconstruct, codebook, read_text, leaked_texts, draw, measure_bits, sweep, leaked),
            *(describe, retrieve, film),
        )
        if evaluation.objectives
        else (export_gap, read_text, leaked_texts)
    )
    for number, part in enumerate(parts, 1):  # they take too different times for a rate to say anything
        context.progress.say(f"{part.__name__.replace('_', ' ')} ({number} of {len(parts)})")
        part(evaluation)
    evaluation.close()
    _write(context, evaluation)
    return evaluation.metrics


def _write(context: StageContext, evaluation: Any) -> None:
    from omniloom.stages.evaluate import items
    from omniloom.stages.evaluate import report as evaluation_report
    from omniloom.stages.reporting import report

    output, tracker = context.output, context.tracker
    name = tracker.settings.register_as
    held = _champion(context, name)
    against = held if held is None or isinstance(held, str) else _against(context, evaluation, held)
    verdict = judge(context.config.gate, evaluation.metrics, against)
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
    items.write(output, evaluation.items)
    with tempfile.TemporaryDirectory() as folder:
        items.write(folder, evaluation.items)
        tracker.log_file(Path(folder, items.FILE), EVALUATION)
    comparison = None if against is None or isinstance(against, str) else against
    if comparison:
        storage.write_json(storage.join(output, "comparison.json"), finite(dataclasses.asdict(comparison)))
    html = report.render(evaluation_report.content(evaluation, verdict, comparison, _previous(context, name)))
    storage.write_bytes(storage.join(output, "report.html"), html.encode())
    tracker.log_text(html, "report.html")
    if evaluation.sweep:
        write_tuned(context.model, evaluation.sweep.own, output)
        document = finite({"model": context.model.fingerprint, **evaluation.sweep.document(context.config.seed)})
        storage.write_json(storage.join(output, "sampling.json"), document)
        tracker.log_text(json.dumps(document, indent=2), "sampling.json")
        tracker.log_text(evaluation_report.sweep_chart(evaluation.sweep), "sampling.svg")
    better_than = held.fingerprint if comparison and held and not isinstance(held, str) else None
    bundle = local_tuned(context.model, evaluation.sweep.own) if evaluation.sweep else context.model.local() / "model"
    _register(context, name, verdict, metrics, better_than, bundle)


def _previous(context: StageContext, name: str | None) -> dict[str, Artifact | None]:
    """The model that this pipeline evaluated last, and the one that holds the alias, as far as they are others and this
    storage has them; the registry is not waited for."""
    from omniloom.infra.tracking import champion

    model, store = context.model, ancestry.store_of(context.model)
    last = store.last_used(context.pipeline, context.stage)
    found = {"the last run": last.manifest["inputs"].get(model.stage) if last else None}
    try:
        held = champion(context.tracker, name, context.config.alias) if name else None
        found["the champion"] = held.fingerprint if held else None
    except Exception as error:  # whatever the store answers: the report says what is known here
        log.debug("no look at the champion: %s", error)
    return {
        called: store.find(model.stage, fingerprint)
        for called, fingerprint in found.items()
        if fingerprint and fingerprint != model.fingerprint
    }


def _champion(context: StageContext, name: str | None) -> Champion | None | str:
    """The version that holds the alias, where the gate asks for its figures; None where there is none, or it is this
    very model; why it is not known where the registry does not say."""
    from omniloom.infra.tracking import champion

    if not context.config.gate.better_than_champion:
        return None
    if name is None:
        return "tracking.register_as names no model"
    try:
        held = champion(context.tracker, name, context.config.alias)
    except Exception as error:  # whatever the store answers, the report is written and the alias stays where it is
        return _no_answer(error)
    return None if held is None or held.fingerprint == context.model.fingerprint else held


def _against(context: StageContext, evaluation: Any, held: Champion) -> Comparison | str:
    """The champion's figures and the model's, as far as the gate asks for them; or why they cannot be compared."""
    from omniloom.infra.tracking import run_files
    from omniloom.stages.evaluate import items
    from omniloom.stages.evaluate.comparing import compare

    try:
        with tempfile.TemporaryDirectory() as folder:
            found = held.evaluation and run_files(context.tracker, held.evaluation, EVALUATION, folder)
            theirs = items.read(str(found)) if found else None
    except Exception as error:
        return _no_answer(error)
    if theirs is None:
        return "its evaluation kept no values by item; evaluate it again by this version"
    return compare(theirs, evaluation.items, context.config.gate.better_than_champion, context.config.seed)


def _no_answer(error: Exception) -> str:
    return f"the registry does not answer: {type(error).__name__}: {error}".splitlines()[0]


def _register(
    context: StageContext, name: str | None, verdict: Verdict, metrics: dict, better_than: str | None, bundle: Path
) -> None:
    """The model's folder `bundle` into the registry; the alias only where a gate is passed."""
    from omniloom.infra.tracking import register_model

    train, measured_on = context.model, context.inputs.get("records", context.tokens)
    if name is None:
        return
    _, why_not = register_model(
        context.tracker,
        bundle,
        SERVING,
        name,
        train.fingerprint,
        alias=context.config.alias if verdict.passed else None,
        metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)},
        example=[{"prompt": _example(context)}],
        no_worse=context.config.gate.no_worse,
        better_than=better_than,
        dataset=(measured_on.stage, measured_on.fingerprint),
        trained_by=train.manifest.get("mlflow_run_id"),
        description=_described(context, verdict, metrics),
    )
    if why_not:
        metrics["not_registered"] = why_not  # a closing line of the run


def _described(context: StageContext, verdict: Verdict, metrics: dict) -> str:
    """The model card as Markdown: what the gate said, how to sample, what the model is and was made of, its figures."""
    from omniloom.stages.reporting.model_card import body

    config = storage.load_json(context.model.file("model", "config.json"))
    told = body(config, context.model, list(context.inputs.values()), metrics)
    folder = context.model.file("model")
    lines = [f"{verdict}.", "", f"Sample from it: `omniloom sample {folder}`", "", *told]
    while len("\n".join(lines)) > _DESCRIBED:
        lines.pop()
    return "\n".join(lines)


def _example(context: StageContext) -> str:
    prompts = storage.read_json(context.model.file("report", "prompts.json"))
    return ((prompts or {}).get("captions") or ["a picture"])[0]
