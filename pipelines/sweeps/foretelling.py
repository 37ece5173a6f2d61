"""Which figures of earlier stages foretold the goal. In: trials that finished. Out: for each figure of the stages that
`sweep.foretell` names, its rank correlation with the goal over the trials, the trial that it would have picked, and
what picking by it would have cost.

A figure that is there before the generator is trained, and orders the trials as the generator does, spares the others'
trainings. With as few trials as sweeps have, correlations are uncertain, and of many figures some correlate by chance:
the interval says how far one is known, and `random` what the best of as many figures without meaning would reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniloom.pipelines.sweeps.config import SweepConfig
from omniloom.pipelines.sweeps.results import Foretold, Result, Results
from omniloom.pipelines.sweeps.trials import Made, Trial

LEAST = 4  # trials, of which ranks say anything
_RESAMPLES = 2000
_ENDS = ("_low", "_high")


def foretold(results: Results, trials: Mapping[int, Trial], sweep: SweepConfig) -> list[Foretold]:
    """Strongest first; empty of fewer than four finished trials. Figures that are equal in all trials, or missing in
    one, are left out."""
    rows = [row for row in results.rows if row.status == "finished" and row.figure]
    if len(rows) < LEAST:
        return []
    goal = [row.figure.value for row in rows if row.figure]
    found = []
    for metric, values in _figures(rows, trials, sweep.foretell).items():
        if len(set(values)) > 1 and len(set(goal)) > 1:
            found.append(_foretold(metric, values, goal, rows, trials, sweep))
    return sorted(found, key=lambda one: -abs(one.rank))


def _figures(rows: Sequence[Result], trials: Mapping[int, Trial], wanted: Sequence[str]) -> dict[str, list[float]]:
    """By STAGE.METRIC the values of all trials."""
    found: dict[str, list[float]] = {}
    for what in wanted:
        stage, _, name = what.partition(".")
        metrics = [_metrics(trials[row.number], stage) for row in rows]
        names = [name] if name else [key for key in metrics[0] if not key.endswith(_ENDS)]
        for key in names:
            values = [held.get(key) for held in metrics]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                found[f"{stage}.{key}"] = [float(value) for value in values if value is not None]
    return found


def _metrics(trial: Trial, stage: str) -> Mapping[str, Any]:
    made = trial.plan[stage].artifact
    return made.metrics if made else {}


def _foretold(
    metric: str,
    values: Sequence[float],
    goal: Sequence[float],
    rows: Sequence[Result],
    trials: Mapping[int, Trial],
    sweep: SweepConfig,
) -> Foretold:
    rank = spearman(values, goal)
    low, high = _interval(values, goal)
    way = (1 if rank >= 0 else -1) * sweep.goal.sign
    pick = max(range(len(rows)), key=lambda place: way * values[place])
    best = max(goal) if sweep.goal.sign > 0 else min(goal)
    behind = abs(best - goal[pick]) / abs(best) if best else abs(goal[pick])
    time = _share(metric.partition(".")[0], rows, trials, rows[pick].number)
    return Foretold(metric, rank, low, high, len(rows), rows[pick].number, behind, time)


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation of two sequences, ties by their mean rank: Pearson's of the ranks."""
    import numpy as np

    x, y = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else 0.0


def _ranks(values: Any) -> Any:
    import numpy as np

    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def _interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Percentiles of the coefficient over trials drawn with replacement; of draws that hold two different ones."""
    import numpy as np

    rng, x, y = np.random.default_rng(41), np.asarray(a), np.asarray(b)
    drawn = [rng.integers(0, len(x), len(x)) for _ in range(_RESAMPLES)]
    found = [spearman(x[chosen], y[chosen]) for chosen in drawn if len(set(chosen.tolist())) > 1]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def by_chance(figures: int, trials: int) -> float:
    """The median of the largest |rank| among so many figures that know nothing of the goal, drawn 200 times."""
    import numpy as np

    rng, goal = np.random.default_rng(42), list(range(trials))
    largest = [max(abs(spearman(rng.permutation(trials), goal)) for _ in range(figures)) for _ in range(200)]
    return float(np.median(largest))


def _share(stage: str, rows: Sequence[Result], trials: Mapping[int, Trial], pick: int) -> float:
    """Seconds of what the figure needs in all trials and of the pick's other stages, over those of all trials; what
    several trials share counts once."""
    seconds: dict[Made, float] = {}
    early: set[Made] = set()
    for row in rows:
        plan = trials[row.number].plan
        needed = plan.config.graph.ancestors(stage) | {stage}
        for made in row.artifacts.items():
            artifact = plan[made[0]].artifact
            seconds[made] = artifact.manifest["times"]["seconds"] if artifact else 0.0
            if made[0] in needed:
                early.add(made)
    picked = early | {made for row in rows if row.number == pick for made in row.artifacts.items()}
    return sum(seconds[made] for made in picked) / max(sum(seconds.values()), 1e-9)


def lines(found: Sequence[Foretold], goal: str) -> list[str]:
    """In words, which figure foretold the goal best."""
    if not found:
        return []
    one = found[0]
    chance = by_chance(len(found), one.trials)
    return [
        f"{goal} was foretold best by {one.metric}: rank correlation {one.rank:+.2f} ({one.low:+.2f} to "
        f"{one.high:+.2f}) over {one.trials} trials; the best of {len(found)} figures without meaning would reach "
        f"{chance:.2f}. It picks trial {one.pick}, {one.behind:.1%} behind the best, in {one.time:.0%} of the time"
    ]
