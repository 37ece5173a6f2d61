"""Sizes: what a first training on a corpus should be like on this machine. In: a `Corpus`, a `Machine`. Out: `Sizes`.

One rung of a short ladder is chosen, by the device and by how much there is to learn from; what the corpus bounds (the
side of pictures, captions' length, vocabulary, what is held out) is fitted to it. That the machine has the memory is
then asked of `pipelines.room`, as of any config. What a step takes here says how many there are (`fitted`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError
from omniloom.pipelines import room
from omniloom.pipelines.starting.corpus import Corpus

Size = Literal["tiny", "small", "base"]
_MANY = 20_000  # pictures, from which on a base model learns more than it remembers
_GIB = 2**30
_LEAST_STEPS = 50  # that tell anything
_USUAL_LENGTH = 6  # of a row, in pictures, for which the rungs' rows a step are meant: four with short captions
_WEIGHTS = {"image": 0.7, "video": 0.15, "text": 0.25, "document": 0.1}  # of tokens, among the kinds that are there


@dataclass(frozen=True)
class Machine:
    """`gpu_memory`: bytes of the smallest GPU."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU{'s' * (self.gpus > 1)} of {self.gpu_memory / _GIB:.0f} GiB" if self.gpus else ""
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{cpus}, {self.memory / _GIB:.0f} GiB of memory{gpus or ', no GPU'}"


def this_machine() -> Machine:
    here = room.of_this_machine(ClusterConfig(), look_for_gpus=True)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else int(here.cpus)
    return Machine(cpus, int(here.memory or 0), int(here.gpus), here.gpu_memory or 0)


@dataclass(frozen=True)
class Rung:
    """One size: `pixels` a side at most, `patch` that the tokenizer divides them by, then what the two networks are.
    `minutes`: that its trainings take at most, fewer steps where the machine is slower; None: as long as they take."""

    pixels: int
    patch: int
    tokenizer_width: int
    tokenizer_layers: str
    channels: int  # of latents
    tokenizer_steps: int
    image_batch: int
    width: int
    layers: int
    heads: int
    batch_rows: int
    steps: int
    gpu_memory: int = 0
    minutes: float | None = None

    @property
    def positions(self) -> int:
        """Tokens of a picture."""
        return (self.pixels // self.patch) ** 2


LADDER: dict[Size, Rung] = {
    "tiny": Rung(32, 4, 128, "tt", 8, 400, 32, 192, 5, 6, 8, 800, minutes=8),
    "small": Rung(64, 8, 256, "ttt", 16, 10_000, 64, 512, 8, 8, 32, 20_000, 8 * _GIB),
    "base": Rung(128, 8, 384, "tttt", 16, 50_000, 64, 768, 12, 12, 64, 100_000, 24 * _GIB),
}


@dataclass(frozen=True)
class Sizes:
    """`side`: of the squares that pictures are cut to; `length`: of packed rows; `why`: by what is said of them, why
    they are so; `share`: of the rung's steps that there are; `step_seconds`: by training, as measured here."""

    name: Size
    rung: Rung
    machine: Machine
    side: int
    frames: int
    joint_goes_on: bool  # the second tokenizer stage, from the first one's weights
    length: int
    vocab_size: int
    splits: tuple[float, float, float]
    mixture: dict[str, float]
    measured: int
    why: dict[str, str]
    share: float = 1.0
    step_seconds: Mapping[str, float] = field(default_factory=dict)

    def steps(self, stage: str) -> int:
        """Of a training."""
        whole = self.rung.steps if stage == "train" else self.rung.tokenizer_steps
        whole = whole // 2 if stage == "tokenizer_joint" and self.joint_goes_on else whole
        return max(_LEAST_STEPS, round(whole * self.share / 10) * 10) if self.share < 1 else whole

    @property
    def workers(self) -> int:
        """A power of two, by which the batches of every rung divide."""
        return 2 ** int(math.log2(min(8, self.machine.gpus or self.machine.cpus)))

    @property
    def batch_rows(self) -> int:
        """Of the rung, fewer where long captions make long rows, so that a step costs the same: a power of two that the
        workers divide."""
        fit = self.rung.batch_rows * min(1.0, _USUAL_LENGTH * self.rung.positions / self.length)
        return max(self.workers, 2 ** int(math.log2(max(1.0, fit))))


def sizes(corpus: Corpus, machine: Machine, asked: str | None = None) -> Sizes:
    """InputError where the size that is asked for is none."""
    name = _name(corpus, machine, asked)
    rung, seen = LADDER[name], corpus.records("image") + corpus.records("video")
    side = _side(corpus.side, rung)
    frames = 9 if corpus.records("video") else 1
    positions = (side // rung.patch) ** 2
    words = _caption_tokens(corpus.captions)
    longest = positions * (3 if frames > 1 else 1) + words
    length = 16 * math.ceil(max(4 * (positions + words), longest + 16, 256) / 16)
    held_out = max(2, min(200, round(0.08 * (seen or sum(source.records for source in corpus.sources)))))
    return Sizes(
        name,
        rung,
        machine,
        side,
        frames,
        corpus.records("image") > 0,
        length,
        _vocabulary(corpus),
        _splits(seen or corpus.records("text")),
        dict(_mixture(corpus)),
        min(held_out, 64) if not machine.gpus else held_out,
        {
            "side": f"pictures here are {corpus.side or 0} pixels wide or high as a rule",
            "length": f"room for four pictures of {positions} tokens with captions of about {words}",
            "vocab_size": f"for {_bytes(corpus.text_bytes + sum(map(len, corpus.captions)))} of text",
        },
    )


def fitted(chosen: Sizes, seconds: Mapping[str, float], minutes: float | None = None) -> Sizes:
    """With as many steps as there is time for, at most the rung's. `seconds`: by training, of a step."""
    known = replace(chosen, step_seconds=dict(seconds))
    allowed = chosen.rung.minutes if minutes is None else minutes
    whole = sum(known.steps(stage) * each for stage, each in seconds.items())
    return replace(known, share=min(1.0, 60 * allowed / whole)) if allowed and whole else known


def _name(corpus: Corpus, machine: Machine, asked: str | None) -> Size:
    if asked is not None:
        if asked not in LADDER:
            raise InputError(f"expected one of {', '.join(get_args(Size))}, got {asked!r}", field="--size")
        return asked
    fits: list[Size] = [name for name, rung in LADDER.items() if machine.gpu_memory >= rung.gpu_memory]
    if corpus.records("image") + corpus.records("video") < _MANY and not corpus.text_bytes > 1 << 28:
        fits = [name for name in fits if name != "base"]
    return fits[-1]


def _side(usual: int | None, rung: Rung) -> int:
    """Of the rung, less where pictures are smaller: a multiple of the patch, and of 8 for the codecs of videos."""
    if usual is None or usual >= rung.pixels:
        return rung.pixels
    return max(16, usual // 8 * 8)


def _caption_tokens(captions: list[str]) -> int:
    """Of a long one of them, at two letters a token, as a small vocabulary has it."""
    if not captions:
        return 12
    lengths = sorted(len(text.encode()) for text in captions)
    return 8 + min(400, lengths[int(0.95 * (len(lengths) - 1))] // 2)


def _vocabulary(corpus: Corpus) -> int:
    known = sum(map(len, corpus.captions)) / max(1, len(corpus.captions)) * corpus.captioned + corpus.text_bytes
    for least, size in ((1 << 30, 32_000), (1 << 26, 16_000), (1 << 20, 4096)):
        if known >= least:
            return size
    return 1024


def _splits(records: int) -> tuple[float, float, float]:
    if records >= 50_000:
        return 0.98, 0.01, 0.01
    return (0.9, 0.04, 0.06) if records >= 2000 else (0.84, 0.06, 0.1)


def _mixture(corpus: Corpus) -> Iterator[tuple[str, float]]:
    """Of the kinds that are there, where they are several: by nature a few books would drown thousands of pictures."""
    kinds = corpus.kinds
    total = sum(_WEIGHTS[kind] for kind in kinds)
    if len(kinds) > 1:
        yield from ((kind, round(_WEIGHTS[kind] / total, 2)) for kind in kinds)


def _bytes(size: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
