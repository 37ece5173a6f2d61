"""The values of a sweep's trials where they do not depend on what comes out: a grid, or drawn by a seed.

Each field is drawn from a stream of its own, which follows from the seed and the field's path: one more field, or more
trials, leave the others' values as they are.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.pipelines.sweeps.config import SpaceConfig, SweepConfig

Values = Mapping[str, Any]  # a trial's, by the paths of fields
_DIGITS = 4  # of a drawn number: it is read and typed by people
_TRIES = 1000  # for each trial that is another than those before


def listed(sweep: SweepConfig) -> list[Values]:
    """The values of every trial of a grid, a zip or of random, in order."""
    if sweep.method in ("grid", "zip"):
        lists = [space.choice or () for space in sweep.fields.values()]
        rows = itertools.product(*lists) if sweep.method == "grid" else zip(*lists)
        return [dict(zip(sweep.fields, values)) for values in rows]
    found: dict[str, Values] = {}
    count = sweep.trials or 0
    for short, exact in itertools.islice(_drawn(sweep), _TRIES * count):
        values = short if repr(short) not in found else exact  # a narrow range has few numbers with few digits
        found.setdefault(repr(values), values)
        if len(found) == count:
            return list(found.values())
    raise InputError(f"the fields gave {len(found)} different trials of {count}", field="sweep.trials")


def _drawn(sweep: SweepConfig) -> Iterator[tuple[Values, Values]]:
    """Values with few digits, and with all."""
    streams = {path: random.Random(f"{sweep.seed or 0}/{path}") for path in sweep.fields}
    while True:
        exact = {path: draw(space, streams[path].random()) for path, space in sweep.fields.items()}
        yield {path: rounded(value, sweep.fields[path]) for path, value in exact.items()}, exact


def draw(space: SpaceConfig, place: float) -> Any:
    """The value of a space at a place from 0 to 1."""
    if space.choice is not None:
        return space.choice[min(int(place * len(space.choice)), len(space.choice) - 1)]
    if space.integers:
        least, most = space.integers
        return min(least + int(place * (most - least + 1)), most)
    ends = space.ends
    assert ends is not None
    low, high = ends
    if space.uniform:
        return min(max(low + place * (high - low), low), high)
    return min(max(math.exp(math.log(low) + place * (math.log(high) - math.log(low))), low), high)


def rounded(value: Any, space: SpaceConfig) -> Any:
    """A number of a range with few digits, within the range; what is no such number as it is."""
    if not (space.uniform or space.log_uniform):
        return value
    ends = space.ends
    assert ends is not None
    return min(max(float(f"{value:.{_DIGITS}g}"), ends[0]), ends[1])


def extremes(sweep: SweepConfig) -> list[Values]:
    """Trials that have between them each choice, and both ends of each range: what can be checked of values that are
    not chosen yet."""
    sides = {path: space.choice or list(space.ends or ()) for path, space in sweep.fields.items()}
    first = {path: values[0] for path, values in sides.items()}
    others = [first | {path: value} for path, values in sides.items() for value in values[1:]]
    return [first, *others]
