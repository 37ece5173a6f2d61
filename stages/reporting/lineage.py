"""The lineage of a run, drawn. In: artifacts with what they were made from. Out: inline SVG, files at the top, the
model at the bottom, an arrow from each artifact to what was made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniloom.infra.artifacts import Artifact

_WIDTH, _BOX, _HIGH, _GAP, _ROW = 360, 112, 46, 10, 78  # in SVG units, which are pixels on a phone


def draw(artifacts: Sequence[Artifact]) -> Any:
    """Markup-safe SVG of the artifacts and of the sources that the first of them read."""
    from markupsafe import Markup, escape

    facts = {artifact.stage: _facts(artifact) for artifact in artifacts}
    parents = {a.stage: [name for name in a.manifest.get("inputs", {}) if name in facts] for a in artifacts}
    for artifact in artifacts:
        for index, source in enumerate((artifact.manifest.get("config") or {}).get("sources") or ()):
            name = f"source {source.get('name') or source['kind'] + f'_{index}'}"
            facts[name], parents[name] = source["kind"], []
            parents[artifact.stage].append(name)
    rows = _rows(parents)
    width = max(_WIDTH, *(len(row) * (_BOX + _GAP) + _GAP for row in rows))
    places = {
        name: (width * (2 * column + 1) / (2 * len(row)), _GAP + _ROW * number)
        for number, row in enumerate(rows)
        for column, name in enumerate(row)
    }
    lines, boxes = [], []
    for name, (x, y) in places.items():
        for parent in parents[name]:
            px, py = places[parent][0], places[parent][1] + _HIGH
            middle = (py + y) / 2
            bend = f"C{px:.0f} {middle:.0f} {x:.0f} {middle:.0f} {x:.0f} {y:.0f}"
            lines.append(f"<path class='edge' d='M{px:.0f} {py:.0f} {bend}'/>")
        shown = _cut(name.removeprefix("source "), 16)
        boxes.append(
            f"<g><rect class='box' x='{x - _BOX / 2:.0f}' y='{y:.0f}' width='{_BOX}' height='{_HIGH}' rx='7'/>"
            f"<text class='name' text-anchor='middle' x='{x:.0f}' y='{y + 19:.0f}'>{escape(shown)}</text>"
            f"<text class='fact' text-anchor='middle' x='{x:.0f}' y='{y + 35:.0f}'>"
            f"{escape(_cut(facts[name], 20))}</text>"
            f"<title>{escape(name)}</title></g>"
        )
    height = _ROW * len(rows)
    return Markup(
        f"<svg class='lineage' viewBox='0 0 {width:.0f} {height}' style='max-width:{1.6 * width:.0f}px' role='img' "
        f"aria-label='lineage: {escape(', '.join(name for row in rows for name in row))}'>"
        + "".join(lines + boxes)
        + "</svg>"
    )


def _rows(parents: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The names by how far they are from the files."""
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(parent) for parent in parents[name]), default=-1)
        return depth[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(map(of, parents)))]
    for name, number in depth.items():
        rows[number].append(name)
    return rows


def _facts(artifact: Artifact) -> str:
    metrics = artifact.manifest.get("metrics", {})
    for name, words in (("steps", "steps"), ("documents", "documents"), ("records", "records")):
        if name in metrics:
            return f"{metrics[name]:,} {words}"
    return artifact.fingerprint[:12]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
