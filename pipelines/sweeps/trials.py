"""Trials: of each a checked config and a plan, all made before anything is spent.

In: a config with a sweep, as a file and overrides. Out: the trials, what they share, or an InputError that names the
trial and the field. Sources are listed once for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from omniloom.infra import cluster
from omniloom.infra.errors import InputError, together
from omniloom.pipelines import room
from omniloom.pipelines.config import PipelineConfig, checked, draft, naming, placed
from omniloom.pipelines.origin import Origin
from omniloom.pipelines.plan import Plan, make_plan
from omniloom.pipelines.selection import Selection
from omniloom.pipelines.sweeps import goals
from omniloom.pipelines.sweeps.spaces import Values, extremes, listed

_TRIAL = " (trial "
_SHOWN = 60  # characters of a value

Made = tuple[str, str]  # an artifact: its stage and fingerprint


@dataclass
class Trial:
    """`number` counts from 1; `changes` has by each swept field's short name what it is here and was in the file."""

    number: int
    values: Values
    changes: Mapping[str, tuple[str, str | None]]
    plan: Plan
    log: str | None = None  # where its run's log lies

    @property
    def config(self) -> PipelineConfig:
        return self.plan.config

    @property
    def title(self) -> str:
        """`lr 0.002 -> 0.0003, objectives {next_code: 1.0}`."""
        return ", ".join(
            f"{name} {now}" if was in (None, now) else f"{name} {was} -> {now}"
            for name, (now, was) in self.changes.items()
        )

    @property
    def to_make(self) -> list[Made]:
        return [(planned.name, planned.fingerprint) for planned in self.plan.to_execute]


class Trials:
    """The trials of a sweep: those that are known from the beginning, and `make` for those that a search chooses."""

    def __init__(self, path: str, overrides: Sequence[str], base: PipelineConfig, selection: Selection = Selection()):
        assert base.sweep is not None
        self.base, self.sweep, self.selection = base, base.sweep, selection
        for option in ("only", "from_", "force"):
            if getattr(selection, option):
                raise InputError(
                    "is of one pipeline, and a sweep has several that share stages; sweep=null leaves it out",
                    field=f"--{option.rstrip('_')}",
                )
        self._draft = draft(path, list(overrides))
        keys = [override.partition("=")[0] for override in overrides]
        self._origin = Origin.of(self._draft.file, keys)
        self._names = short_names(self.sweep.fields)
        self._refuse_overridden(keys)
        self._dump = base.model_dump(mode="json", by_alias=True)
        self._first: Plan | None = None  # which has looked up what all share
        self.known = [] if self.chosen_late else self._make_all(listed(self.sweep))
        self.probes = self._make_all(extremes(self.sweep), probes=True) if self.chosen_late else []
        self._refuse_without_effect(self.known or self.probes)

    @property
    def chosen_late(self) -> bool:
        """Whether values are chosen by what comes out before."""
        return self.sweep.method == "optuna"

    @property
    def count(self) -> int:
        return self.sweep.trials or len(self.known) if self.chosen_late else len(self.known)

    def make(self, number: int, values: Values, what: str = "") -> Trial:
        """A trial with these values; InputError where they are not right, and where there is no room for it."""
        changes = {self._names[path]: (shown(value), self._before(path)) for path, value in values.items()}
        what = what or f"trial {number}"
        told = f"{what}: " + ", ".join(f"{path} = {shown(value)}" for path, value in values.items())
        origin = replace(self._origin, trial=told, swept=tuple(values))
        own = copy.deepcopy(self._draft)
        for path, value in values.items():
            try:
                own.put(path, copy.deepcopy(value), whole=True)
            except (OmegaConfBaseException, ValueError, IndexError, TypeError) as error:
                why = " ".join(str(error).split("\n")[0].split())
                raise origin.placed(InputError(f"cannot be set: {why}", field=path)) from None
        config = checked(own.values() | {"sweep": None}, origin, files=True)
        with naming(config):
            goals.check(config, self.sweep, self.selection)
            plan = self.planned(config)
            if cluster.starts_here(config.cluster):
                room.check(config, [stage.name for stage in plan.to_execute])
        return Trial(number, values, changes, plan)

    def planned(self, config: PipelineConfig) -> Plan:
        """The plan of a trial as things are now, by what was seen of sources and outside files at the beginning."""
        plan = make_plan(config, self.selection, self._first)
        self._first = self._first or plan
        return plan

    def _make_all(self, all_values: Sequence[Values], probes: bool = False) -> list[Trial]:
        found, errors = [], dict[tuple, InputError]()  # what is wrong alike in several trials is told of the first
        wrong = 0
        for number, values in enumerate(all_values, 1):
            try:
                found.append(self.make(number, values, "trial with" if probes else ""))
            except InputError as error:
                wrong += 1
                for one in error.each():
                    errors.setdefault((one.field, one.message.partition(_TRIAL)[0]), one)
        if errors:
            if wrong > 1:
                told = f"{wrong} of the {len(all_values)} trials are wrong; each mistake is told of its first"
                errors[()] = InputError(told, field="sweep", line=1 << 31)  # behind all others
            raise together(errors.values())
        return found

    def _before(self, path: str) -> str | None:
        """What the file has at the place, in words."""
        inside: Any = self._dump
        for key in path.replace("[", ".").replace("]", "").split("."):
            if isinstance(inside, list) and key.isdigit() and int(key) < len(inside):
                inside = inside[int(key)]
            elif isinstance(inside, dict) and key in inside:
                inside = inside[key]
            else:
                return None
        return shown(inside)

    def _refuse_overridden(self, keys: Sequence[str]) -> None:
        for key in keys:
            for path in self.sweep.fields:
                if f"{key}.".startswith(f"{path}."):
                    raise InputError(
                        f"has no effect, as the sweep sets {path}; set sweep.fields.{path}, or sweep=null to run "
                        "without the sweep",
                        field=key,
                        file=self._draft.file,
                    )

    def _refuse_without_effect(self, trials: Iterable[Trial]) -> None:
        """Two trials of different values that come to the same artifacts would be one."""
        seen: dict[tuple, Trial] = {}
        for trial in trials:
            made = tuple(trial.plan.artifacts.items())
            if other := seen.get(made):
                fields = [path for path in trial.values if trial.values[path] != other.values[path]]
                raise placed(
                    self.base,
                    InputError(
                        f"changes nothing that comes out: {shown(other.values[fields[0]])} and "
                        f"{shown(trial.values[fields[0]])} give the same artifacts",
                        field=f"sweep.fields.{fields[0]}",
                    ),
                )
            seen[made] = trial


def sharing(trials: Iterable[Trial]) -> dict[Made, list[Trial]]:
    """By each artifact, the trials that make or use it."""
    found: dict[Made, list[Trial]] = {}
    for trial in trials:
        for made in trial.plan.artifacts.items():
            found.setdefault(made, []).append(trial)
    return found


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """By a field's path, the shortest end of it that is no other's."""
    parts = {path: path.split(".") for path in paths}
    found = {}
    for path, own in parts.items():
        others = [other for name, other in parts.items() if name != path]
        size = next(n for n in range(1, len(own) + 1) if n == len(own) or all(o[-n:] != own[-n:] for o in others))
        found[path] = ".".join(own[-size:])
    return found


def shown(value: Any) -> str:
    """A value as the file may have it, in one line, cut where it is long."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()
        text = text.removesuffix("\n...").strip()
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
