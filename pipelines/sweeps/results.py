"""What came out of each trial, which is best, and whether it is really better than the second. In: trials that ended.
Out: rows, as the table, the files and the page show them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.pipelines.sweeps.config import GoalConfig
from omniloom.pipelines.sweeps.goals import Figure, figure
from omniloom.pipelines.sweeps.pruning import Validations
from omniloom.pipelines.sweeps.spaces import Values
from omniloom.pipelines.sweeps.trials import Made, Trial

if TYPE_CHECKING:
    from omniloom.stages.evaluate.comparing import Compared

Status = Literal["finished", "failed", "pruned", "not run"]


@dataclass
class Result:
    """`why` says why a trial failed or was pruned. `executed` are the stages that this sweep's runs made for it;
    `validations` those of its last training."""

    number: int
    values: Values
    title: str
    status: Status
    figure: Figure | None = None
    why: str = ""
    seconds: float = 0.0  # of the stages that no other trial has
    executed: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    validations: Validations = ()
    log: str | None = None
    pruned: Made | None = None  # the training that was ended

    def to_dict(self) -> dict[str, Any]:
        found = self.figure
        return {
            "trial": self.number,
            "values": dict(self.values),
            "title": self.title,
            "status": self.status,
            "figure": found and found.value,
            "low": found and found.low,
            "high": found and found.high,
            "seconds": round(self.seconds, 2),
            "executed": list(self.executed),
            "artifacts": dict(self.artifacts),
            "why": self.why,
            "log": self.log,
            "pruned": self.pruned and list(self.pruned),
            "validations": [[step, dict(figures)] for step, figures in self.validations],
        }


@dataclass(frozen=True)
class Foretold:
    """metric: STAGE.METRIC. rank: Spearman's coefficient with the goal, positive where more of both go together; low
    and high the ends of its 95% interval, by a bootstrap over trials. pick: the trial that is best by the figure, read
    in the direction that it correlated in. behind: how far the pick's goal is behind the best one's, as a share of it.
    time: the share of the seconds of all trials that the figure in all of them and the pick to its end took."""

    metric: str
    rank: float
    low: float
    high: float
    trials: int
    pick: int
    behind: float
    time: float

    def to_dict(self) -> dict[str, Any]:
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in vars(self).items()}


@dataclass
class Results:
    """Of the whole sweep. `rows` in the order of the trials' numbers; `best` and `second` by the goal; `test` holds the
    best against the second, where both kept values by item, and `untested` says why there is none. `foretold`: which
    earlier figures went with the goal, the strongest first (`pipelines.sweeps.foretelling`)."""

    pipeline: str
    id: str
    goal: GoalConfig
    rows: Sequence[Result]
    test: Compared | None = None
    untested: str = ""
    foretold: Sequence[Foretold] = ()

    @property
    def ranked(self) -> list[Result]:
        """Those that have a figure, the best first."""
        judged = [(row.figure.value, row) for row in self.rows if row.figure and row.status == "finished"]
        return [row for _, row in sorted(judged, key=lambda pair: (-self.goal.sign * pair[0], pair[1].number))]

    @property
    def best(self) -> Result | None:
        return next(iter(self.ranked), None)

    @property
    def second(self) -> Result | None:
        """The best that is another model than the best one."""
        first = self.best
        others = (row for row in self.ranked if first and row.artifacts != first.artifacts)
        return next(others, None)

    @property
    def failed(self) -> list[Result]:
        return [row for row in self.rows if row.status == "failed"]

    @property
    def verdict(self) -> str:
        """In words, whether the best is better than the second."""
        first, second, test = self.best, self.second, self.test
        if first is None or second is None:
            return "no trial has a figure" if first is None else "no other trial has a figure"
        if test is None:
            return f"whether trial {first.number} is better than trial {second.number} is not tested: {self.untested}"
        ends = "" if test.low is None else f", 95% interval {test.low:+.3g} to {test.high:+.3g}"
        told = f"{test.difference:+.3g}{ends}; p {test.p:.2g} over {test.items} items"
        if test.decision == "better":
            return f"trial {first.number} is better than trial {second.number} ({told})"
        return f"whether trial {first.number} is better than trial {second.number} is undecided ({told})"

    def to_dict(self) -> dict[str, Any]:
        first, second = self.best, self.second
        return {
            "pipeline": self.pipeline,
            "id": self.id,
            "goal": self.goal.model_dump(),
            "best": first and first.number,
            "second": second and second.number,
            "verdict": self.verdict,
            "foretold": [one.to_dict() for one in self.foretold],
            "trials": [row.to_dict() for row in self.rows],
        }

    def to_csv(self) -> str:
        fields = list(dict.fromkeys(path for row in self.rows for path in row.values))
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["trial", *fields, "status", self.goal.metric, "low", "high", "seconds", "why"])
        for row in self.rows:
            found = row.figure
            numbers = (found.value, found.low, found.high) if found else (None, None, None)
            values = [row.values.get(path) for path in fields]
            rows.writerow([row.number, *values, row.status, *numbers, round(row.seconds, 2), row.why])
        return out.getvalue()


def finished(trial: Trial, goal: GoalConfig, executed: Sequence[str], log: str | None) -> Result:
    """Of a trial whose plan is carried out."""
    made = trial.plan[goal.stage].artifact
    found = figure(made, goal) if made else None
    why = "" if found else f"{goal.stage} gave no number {goal.name}"
    row = _row(trial, "finished" if found else "failed", why, executed, log)
    row.figure, row.validations = found, _validations(trial)
    return row


def ended(trial: Trial, status: Status, why: str, executed: Sequence[str] = (), log: str | None = None) -> Result:
    """Of a trial that came to no end of its own."""
    return _row(trial, status, why, executed, log)


def _row(trial: Trial, status: Status, why: str, executed: Sequence[str], log: str | None) -> Result:
    artifacts = {p.name: p.fingerprint for p in trial.plan.stages if p.artifact and p.status == "cached"}
    return Result(
        trial.number,
        trial.values,
        trial.title,
        status,
        why=why,
        executed=tuple(executed),
        artifacts=artifacts,
        log=log,
    )


def add_seconds(rows: Sequence[Result], trials: Mapping[int, Trial]) -> None:
    """What the stages of each trial took that are no other's."""
    users: dict[Made, int] = {}
    for row in rows:
        for made in row.artifacts.items():
            users[made] = users.get(made, 0) + 1
    for row in rows:
        plan = trials[row.number].plan
        own = [plan[stage].artifact for stage, made_by in row.artifacts.items() if users[stage, made_by] == 1]
        row.seconds = sum(artifact.manifest["times"]["seconds"] for artifact in own if artifact)


def _validations(trial: Trial) -> Validations:
    """Of the trial's last training, from its curves."""
    from omniloom.stages.reporting import history

    for planned in reversed(trial.plan.stages):
        made: Artifact | None = planned.artifact if planned.status == "cached" else None
        uri = made and made.file("report", "history.jsonl")
        if planned.stage.makes == "model" and uri and storage.exists(uri):
            return validations_of(history.load(uri))
    return ()


def validations_of(rows: Sequence[Mapping[str, Any]]) -> Validations:
    """The validations among the rows of a training's curves."""
    found = []
    for row in rows:
        if figures := {name: value for name, value in row.items() if name.startswith("validation_")}:
            found.append((int(row["step"]), figures))
    return found


def test(results: Results, trials: Mapping[int, Trial]) -> None:
    """Hold the best against the second by the paired test of `omniloom compare`, on the goal's figure alone."""
    first, second, goal = results.best, results.second, results.goal
    if first is None or second is None:
        return
    pair = [trials[row.number].plan[goal.stage].artifact for row in (second, first)]
    if any(artifact is None or trials[first.number].plan[goal.stage].stage.makes != "evaluation" for artifact in pair):
        results.untested = f"{goal.metric} is no figure of an evaluation"
        return
    from omniloom.stages.evaluate import comparing, items

    one, other = (items.read(artifact.uri) for artifact in pair if artifact)
    if not one or not other or goal.name not in one or goal.name not in other:
        results.untested = f"{goal.name} is no mean over items of both"
        return
    found = comparing.compare(one, other, [goal.name])
    if found.figures:
        results.test = found.figures[0]
    else:
        results.untested = f"{goal.name} was measured on no item of both"
