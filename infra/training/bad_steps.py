"""Bad steps: whether a step's loss and gradient are such that its update must not be applied, and what follows.

A step is bad where a figure of it is not finite, or lies far above its own recent past: by so many times the spread of
the last good steps. Median and median absolute deviation stand for mean and deviation, which one spike would move. An
update that is left out is OLMo's SkipStepOptimizer (OLMo-core, `optim/skip_step_optimizer.py`: 6 deviations of the last
128 steps, judged once half of them are there); going back to a checkpoint and leaving out the data is PaLM's recipe
(arXiv 2204.02311, section 5.1).

No torch. What is judged are means over all ranks, so that every rank decides alike; the state is JSON, which
checkpoints keep, so that a resumed run decides as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from omniloom.infra.training.config import EngineConfig

# Where the config leaves it open. Figures of good steps have heavier tails than a normal distribution: among a thousand
# steps of clean documents some lie 6 and 7 deviations up.
SIGMAS = 8.0
_NORMAL = 1.4826  # standard deviations in a median absolute deviation, of a normal distribution
_LEAST_SPREAD = 0.01  # of the median: what a spread is at least, where a figure hardly moves


def deviations(value: float, others: Sequence[float], least_spread: float = _LEAST_SPREAD) -> float:
    """How many standard deviations the value lies above the median of the others; negative below it. The deviation is
    1.4826 of their median absolute deviation, and at least `least_spread` of the median."""
    middle = median(others)
    spread = _NORMAL * median(abs(other - middle) for other in others)
    return (value - middle) / max(spread, least_spread * abs(middle), 1e-12)


def above_the_past(value: float, past: Sequence[float]) -> float:
    """How many deviations the value lies above what its past lets expect. A figure that falls is expected to go on at
    half the pace, for it falls ever slower; its fall is the median of slopes over half of the past (Theil's)."""
    count = len(past)
    span = (count + 1) // 2
    slope = min(0.0, median((past[at + span] - past[at]) / span for at in range(count - span)))
    return deviations(value, [known + slope * (count - at) / 2 for at, known in enumerate(past)])


@dataclass
class BadStep:
    """A step that was bad: why, what was done (skip, rollback; reload where no step is to blame), and the documents
    that are left out from then on; none where the whole step is. A document is what the trainer's `measure` says."""

    step: int
    why: str
    action: str
    documents: list[dict[str, Any]] = field(default_factory=list)


class BadSteps:
    """The detector, and the memory of what it found. `windows` are the last good figures by name."""

    def __init__(self, settings: EngineConfig):
        self.settings = settings
        self.windows: dict[str, list[float]] = {}
        self.found: list[BadStep] = []

    @property
    def active(self) -> bool:
        """Whether steps are judged before their update is applied; else only what is not finite ends the training."""
        return self.sigmas is not None

    @property
    def sigmas(self) -> float | None:
        """How many deviations above the median are too many; None where no spike is acted on."""
        return self.settings.spike_sigmas or (None if self.settings.on_bad_step == "stop" else SIGMAS)

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """Why a step with these figures is bad; None where it is not, and then they are remembered."""
        for name, value in figures.items():
            if why := self._wrong(name, value):
                return why
        for name, value in figures.items():
            window = self.windows.setdefault(name, [])
            window.append(value)
            del window[: -self.settings.spike_window]
        return None

    def _wrong(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{name} is {value}"
        window = self.windows.get(name, [])
        if self.sigmas is None or len(window) < max(2, self.settings.spike_window // 2):
            return None
        above = above_the_past(value, window)
        if above <= self.sigmas:
            return None
        return (
            f"{name} is {value:.4g}, {above:.1f} deviations above the last steps, whose median is {median(window):.4g}"
        )

    def add(self, bad: BadStep) -> str | None:
        """Remember a bad step; gives the last word where there were too many."""
        self.found.append(bad)
        if len(self.found) <= self.settings.max_bad_steps:
            return None
        return (
            f"that is bad step number {len(self.found)}, and engine.max_bad_steps is {self.settings.max_bad_steps}; "
            "look at the documents of the first ones (`omniloom replay`), lower optimizer.lr, or raise the limit"
        )

    def leaves_out(self, step: int) -> bool:
        """Whether the whole step is left out, as going back did not tell what of it is to blame."""
        return any(bad.step == step and bad.action == "rollback" and not bad.documents for bad in self.found)

    def was_bad(self, step: int) -> bool:
        return any(bad.step == step for bad in self.found)

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The documents that are left out, in the order in which they were found."""
        return [document for bad in self.found for document in bad.documents]

    @property
    def counts(self) -> dict[str, int]:
        """For the metrics: bad steps, and of what they led to the documents and whole steps that were left out."""
        whole = sum(not bad.documents and bad.action != "reload" for bad in self.found)
        return {"bad_steps": len(self.found), "steps_left_out": whole, "documents_left_out": len(self.documents)}

    @property
    def state(self) -> dict[str, Any]:
        """For the position of a checkpoint: a copy."""
        return {
            "windows": {name: list(window) for name, window in self.windows.items()},
            "found": [asdict(bad) for bad in self.found],
        }

    def restore(self, state: Mapping[str, Any], found: Sequence[Mapping[str, Any]] = ()) -> None:
        """Go on from a checkpoint's state, empty for step 0; `found` are bad steps that made the training go back to
        it, which its state cannot know."""
        self.windows = {name: list(window) for name, window in state.get("windows", {}).items()}
        self.found = [BadStep(**bad) for bad in state.get("found", ())]
        self.found += [late for bad in found if (late := BadStep(**bad)) not in self.found]


def to_blame(documents: Sequence[Mapping[str, Any]], sigmas: float) -> list[dict[str, Any]]:
    """Of the documents of a step those that are to blame, each with its "deviations": those whose "loss" or
    "grad_norm" is not finite; where all are, those of which one of the two lies more than `sigmas` above the others of
    their "task". None where none stands out, or where a task has too few to tell.

    A deviation counts as a tenth of the median at least, for documents differ more than steps do.
    """
    if broken := [d for d in documents if not (math.isfinite(d["loss"]) and math.isfinite(d["grad_norm"]))]:
        return _once({**document, "deviations": math.inf} for document in broken)
    ranked = ({**document, "deviations": stands_out(document, documents)} for document in documents)
    return _once(sorted((d for d in ranked if d["deviations"] > sigmas), key=lambda d: -d["deviations"]))


def _once(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each document once, where several pieces of it are in a step."""
    first: dict[str, dict[str, Any]] = {}
    for document in documents:
        first.setdefault(document["id"], document)
    return list(first.values())


_FEWEST = 4  # others that a document can be compared with


def stands_out(document: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> float:
    """How many deviations its loss or gradient norm lies above the others of its task; 0 where those are too few."""
    others = [d for d in documents if d is not document and d["task"] == document["task"]]
    if len(others) < _FEWEST:
        return 0.0
    return max(deviations(document[name], [d[name] for d in others], 0.1) for name in ("loss", "grad_norm"))
