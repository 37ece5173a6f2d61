"""Sections of a report on what a model was made of. In: its artifacts. Out: sections for `report.render`: the data with
samples and rejects, the lineage, the configs and what differs, and what the stages cost.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import decode_image, decode_video
from omniloom.stages.reporting import ancestry, lineage

_SHOWN = 12  # pictures of the data
_TEXTS = 3
_SIDE = 128  # pixels of a shown picture's longer side, at most
_REASONS = 8


def sections(
    made_of: Sequence[Artifact], corpus: Artifact | None, previous: Mapping[str, Artifact | None]
) -> list[dict]:
    """`made_of`: what the model was made of (`ancestry.ancestors`), itself included; `corpus`: the records that it was
    trained on, where they are there; `previous`: by what it is called, an earlier model to hold the configs against."""
    return [
        *(_data(corpus) if corpus else ()),
        {"title": "Lineage", "svg": lineage.draw(made_of)},
        *_configs(made_of, previous),
        *_costs(made_of),
    ]


def _data(corpus: Artifact) -> list[dict]:
    counts = corpus.metrics
    kinds = [
        [kind, counts.get(f"records_{kind}"), counts.get(f"records_train_{kind}")]
        for kind in records.KINDS
        if counts.get(f"records_{kind}")
    ]
    tables = [{"columns": ["kind", "records", "to train on"], "rows": kinds}]
    splits = [[split, counts.get(f"records_{split}")] for split in records.SPLITS]
    tables.append({"columns": ["split", "records"], "rows": splits})
    left = [[name, counts[name]] for name in ("rejects", "duplicates", "near_twins", "uncaptioned") if name in counts]
    left += [[f"rejected: {reason}", count] for reason, count in _rejects(corpus)]
    if left:
        tables.append({"columns": ["left out, or without a caption", "records"], "rows": left})
    return [{"title": "Data", "tables": tables, **_samples(corpus)}]


def _rejects(corpus: Artifact) -> list[tuple[str, int]]:
    uri = corpus.file("rejects", "rejects.jsonl")
    if not storage.exists(uri):
        return []
    found: Counter[str] = Counter()
    first: dict[str, str] = {}
    for line in storage.read_bytes(uri).decode().splitlines():
        row = json.loads(line)
        found[row["code"]] += 1
        first.setdefault(row["code"], f"{row['code']} (the first: {row.get('path') or row.get('source')})")
    return [(first[code], count) for code, count in found.most_common(_REASONS)]


def _samples(corpus: Artifact) -> dict:
    """The first of each kind and source, as the model is shown them: pictures, and texts."""
    wanted = ("kind", "media", "caption", "text", "source")
    pictures: list[dict | None] = []
    texts: list[dict] = []
    for kind in ("image", "video"):
        seen: Counter[str] = Counter()
        rows = records.iterate(corpus.uri, kinds=[kind], split="train", columns=wanted, batch_size=16)
        for row in itertools.islice(rows, 10 * _SHOWN):
            if seen[row["source"]] < _SHOWN // 2 and len(pictures) < 2 * _SHOWN and row["media"]:
                seen[row["source"]] += 1
                pictures.append(_picture(row))
    for row in itertools.islice(
        records.iterate(corpus.uri, kinds=["text"], split="train", columns=wanted, batch_size=4), _TEXTS
    ):
        texts.append({"prompt": row["source"], "output": " ".join((row["text"] or "")[:240].split())})
    found: dict[str, Any] = {"cards": [card for card in pictures if card]} if any(pictures) else {}
    return found | ({"samples": texts, "headings": ["source", "text"]} if texts else {})


def _picture(row: Mapping[str, Any]) -> dict | None:
    from PIL import Image

    try:
        frames = decode_video(row["media"], num_frames=1)[0] if row["kind"] == "video" else decode_image(row["media"])
    except Exception:  # a sample that cannot be shown is no reason for no report
        return None
    image = Image.fromarray(frames)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"png": buffer.getvalue(), "lines": [row["caption"] or "", f"{row['kind']} of {row['source']}"]}


def _configs(made_of: Sequence[Artifact], previous: Mapping[str, Artifact | None]) -> list[dict]:
    tables, said = [], []
    now = {artifact.stage: artifact.manifest.get("config") or {} for artifact in made_of}
    for name, model in previous.items():
        if model is None:
            continue
        then = {artifact.stage: artifact.manifest.get("config") or {} for artifact in ancestry.ancestors([model])}
        rows = [[path, _shown(old), _shown(new)] for path, old, new in ancestry.changes(now, then)]
        if rows:
            tables.append({"caption": f"against {name}", "columns": ["field", name, "this run"], "rows": rows})
        else:
            said.append(f"Nothing differs from {name}.")
    whole = {"title": "Config", "details": json.dumps(now, indent=2, ensure_ascii=False)}
    if not any(previous.values()):
        said.append("There is no earlier run of this pipeline to hold it against.")
    return [whole | {"text": " ".join(said)} | ({"tables": tables} if tables else {})]


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 120 else f"{text[:117]}..."


def _costs(made_of: Sequence[Artifact]) -> list[dict]:
    """Seconds, and hours of what was reserved. A stage whose manifest says nothing of that has none."""
    rows, sums = [], [0.0, 0.0, 0.0]
    for artifact in made_of:
        times, reserved = artifact.manifest.get("times", {}), artifact.manifest.get("reserved")
        seconds = float(times.get("seconds", 0))
        hours = [reserved[name] * seconds / 3600 for name in ("cpus", "gpus")] if reserved else [None, None]
        sums = [total + (value or 0.0) for total, value in zip(sums, [seconds, *hours], strict=True)]
        size = sum(entry["bytes"] for entry in artifact.manifest["files"]) / 1e6
        rows.append([artifact.stage, seconds, *hours, size, times.get("ended", "")])
    rows.append(["together", *sums, sum(row[4] for row in rows), ""])
    return [
        {
            "title": "Costs",
            "text": "Hours are of the CPUs and GPUs that a stage had reserved; what was up to date cost nothing again.",
            "tables": [{"columns": ["stage", "seconds", "CPU hours", "GPU hours", "MB kept", "ended"], "rows": rows}],
        }
    ]
