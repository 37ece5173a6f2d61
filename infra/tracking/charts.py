"""How MLflow's page arranges a run's figures: it makes a section of what stands before the last `/` of a name, in the
order of the alphabet. In: figures by the names that a stage gives them. Out: the same by the names that MLflow is told.

The sections: `data/`, `evaluation/`, `gradients/`, `pictures/`, `throughput/`, `train/`, `validation/`, and behind them
`versus_seen/`, the curves of `train/` once more by what was seen in place of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAIN, EVALUATION, DATA, PICTURES = "train", "evaluation", "data", "pictures"
SEEN = "throughput/seen"
_VERSUS = "versus_seen"
_STARTS = {"validation_": "validation", "grad_": "gradients", "clipped": "gradients"}
_THROUGHPUT_ENDS = ("_per_second", "seconds", "_utilization", "_mebibytes", "_targets")
_THROUGHPUT = ("flops", "padding", "workers", "gpus", "units", "steps")


def sections(makes: str) -> str:
    """The section of what a stage is judged by, by what it makes: see `Stage.makes`."""
    return {"evaluation": EVALUATION, "model": TRAIN, "tokenizer": TRAIN, "study": TRAIN}.get(makes, DATA)


def charted(metrics: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Figures with the section that each is shown in before its name; one that has a section keeps it."""
    return {_name(name, section): value for name, value in metrics.items()}


def versus_seen(name: str) -> str | None:
    """What a curve is called where it is drawn by what was seen; None for one that says nothing there."""
    section, _, last = name.rpartition("/")
    if section.endswith((TRAIN,)) or not section:
        return "/".join(filter(None, (section.removesuffix(TRAIN).rstrip("/"), _VERSUS, last)))
    return None


def pictured(name: str) -> str:
    return name if "/" in name else f"{PICTURES}/{name}"


def plain(name: str) -> str:
    """A figure of an evaluation by the name that the evaluation gives it."""
    return name.removeprefix(f"{EVALUATION}/")


def _name(name: str, section: str) -> str:
    if "/" in name:
        return name
    if section == TRAIN:
        for start, group in _STARTS.items():
            if name.startswith(start):
                return f"{group}/{name.removeprefix('validation_')}"
        if name in _THROUGHPUT or name.endswith(_THROUGHPUT_ENDS):
            return f"throughput/{name}"
    return f"{section}/{name}"
