"""The stages of all trials of a sweep, each artifact once: what `status`, `why`, `verify` and `doctor` tell of.

In: a config that has a sweep. Out: `TrialStage`s, of which those that are not every trial's have the trials' numbers
before the stage, as a run shows them: `2/train`, `1,3/pretokenize`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omniloom.infra.errors import InputError
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.sweeps.folder import Folder
from omniloom.pipelines.sweeps.trials import Trial, Trials, sharing


@dataclass(frozen=True)
class TrialStage:
    """A stage of the plan of one trial, and of all trials that have it alike."""

    trials: tuple[Trial, ...]
    planned: PlannedStage
    everywhere: bool

    @property
    def plan(self) -> Plan:
        return self.trials[0].plan

    @property
    def label(self) -> str:
        numbers = ",".join(str(trial.number) for trial in self.trials)
        return self.planned.name if self.everywhere else f"{numbers}/{self.planned.name}"


def trials_of(path: str, overrides: Sequence[str], base: PipelineConfig) -> list[Trial]:
    """Those of the config; where they are chosen by what comes out, those that a run has chosen so far."""
    found = Trials(path, overrides, base)
    if not found.chosen_late:
        return found.known
    made = []
    for row in Folder(base).known():
        with contextlib.suppress(InputError):  # values that cannot be have no plan; the record says why
            made.append(found.make(row["trial"], row["values"]))
    return made


def trial_stages(trials: Sequence[Trial]) -> Iterator[TrialStage]:
    """What all trials have comes first, in the order of stages."""
    users = sharing(trials)
    found = [
        TrialStage(tuple(own), own[0].plan[stage], len(own) == len(trials) > 1) for (stage, _), own in users.items()
    ]
    yield from sorted(found, key=lambda one: not one.everywhere)
