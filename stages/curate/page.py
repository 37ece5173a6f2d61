"""The page of a curation: what went, or would go, by each step and why, with samples."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omniloom.stages.reporting import report as reporting

if TYPE_CHECKING:
    from omniloom.stages.curate.config import Config
    from omniloom.stages.curate.phases import Phase

_SAMPLES, _REASONS = 8, 12  # of one step


def name_of(label: str) -> str:
    """The step's kind: "3.blur" is "blur"."""
    return label.partition(".")[2] or label


def render(config: Config, phases: Sequence[Phase], reports: Sequence[Sequence[dict]], dry: bool) -> str:
    """HTML that needs nothing else. `reports` are those of `phases.Work`, by phase and shard."""
    counts: Counter = Counter()
    samples: dict[str, list[dict]] = {}
    for report in (report for of_phase in reports for report in of_phase):
        counts.update(report["counts"])
        for label, found in report["samples"].items():
            samples.setdefault(label, []).extend(found)
    labels = [one.label for phase in phases for one in (*phase.filters, phase.comparison) if one]
    labels = list(dict.fromkeys(labels))
    goes = "would go" if dry else "went"
    rows: list[list[Any]] = [
        [label, counts[f"{label}.records"], counts[f"{label}.captions"], counts[f"{label}.made"]] for label in labels
    ]
    left = sum(report["records"] for report in reports[-1])
    gone = sum(row[1] for row in rows)
    table = {"columns": ["step", f"records that {goes}", "captions", "records changed or made"], "rows": rows}
    text = "In the order of the config; each sees what those before it leave."
    sections = [
        {
            "title": "Steps",
            "text": text,
            "tables": [table],
        },
        *(_section(label, samples[label], counts, goes) for label in labels if label in samples),
    ]
    return reporting.render(
        {
            "title": "What curation would leave out" if dry else "What curation left out",
            "headline": {"records left": left, f"records that {goes}": gone},
            "sections": sections,
        }
    )


def _section(label: str, samples: list[dict], counts: Counter, goes: str) -> dict:
    shown = sorted(samples, key=_order)[:_SAMPLES]
    prefix = f"{label}.because."
    reasons = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
    rows = [[reason, n] for reason, n in sorted(reasons.items(), key=lambda one: (-one[1], one[0]))[:_REASONS]]
    gone = [f"{n:,} {what}" for what in ("records", "captions") if (n := counts[f"{label}.{what}"])]
    return {
        "title": label,
        "text": f"{' and '.join(gone)} {goes}.",
        "tables": [{"columns": ["reason", "records"], "rows": rows}] if rows else [],
        "headings": ["record and reason", "what it holds", "what the other holds"],
        "samples": [_sample(one, goes) for one in shown],
    }


def _order(sample: dict) -> tuple:
    """Such with a picture of what they are like first, then by chance that is the same every time."""
    key = f"{sample['source']} {sample['path']} {sample['part']}"
    return sample["like"] is None, hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _sample(one: dict, goes: str) -> dict:
    where = f"{one['source']}: {one['path']}" + (f", part {one['part']}" if one["part"] else "")
    like = one["like"] or {}
    found = {"prompt": f"{where} {goes}: {one['reason']}", "output": one["words"]}
    if like.get("words"):
        found["expected"] = like["words"]
    if png := _beside(one["png"], like.get("png")):
        found["png"] = png
    return found


def _beside(png: str | None, other: str | None) -> bytes | None:
    """The picture that goes, and the one that stays at its right."""
    if not png:
        return None
    if not other:
        return base64.b64decode(png)
    import io

    import numpy as np
    from PIL import Image

    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in (png, other)]
    return reporting.grid(pictures, columns=2)
