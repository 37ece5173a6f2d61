"""Schedule: what a seed says is done to each pipeline: which fault, in which stage, after how much of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import faults as kinds

DATA = ("ingest", "pretokenize", "evaluate")
PLACES = ("disk", "s3")
# How often a round disturbs each stage, of texts and of pictures: each time by some faults in quick succession, the
# next of which meets what goes on again after the one before.
_TIMES = (
    {"ingest": 1, "pretokenize": 1, "train": 5, "evaluate": 1},
    {"ingest": 1, "tokenizer_image": 1, "tokenizer_joint": 1, "pretokenize": 1, "train": 2, "evaluate": 1},
)
_IN_SUCCESSION = {"data": 5, "training": 6}
_WEIGHTS = {"head lost": 3}  # so much rarer than others: three nodes start again
_EVERY = 20  # steps between checkpoints
# The least and the most steps after which a training is disturbed.
_STEPS = {
    ("train", False): (40, 260),
    ("train", True): (40, 140),
    ("tokenizer_image", True): (40, 80),
    ("tokenizer_joint", True): (40, 60),
}


@dataclass
class Injected:
    """A fault of a round: when it is due (`at` shards or steps of the stage are done), and what came of it."""

    stage: str
    at: int
    kind: str
    what: str = ""  # was done; empty where its moment never came
    lost: float | None = None  # seconds until more was done than before
    by_itself: bool = True  # no further `omniloom run` was needed
    equal: bool | None = None


@dataclass
class Round:
    """One pipeline, of texts or of pictures, with its faults."""

    number: int
    place: str
    pictures: bool
    faults: list[Injected]
    commit: str = ""


def possible(stage: str, place: str, first: bool = False) -> set[str]:
    """The kinds that a stage can meet where the pipeline works in this place; as the `first` of several those that this
    stage or place alone has."""
    own = kinds.OF_PLACE[place].keys()
    if stage not in DATA:
        own = own | kinds.IN_TRAINING.keys()
    elif stage != "evaluate":
        own = own | kinds.IN_DATA.keys()
    return set(own) if first else {*kinds.ANYWHERE, *kinds.OF_PLACE[place]}


def plan(seed: int, number: int) -> Round:
    """What is done in a round, by the seed alone: of the kinds that are possible one of those that were used least."""
    rng, used = random.Random(seed), Counter[str]()
    for n in range(number + 1):
        round_ = _plan(rng, used, n)
    return round_


def _plan(rng: random.Random, used: Counter[str], number: int) -> Round:
    place, pictures = PLACES[number % 2], number % 4 in (0, 3)
    found = []
    for stage, times in _TIMES[pictures].items():
        least, most = _STEPS.get((stage, pictures), (0, 0))
        for at in sorted(rng.sample(range(least, most + 1, _EVERY), times)):
            for number_there in range(_IN_SUCCESSION["data" if stage in DATA else "training"]):
                some = sorted(possible(stage, place, number_there == 0))
                kind = min(some, key=lambda kind: (used[kind], rng.random()))
                used[kind] += _WEIGHTS.get(kind, 1)
                found.append(Injected(stage, at, kind))
    return Round(number, place, pictures, found)


def thinned(faults: list[Injected], count: int) -> list[Injected]:
    """At most so many, of all stages alike."""
    if count >= len(faults):
        return faults
    return [faults[number * len(faults) // count] for number in range(count)]
