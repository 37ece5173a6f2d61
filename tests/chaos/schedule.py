"""Schedule: what a seed says is done to each pipeline: which fault, in which stage, after how much of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import faults as kinds

DATA = ("ingest", "pretokenize", "evaluate")
PLACES = ("disk", "s3")
# Faults of a round by stage: of texts, and of pictures.
_SLOTS = (
    {"ingest": 2, "pretokenize": 2, "train": 6, "evaluate": 2},
    {"ingest": 2, "tokenizer_image": 3, "pretokenize": 2, "train": 4, "evaluate": 2},
)
_EVERY = 20  # steps between checkpoints
# The least and the most steps after which a training is disturbed.
_STEPS = {("train", False): (20, 300), ("train", True): (20, 140), ("tokenizer_image", True): (20, 80)}


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


def possible(stage: str, place: str) -> set[str]:
    """The kinds that a stage can meet where the pipeline works in this place."""
    found = kinds.ANYWHERE.keys() | kinds.OF_PLACE[place].keys()
    if stage not in DATA:
        return found | kinds.IN_TRAINING.keys()
    return found | kinds.IN_DATA.keys() if stage != "evaluate" else found


def plan(seed: int, number: int) -> Round:
    """What is done in a round, by the seed alone: of the kinds that are possible one of those that were used least."""
    rng, used = random.Random(seed), Counter[str]()
    for n in range(number + 1):
        round_ = _plan(rng, used, n)
    return round_


def _plan(rng: random.Random, used: Counter[str], number: int) -> Round:
    place, pictures = PLACES[number % 2], number % 4 == 3
    found = []
    for stage, count in _SLOTS[pictures].items():
        first, last = _STEPS.get((stage, pictures), (0, 0))
        # Two at one moment follow each other at once: the second may meet what the first has ended.
        apart = rng.sample(range(first, last + 1, _EVERY), count - count // 3) if last else [0] * count
        moments = sorted([*apart, *apart[: count - len(apart)]])
        for at in moments:
            kind = min(sorted(possible(stage, place)), key=lambda kind: (used[kind], rng.random()))
            used[kind] += 1
            found.append(Injected(stage, at, kind))
    return Round(number, place, pictures, found)
