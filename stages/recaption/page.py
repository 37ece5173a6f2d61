"""The page of a recaptioning: how captions score against others', where they were parted, and what was kept and why."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniloom.stages.recaption.deciding import OUTCOMES
from omniloom.stages.recaption.threshold import Parting
from omniloom.stages.reporting import report

_BINS = 60
_SHOWN = 8  # of each outcome

_MEANINGS = {
    "kept": "all captions stay",
    "partly": "some of several captions go",
    "replaced": "a caption of the model's stands in their place",
    "added": "a caption of the model's where none was",
    "dropped": "no caption is left; the picture stays",
    "left_out": "no caption is left; the picture goes",
    "uncaptioned": "there was none, and none was written that is good enough",
}


def render(
    parting: Parting | None, own: np.ndarray, others: np.ndarray, outcomes: Mapping[str, int], samples: Sequence[dict]
) -> str:
    """HTML that needs nothing else. `samples` are decisions' lines, with "png" as base64."""
    sections: list[dict] = []
    if parting:
        text = (
            f"Scores of the captions that pictures have, and of such as other pictures have. About {parting.wrong:.1%} "
            f"of the captions score as others' do. Those below {parting.threshold:.3g} went: by the distributions "
            f"{parting.found:.1%} of the wrong ones, and {parting.false:.1%} of the right ones."
        )
        curves = {"title": "captions by score", "series": densities(own, others), "x": "score", "y": "density"}
        sections.append({"title": "Scores", "text": text, "curves": [curves]})
    rows = [[name, outcomes.get(name, 0), _MEANINGS[name]] for name in OUTCOMES if outcomes.get(name)]
    sections.append(
        {"title": "What became of pictures", "tables": [{"columns": ["outcome", "pictures", ""], "rows": rows}]}
    )
    for name in OUTCOMES:
        if shown := [_sample(one) for one in samples if one["outcome"] == name][:_SHOWN]:
            headings = ["picture and its captions, with scores", "what the model wrote", "what stays"]
            sections.append({"title": name, "headings": headings, "samples": shown})
    return report.render({"title": "Captions by the scorer", "headline": dict(outcomes), "sections": sections})


def densities(own: np.ndarray, others: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """{name: [(middle of a bin, density)]} of both."""
    low, high = np.quantile(np.concatenate([own, others]), [0.001, 0.999])
    edges = np.linspace(low, high, _BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    return {
        name: list(zip(middles.tolist(), np.histogram(values, edges, density=True)[0].tolist(), strict=True))
        for name, values in (("own captions", own), ("other pictures' captions", others))
    }


def _sample(one: Mapping[str, Any]) -> dict[str, Any]:
    before = "; ".join(f"{caption} ({score:.2f})" for caption, score in one["before"]) or "none"
    written = "{} ({:.2f})".format(*one["written"]) if "written" in one else ""
    shown = {"prompt": f"{one['source']}: {one['path']}: {before}", "output": written or "nothing"}
    if one["captions"]:
        shown["expected"] = "; ".join(one["captions"])
    return {**shown, "png": base64.b64decode(one["png"])} if one.get("png") else shown
