"""The wall: one offline page of all trainings' pictures by step, under one slider, beside curves and lineage.

In: the artifacts of a store. Out: a folder with `index.html` and one sheet of pictures a training, `sheets/*.webp`, in
which the slider moves. A sheet is read when its training comes into view, so that opening costs what is seen, however
many there are; one that is there already is not made again.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact
from omniloom.stages.reporting import ancestry, history

_CELL = 256  # pixels of a step's picture, at most
_SHEET = 16383  # pixels of a side of a WebP file, at most
_POINTS = 100  # of a curve
_CHANGES = 3
_FIGURES = ("image_class_agreement", "image_coverage", "caption_accuracy", "bits_per_byte", "recon_psnr_image")
_PICTURE = re.compile(r"report/steps/(.+)-(\d+)\.png")
_READERS = 8


@dataclass(frozen=True)
class Shown:
    """Pictures of a training by their steps, and what is told beside them."""

    artifact: Artifact
    label: str
    files: Mapping[int, str]
    facts: Mapping[str, Any]

    @property
    def sheet(self) -> str:
        return f"sheets/{self.artifact.stage}-{self.artifact.fingerprint}-{self.label}.webp"


def build(artifacts: Sequence[Artifact], target: Path) -> tuple[Path, int]:
    """Write the page of the trainings among the artifacts; gives its file, and how many trainings are on it."""
    shown = [one for artifact in sorted(artifacts, key=_ended) for one in _shown(artifact, artifacts)]
    (target / "sheets").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_READERS) as pool:
        runs = list(pool.map(lambda one: {**one.facts, **_sheet(one, target)}, shown))
    page = Path(__file__).with_name("wall.html").read_text(encoding="utf-8")
    data = json.dumps(redact(finite(runs)), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    (target / "index.html").write_text(page.replace("/*RUNS*/[]", data), encoding="utf-8")
    return target / "index.html", len(runs)


def _ended(artifact: Artifact) -> float:
    return artifact.manifest["times"]["ended_unix"]


def _shown(artifact: Artifact, all_of_them: Iterable[Artifact]) -> list[Shown]:
    by_label: dict[str, dict[int, str]] = {}
    for entry in artifact.manifest["files"]:
        if found := _PICTURE.fullmatch(entry["path"]):
            by_label.setdefault(found[1], {})[int(found[2])] = artifact.file(entry["path"])
    if not by_label:
        return []
    facts = {
        "title": artifact.manifest.get("pipeline") or artifact.stage,
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint[:12],
        "ended": artifact.manifest["times"]["ended"],
        "changed": _changed(artifact, all_of_them),
        "lineage": [f"{a.stage} {a.fingerprint[:8]}" for a in ancestry.ancestors([artifact])],
        "figures": _figures(artifact, all_of_them),
        "curves": _curves(artifact),
    }
    return [
        Shown(artifact, label, dict(sorted(files.items())), facts | {"label": label})
        for label, files in by_label.items()
    ]


def _changed(artifact: Artifact, others: Iterable[Artifact]) -> str:
    """What its config, or one before it, has otherwise than the training of the same stage before it."""
    earlier = [a for a in others if a.stage == artifact.stage and _ended(a) < _ended(artifact)]
    if not earlier:
        return "first run"
    now, before = (
        {a.stage: a.manifest["config"] or {} for a in ancestry.ancestors([one])}
        for one in (artifact, max(earlier, key=_ended))
    )
    found = [f"{path} {old} -> {new}" for path, old, new in ancestry.changes(now, before)]
    more = f" and {len(found) - _CHANGES} more" if len(found) > _CHANGES else ""
    return ", ".join(found[:_CHANGES]) + more or "the same config"


def _figures(artifact: Artifact, others: Iterable[Artifact]) -> dict[str, float]:
    """Of the newest evaluation of this training."""
    made = [
        a
        for a in others
        if a.manifest["inputs"].get(artifact.stage) == artifact.fingerprint and "gate_passed" in a.metrics
    ]
    if not made:
        return {}
    metrics = max(made, key=_ended).metrics
    return {name: metrics[name] for name in _FIGURES if isinstance(metrics.get(name), int | float)}


def _curves(artifact: Artifact) -> dict[str, list]:
    uri = artifact.file("report", "history.jsonl")
    if not storage.exists(uri):
        return {}
    series = history.series(history.load(uri))
    chosen = [name for name in series if name in ("loss", "validation_text_loss", "validation_visual_loss")]
    chosen += [name for name in series if name.startswith("validation_psnr")]
    return {name: _thin([[s, v] for s, v in series[name] if math.isfinite(v)]) for name in chosen}


def _thin(points: list) -> list:
    every = max(1, math.ceil(len(points) / _POINTS))
    return [[step, float(f"{value:.5g}")] for step, value in points[::-1][::every][::-1]]


def _sheet(one: Shown, target: Path) -> dict[str, Any]:
    """Make the sheet, unless it is there: the steps' pictures in rows, each in a cell of one size."""
    from PIL import Image

    path = target / one.sheet
    with Image.open(io.BytesIO(storage.read_bytes(next(iter(one.files.values()))))) as first:
        scale = min(1.0, _CELL / max(first.size))
        cell = [max(1, round(side * scale)) for side in first.size]
    columns = min(math.ceil(math.sqrt(len(one.files))), _SHEET // cell[0])
    if not path.exists():
        rows = math.ceil(len(one.files) / columns)
        sheet = Image.new("RGB", (columns * cell[0], min(_SHEET, rows * cell[1])), "white")
        for number, uri in enumerate(one.files.values()):
            with Image.open(io.BytesIO(storage.read_bytes(uri))) as picture:
                small = picture.convert("RGB").resize((cell[0], cell[1]), Image.Resampling.BOX)
            sheet.paste(small, (number % columns * cell[0], number // columns * cell[1]))
        path.with_suffix(".part").write_bytes(_webp(sheet))
        path.with_suffix(".part").replace(path)
    return {"sheet": one.sheet, "steps": list(one.files), "cell": cell, "columns": columns}


def _webp(sheet: Any) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()
