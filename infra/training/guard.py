"""The guard of a training: it judges each step before its update is applied, and acts on what is bad (`bad_steps`).

Engines ask it with means over all ranks, so that all are told the same; what `on_bad_step` says then happens on every
rank. The training goes back by `GoBack`, on which the loop begins again at the newest checkpoint. What it goes back for
is written to STATE/bad_steps.json first, as that checkpoint cannot know it: a run that dies meanwhile leaves out the
same, on any number of ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.training.bad_steps import BadStep, BadSteps, to_blame
from omniloom.infra.training.config import EngineConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.shards import gathered, ranks


class TrainingDiverged(RuntimeError):
    """A step that ends the training; the message names it, what was wrong and the batch."""


class GoBack(Exception):
    """The training goes on from its newest checkpoint, in this process. Raised on every rank."""


class Guard:
    """`state` is the URI of the stage's state folder; `note` is told on rank 0 what was bad and what followed."""

    def __init__(self, config: EngineConfig, engines: Mapping[str, Engine], state: str, note: Callable[[str], None]):
        self.config, self.bad, self.note = config, BadSteps(config), note
        self.why: str | None = None  # of the step that was trained last, where its update was not applied
        self._uri = storage.join(state, "bad_steps.json")
        self._kind, self._several = "", len(engines) > 1
        if self.bad.active:
            for name, engine in engines.items():
                engine.accepts = functools.partial(self._accepts, name)

    @property
    def goes_back(self) -> bool:
        return self.config.on_bad_step == "rollback"

    def begin(self, kind: str) -> None:
        """A step begins; those of a kind are compared with each other."""
        self.why, self._kind = None, kind

    def _accepts(self, engine: str, loss: float, grad_norm: float) -> bool:
        """Whether an engine may apply its update; none may after one that may not."""
        if self.why is None:
            about = " ".join(word for word in (self._kind, engine if self._several else "") if word)
            figures = {"loss": loss, "grad_norm": grad_norm}
            self.why = self.bad.judge({f"{about} {name}".strip(): value for name, value in figures.items()})
        return self.why is None

    def resume(self, position: Mapping[str, Any]) -> dict[str, Any]:
        """Go on from a checkpoint's position, empty for step 0. Gives the position for the loader, with the ids of the
        documents that are left out. Every rank must call it."""
        if self.bad.active:
            later = gathered((storage.read_json(self._uri) or {}).get("found", ()))[0]
            self.bad.restore(position.get("bad_steps", {}), later)
        left_out = [document["id"] for document in self.bad.documents]
        return {**position, "left_out": left_out} if left_out else dict(position)

    @property
    def position(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"bad_steps": self.bad.state} if self.bad.active else {}

    @property
    def figures(self) -> dict[str, float]:
        """For a row of the curves."""
        return {"bad_steps": len(self.bad.found)} if self.bad.active else {}

    def save(self, output: str) -> dict[str, int]:
        """Write report/bad_steps.json of an artifact where there were any; gives their counts for its metrics."""
        if not self.bad.found:
            return {}
        storage.write_json(storage.join(output, "report", "bad_steps.json"), {"found": self.bad.state["found"]})
        return self.bad.counts

    def act(self, step: int, batch: str, measure: Callable[[int], list[dict[str, Any]]]) -> None:
        """What follows a bad step. `batch` says what it was made of, `measure` what each of its documents gives alone.
        Every rank must call it; raises `GoBack` or `TrainingDiverged`, returns where the step was skipped."""
        told = f"step {step}: {self.why}"
        if self.config.on_bad_step == "stop":
            raise TrainingDiverged(f"{told}; batch: {batch}")
        documents: list[dict[str, Any]] = []
        if self.goes_back and not self.bad.was_bad(step):
            documents = finite(to_blame(measure(step), self.bad.sigmas or 0.0))
        self._remember(BadStep(step, str(self.why), self.config.on_bad_step, documents), f"{told}; batch: {batch}")
        self._tell(f"{told}; left out: {_named(documents) or 'the step'}")
        if self.goes_back:
            raise GoBack

    def act_on_divergence(self, step: int, what: str) -> None:
        """What follows where ranks were found to differ after a step. Raises; every rank must call it."""
        told = f"step {step}: ranks differ in {what}, of which each has a copy"
        if not self.goes_back:
            raise TrainingDiverged(
                f"{told}: a rank's memory, device or software is not as the others'; the last checkpoint is of before"
            )
        self._remember(BadStep(step, f"ranks differ in {what}", "reload"), told)
        self._tell(told)
        raise GoBack

    def _remember(self, bad: BadStep, told: str) -> None:
        if last_word := self.bad.add(bad):
            raise TrainingDiverged(f"{told}; {last_word}")
        if self.goes_back and ranks()[0] == 0:
            storage.write_json(self._uri, {"found": self.bad.state["found"]})

    def _tell(self, text: str) -> None:
        if ranks()[0] == 0:
            self.note(text + ("; training goes back to the last checkpoint" if self.goes_back else ""))


def _named(documents: list[dict[str, Any]]) -> str:
    names = [f"{d['source']}: {d['path']}" if d.get("path") else d["id"][:12] for d in documents]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
