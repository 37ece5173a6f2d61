"""What the commands print: plans, status, jobs, and the lines that end a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact
from omniloom.infra.tracking import resolve_tracking
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.preset_files import purposes
from omniloom.pipelines.takes import Takes, duration
from omniloom.stages.train.ledger import trained_by

if TYPE_CHECKING:
    from omniloom.pipelines.config import PipelineConfig
    from omniloom.pipelines.planned import PlannedStage
    from omniloom.stages.evaluate.comparing import Comparison

_COLOURS = {"cached": "green", "run": "yellow", "resume": "cyan", "blocked": "red"}


def show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a log or a pipe has no edge; reasons should stay on their line
    console.print(table)


def plan_table(plan: Plan, found: Mapping[str, Takes]) -> Table:
    """`found`: what is predicted of the stages that would run."""
    table = Table(
        title=f"{plan.config.name} in {redact(plan.config.storage)}", title_justify="left", box=None, pad_edge=False
    )
    for column in ("stage", "status", "fingerprint", "last took", "predicted", "by", "reason"):
        table.add_column(column, overflow="fold")
    for p in plan.stages:
        colour = _COLOURS[p.status]
        table.add_row(
            p.name,
            f"[{colour}]{p.status}[/]",
            p.fingerprint[:12],
            f"{p.last_seconds:.0f} s" if p.last_seconds else "-",
            duration(seconds) if (seconds := found[p.name].seconds if p.name in found else None) else "-",
            found[p.name].basis or "-" if p.name in found else "-",
            redact(p.reason).replace("[", r"\["),
        )
    return table


def status_rows(plan: Plan) -> list[dict]:
    return [status_row(planned.name, planned) for planned in plan.stages]


def status_row(name: str, planned: PlannedStage) -> dict:
    manifest = planned.artifact.manifest if planned.artifact else None
    return redact(
        {
            "name": name,
            "status": planned.status,
            "reason": planned.reason,
            "artifact": planned.uri if planned.artifact else None,
            "fingerprint": planned.fingerprint,
            "bytes": sum(f["bytes"] for f in manifest["files"]) if manifest else 0,
            "seconds": manifest["times"]["seconds"] if manifest else None,
            "ended": manifest["times"]["ended"] if manifest else None,
            "metrics": manifest["metrics"] if manifest else {},
            "mlflow_run_id": manifest["mlflow_run_id"] if manifest else None,
        }
    )


def status_table(config: PipelineConfig, rows: list[dict]) -> Table:
    tracking = resolve_tracking(config.tracking, config.storage)
    table = Table(
        title=f"{config.name} in {redact(config.storage)}\nMLflow: {tracking.shown}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in ("stage", "status", "artifact", "size", "took", "MLflow run"):
        table.add_column(column, no_wrap=True)
    table.add_column("metrics", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            f"[{_COLOURS[row['status']]}]{row['status']}[/]",
            row["fingerprint"][:8] if row["artifact"] else "-",
            shown_size(row["bytes"]),
            f"{row['seconds']:.0f} s" if row["seconds"] else "-",
            (row["mlflow_run_id"] or "-")[:8],
            shown_metrics(row["metrics"], 3),
        )
    return table


def shown_metrics(metrics: dict, count: int) -> str:
    """The first few metrics in one line; stages list first what they are judged by."""
    chosen = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)][:count]
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in chosen
    )


def replay_table(documents: list[dict]) -> Table:
    """Documents or clips of a step, those that stand out most first."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "deviations", "loss", "grad norm", "task", "file", "shard", "id"):
        table.add_column(column, overflow="fold")
    for d in documents:
        figures = (
            "not finite" if d[name] is None else f"{d[name]:.4g}" for name in ("deviations", "loss", "grad_norm")
        )
        place = f"{d['source']}: {d['path']}" if d["path"] else "-"
        blamed = "to blame" if d["blamed"] else ""
        shard = f"{d['shard']}, row {d['shard_row']}" if "shard" in d else "-"  # clips lie in no shard of tokens
        table.add_row(blamed, *figures, d["task"], place, shard, d["id"][:12])
    return table


def jobs_table(rows: list[dict]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "pipeline", "started", "took", "progress"):
        table.add_column(column, overflow="fold")
    for row in rows:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["start"])) if row["start"] else "-"
        took = f"{(row['end'] or time.time()) - row['start']:.0f} s" if row["start"] else "-"
        table.add_row(
            row["id"],
            row["status"].lower(),
            row["pipeline"] or row["config"] or "-",
            started,
            took,
            row["progress"] or "-",
        )
    return table


def presets_table(folder: Path) -> Table:
    """The first sentence of the comment at the top of each preset."""
    table = Table(title=str(folder), title_justify="left", box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, what in purposes().items():
        table.add_row(name, what)
    return table


def closing_lines(plan: Plan, executed: list[str]) -> list[str]:
    """What a finished run says: what it did, and where the report, the model or what else came out last is; for a
    pipeline of any shape."""
    lines = [f"{plan.config.name}: " + (f"ran {', '.join(executed)}" if executed else "everything is up to date")]
    records, model, evaluation = (_made(plan, role) for role in ("records", "model", "evaluation"))
    if records:
        lines += [
            f"note: the {split} split is empty: {left}; stages.ingest.splitting.splits or more data change that"
            for split, left in (
                ("validation", "training has nothing to be validated on"),
                ("test", "evaluate has nothing to measure"),
            )
            if not records.metrics.get(f"records_{split}", 1)
        ]
    if model and not plan.last("evaluation") and "evaluate" not in plan.config.stages.model_fields_set:
        lines.append("note: nothing measures the model; stages.evaluate={} does, with its defaults")
    lines += _results(plan)
    if evaluation:
        shown = [
            f"{name} {value:.3f}"
            for name, value in evaluation.metrics.items()
            if isinstance(value, int | float)
            and (
                name.startswith(("image_class_agreement", "caption_accuracy", "image_coverage"))
                or name in ("bits_per_byte", "recon_psnr_image", "recon_psnr_video", "codebook_usage")
            )
        ]
        lines += ["metrics: " + ", ".join(shown)] if shown else []
        if why := evaluation.metrics.get("not_registered"):
            lines.append(f"the model was not registered: {redact(why)}")
    if model:
        folder = model.file("model")
        lines += [f"model:  {folder}", f"sample: omniloom sample {folder} {example_request(model)}"]
    return lines


def _made(plan: Plan, role: str) -> Artifact | None:
    """The artifact of the last stage that makes the role, if it is up to date."""
    planned = plan.last(role)
    return planned.artifact if planned and planned.status == "cached" else None


def _results(plan: Plan) -> list[str]:
    """Where to look: the reports or the folders of what no stage that is up to date reads, but for the model's."""
    made = [(p, p.artifact) for p in plan.stages if p.status == "cached" and p.artifact]
    read = {name for planned, _ in made for name in planned.inputs.values()}
    lines = []
    for planned, artifact in made:
        if planned.name in read or planned.stage.makes == "model":
            continue
        reported = any(entry["path"] == "report.html" for entry in artifact.manifest["files"])
        lines.append(f"report: {artifact.file('report.html')}" if reported else f"{planned.name}: {artifact.uri}")
    return lines


def example_request(model: Artifact) -> str:
    """Options of `sample` that ask the model for what it was trained to do."""
    trained = trained_by(model)
    if not any(trained.get("objectives", {}).values()):
        return '--text --prompt "Once upon a time"'
    if not trained.get("packing", {}).get("caption_first", 1):  # it only describes
        return "--image FILE"
    # A caption that the model has seen drawn in its validation samples.
    prompts = storage.read_json(model.file("report", "prompts.json")) or {}
    caption = (prompts.get("captions") or ["a picture"])[0]
    return "--prompt " + json.dumps(" ".join(caption.split()).replace('"', "'"), ensure_ascii=False)


def shown_size(number: float) -> str:
    """`12 B`, `3.4 KiB`."""
    if number < 1024:
        return f"{number:g} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number /= 1024
        if number < 1024 or unit == "TiB":
            return f"{number:.1f} {unit}"
    raise AssertionError


def comparison_table(found: Comparison) -> Table:
    """Two evaluations, A and B: a figure a row."""
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "A", "B", "B - A", "95% interval", "p", "items", "B is"):
        table.add_column(column, overflow="fold")
    colours = {"better": "green", "worse": "red", "undecided": "dim"}
    for row in found.figures:
        ends = "-" if row.low is None else f"{row.low:+.3g} to {row.high:+.3g}"
        numbers = (f"{row.first:.4g}", f"{row.second:.4g}", f"{row.difference:+.3g}", ends, f"{row.p:.2g}")
        table.add_row(row.measure, *numbers, str(row.items), f"[{colours[row.decision]}]{row.decision}[/]")
    return table
