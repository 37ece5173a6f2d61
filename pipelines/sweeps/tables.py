"""A sweep in a terminal: before it runs, which trials there are and what they share; afterwards, what came out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from omniloom.infra.secrets import redact
from omniloom.pipelines import takes
from omniloom.pipelines.sweeps.results import Result, Results
from omniloom.pipelines.sweeps.trials import Made, Trial, Trials, sharing, short_names, shown
from omniloom.pipelines.takes import Takes, duration

_COLOURS = {"finished": "green", "failed": "red", "pruned": "yellow", "not run": "dim"}


class Planned:
    """What a sweep would run, each artifact once, with what is predicted of it."""

    def __init__(self, trials: Trials):
        self.trials = trials
        self.shown = trials.known or trials.probes[:1]
        self.users = sharing(self.shown)
        self.takes: dict[Made, Takes] = {}
        self.to_make: dict[Made, Trial] = {}  # by the first trial that needs it
        for trial in self.shown:
            found = takes.of(trial.plan)
            for made in trial.to_make:
                if made not in self.to_make:
                    self.to_make[made] = trial
                    if made[0] in found:
                        self.takes[made] = found[made[0]]

    def own(self, trial: Trial) -> list[Made]:
        """What the trial would make that no other needs."""
        return [made for made in trial.to_make if len(self.users[made]) == 1 and not self.trials.chosen_late]

    @property
    def shared(self) -> dict[Made, list[Trial]]:
        """The artifacts that several trials use, in the order of stages."""
        return {made: users for made, users in self.users.items() if len(users) > 1}

    def lines(self) -> Iterator[str]:
        late, count = self.trials.chosen_late, self.trials.count
        goal = self.trials.sweep.goal
        yield f"judged by {goal.metric} ({goal.direction}); {self.trials.sweep.concurrent} at once"
        if late:
            yield f"{count} trials, each chosen by what came out before; the first takes what stands above"
        else:
            for (stage, fingerprint), users in self.shared.items():
                state = users[0].plan[stage].status
                numbers = "all trials" if len(users) == count else f"trials {', '.join(str(u.number) for u in users)}"
                once = " once" if state != "cached" else ""
                yield f"{stage} {fingerprint[:12]}: {state}{once}, for {numbers}"
        yield from takes.total(self.takes.values())
        if unknown := sorted({stage for stage, _ in self.to_make.keys() - self.takes.keys()}):
            yield f"not predicted, as nothing like it ran here: {', '.join(unknown)}"

    def to_dict(self) -> dict[str, Any]:
        from omniloom.pipelines.takes import described

        return redact(
            {
                "pipeline": self.trials.base.name,
                "storage": self.trials.base.storage,
                "sweep": self.trials.sweep.model_dump(mode="json", exclude_none=True),
                "count": self.trials.count,
                "trials": [
                    {"number": t.number, "title": t.title, "values": dict(t.values), "plan": described(t.plan, {})}
                    for t in self.trials.known
                ],
                "shared": [
                    {"stage": stage, "fingerprint": fingerprint, "trials": [user.number for user in users]}
                    for (stage, fingerprint), users in self.shared.items()
                ],
                "to_make": [
                    {"stage": stage, "fingerprint": fingerprint, "predicted": self._predicted((stage, fingerprint))}
                    for stage, fingerprint in self.to_make
                ],
            }
        )

    def _predicted(self, made: Made) -> dict | None:
        return self.takes[made].to_dict() if made in self.takes else None

    def table(self) -> Table:
        """A trial a row: its values, and what it would run that no other trial needs."""
        base = self.trials.base
        title = f"{base.name} in {redact(base.storage)}: sweep of {self.trials.count} trials"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        names = short_names(self.trials.sweep.fields)
        for column in ("trial", *names.values(), "own stages to run", "predicted"):
            table.add_column(column, overflow="fold")
        for trial in self.shown:
            values = [_cell(shown(trial.values[path])) for path in names]
            own = self.own(trial) if not self.trials.chosen_late else trial.to_make
            seconds = sum(self.takes[made].seconds or 0.0 for made in own if made in self.takes)
            number = "1, e.g." if self.trials.chosen_late else str(trial.number)
            stages = ", ".join(stage for stage, _ in own) or ("cached" if not trial.to_make else "-")
            table.add_row(number, *values, stages, duration(seconds) if seconds else "-")
        return table


def results_table(found: Results) -> Table:
    """A trial a row, the best first; those without a figure behind."""
    way = "higher" if found.goal.sign > 0 else "lower"
    table = Table(title=f"{found.goal.metric}, {way} is better", title_justify="left", box=None, pad_edge=False)
    names = short_names(dict.fromkeys(path for row in found.rows for path in row.values))
    table.add_column("trial", no_wrap=True)
    for name in names.values():
        table.add_column(name, overflow="fold")
    for column in (found.goal.name, "95% interval", "status", "took"):
        table.add_column(column, overflow="fold")
    for row in ordered(found):
        values = [_cell(shown(row.values[path])) if path in row.values else "-" for path in names]
        colour = _COLOURS[row.status]
        took = duration(row.seconds) if row.seconds else "-"
        table.add_row(str(row.number), *values, *numbers(row), f"[{colour}]{row.status}[/]", took)
    return table


def ordered(found: Results) -> list[Result]:
    ranked = found.ranked
    return [*ranked, *(row for row in found.rows if row not in ranked)]


def numbers(row: Result) -> tuple[str, str]:
    """The figure and its interval, in words."""
    if (figure := row.figure) is None:
        return "-", "-"
    interval = "-" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}"
    return f"{figure.value:.4g}", interval


def _cell(text: str) -> str:
    return redact(text).replace("[", r"\[")
