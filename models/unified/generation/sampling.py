"""How text is written and how pictures are drawn: each choice that can be made of it, once. Standard library only.

The command line, files of requests, the parameters of a served model and the configs of stages are made from the fields
of these two classes (`stages.inference.options`): one more field is one more option of all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.models.unified.diffusion.samplers import SAMPLERS, MidpointPredictor, check_sampler
from omniloom.models.unified.representations import OBJECTIVES, VisualObjective

if TYPE_CHECKING:
    from omniloom.models.unified.diffusion.config import DiffusionConfig

# Fields of `VisualSampling` of which a model may have defaults of its own, in its config.json.
OWN_SAMPLING = ("num_steps", "guidance_scale", "sampler")


@dataclass(frozen=True)
class Knob:
    """The values that a field takes, beside None where that is its default.

    kind     int, float, str; tuple for (height, width); Path for a file of this machine, which no server opens
    at_least, above, at_most  bounds of a number
    names    what a str is one of
    flags    its options on the command line, where they are not made of the field's name
    """

    kind: type
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    names: Iterable[str] | None = None
    flags: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """ValueError naming the field and what was expected. Of a file nothing is checked before it is read."""
        if self.kind is tuple:
            ok = isinstance(value, tuple) and len(value) == 2 and all(_integer(side) and side > 0 for side in value)
        elif self.kind is str:
            ok = isinstance(value, str) and (self.names is None or value in self.names)
        else:
            ok = self.kind is Path or self._number(value)
        if not ok:
            raise ValueError(f"{name}: expected {self.expected}, got {value!r}")

    def _number(self, value: Any) -> bool:
        right = _integer(value) if self.kind is int else isinstance(value, float) or _integer(value)
        return (
            right
            and math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def refused(self) -> float:
        """A number that the field does not take."""
        if self.above is not None:
            return self.above
        if self.at_least is not None:
            return self.at_least - 1
        raise ValueError("a knob without a lower bound takes every number")

    @property
    def expected(self) -> str:
        """In words."""
        if self.kind is tuple:
            return "(height, width) in pixels"
        if self.kind is str:
            return "a name" if self.names is None else f"one of {', '.join(self.names)}"
        if self.kind is Path:
            return "a file"
        bounds = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most))
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{'an integer' if self.kind is int else 'a number'} {limits}".rstrip()


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _knob(default: Any, kind: type, **limits: Any) -> Any:
    return dataclasses.field(default=default, metadata={"knob": Knob(kind, **limits)})


def knobs(cls: type) -> dict[str, Knob]:
    """The chosen fields as a mapping: all but those that a model fills in."""
    return {field.name: field.metadata["knob"] for field in dataclasses.fields(cls) if "knob" in field.metadata}


def _check(sampling: TextSampling | VisualSampling) -> None:
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if "knob" in field.metadata and not (value is None and field.default is None):
            field.metadata["knob"].check(field.name, value)


@dataclass(frozen=True, kw_only=True)
class TextSampling:
    """How text is written. ValueError naming the field that is out of its range."""

    max_new_tokens: int = _knob(64, int, at_least=1, flags=("--max-new-tokens", "--max-tokens"))
    """Longest text, in tokens."""
    temperature: float = _knob(0.0, float, at_least=0)
    """Temperature: divisor of the logits; 0 takes the likeliest token."""
    top_k: int | None = _knob(None, int, at_least=1)
    """Choose among the k likeliest."""
    top_p: float | None = _knob(None, float, above=0, at_most=1)
    """Choose among the likeliest that hold this probability."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class VisualSampling:
    """How a picture, which is an image or a video, is drawn, and how one that stands before a prompt is shown.
    ValueError naming the field that is out of its range or does not fit another.

    Guidance is of the network's outputs F (v, x or logits), with s = guidance_scale:

        F(0) + s (F(I, T) - F(0))                                    without a condition for 0 (arXiv 2207.12598)
        F(0) + s_I (F(I, 0) - F(0)) + s (F(I, T) - F(I, 0))          with image_guidance_scale s_I: text and earlier
                                                                     pictures apart (arXiv 2211.09800, eq. 3)
    where a scale leaves no weight to a pass, there is none. Of next_latent F are log-densities, by which candidates are
    weighed (`models.unified.density.drawing`).
    """

    objective: str | None = _knob(None, str, names=OBJECTIVES)
    """Which of those that the model was trained with; the first by default."""
    size: tuple[int, int] | None = _knob(None, tuple)
    """Height and width in pixels of what is drawn and shown, any that the patch divides; training's by default."""
    num_frames: int | None = _knob(None, int, at_least=1, flags=("--frames",))
    """Frames of a video; those of training by default."""
    num_steps: int = _knob(20, int, at_least=1, flags=("--steps",))
    """Steps of a diffusion, rounds of masked codes; next_code and next_latent take one a position, and its diffusion
    head so many steps in each."""
    guidance_scale: float = _knob(2.0, float, at_least=0, flags=("--guidance",))
    """Scale of classifier-free guidance."""
    image_guidance_scale: float | None = _knob(None, float, at_least=0, flags=("--image-guidance",))
    """Scale of guidance by the pictures before the prompt, apart from the text's."""
    sampler: str = _knob("euler", str, names=SAMPLERS)
    """Sampler of a diffusion."""
    predictor: MidpointPredictor | str | Path | None = _knob(None, Path)
    """What `omniloom sampler` wrote, for the sampler amed."""
    temperature: float = _knob(1.0, float, at_least=0)
    """Temperature of codes: divisor of the logits; 0 takes the likeliest code. Of next_latent: factor of variances."""
    top_k: int | None = _knob(None, int, at_least=1)
    """Choose codes among the k likeliest."""
    top_p: float | None = _knob(None, float, above=0, at_most=1)
    """Choose codes among the likeliest that hold this probability (nucleus sampling)."""
    confidence_noise: float = _knob(4.5, float, at_least=0)
    """For masked codes: weight of the Gumbel noise on the confidence that decides which codes are kept, falling
    linearly to 0 over the rounds (MaskGIT)."""
    diffusion: DiffusionConfig | None = None
    """How the objective was trained, where it is a diffusion. Not a choice: a model fills it in
    (`models.model.OmniLoom.resolve`)."""

    def __post_init__(self) -> None:
        _check(self)
        check_sampler(self.sampler, self.predictor)
        if self.diffusion is not None and isinstance(self.predictor, MidpointPredictor):
            from omniloom.models.unified.diffusion.diffusion import (
                sampling_times,  # needs torch, which a request may not
            )

            self.predictor.steps(sampling_times(self.diffusion, self.num_steps))

    @property
    def row(self) -> VisualObjective:
        """The objective's row of the table. ValueError where a model has not filled it in."""
        if self.objective is None:
            raise ValueError("objective: is missing, and the model's config alone does not name its first")
        return OBJECTIVES[self.objective]

    def trained_diffusion(self) -> DiffusionConfig:
        """`diffusion`; ValueError where it is missing."""
        if self.diffusion is None:
            raise ValueError(f"diffusion: {self.objective} needs the config that it was trained with")
        return self.diffusion

    @property
    def variants(self) -> tuple[tuple[float, frozenset[str]], ...]:
        """(scale, sources that are dropped) of the prefixes that are computed, the whole condition first: the output
        is the last one's, and up the list scale times what each adds to the one behind it."""
        chain = [(self.guidance_scale, frozenset()), (1.0, frozenset({"text", "image"}))]
        if self.image_guidance_scale is not None:
            chain.insert(1, (self.image_guidance_scale, frozenset({"text"})))
        # What is added and taken away by the same scale cancels.
        return tuple(chain[:1] + [step for before, step in zip(chain, chain[1:]) if step[0] != before[0]])
