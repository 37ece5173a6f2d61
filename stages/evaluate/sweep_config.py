"""The config of a sweep over what sampling costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.infra.errors import InputError
from omniloom.models.unified.diffusion.samplers import SAMPLERS
from omniloom.models.unified.representations import OBJECTIVES


def check_sweep(sweep: SamplingSweep | None, objectives: Sequence[str] | None, density: Any = None) -> None:
    """InputError for settings that the first of the model's objectives does not have; `objectives` are None where they
    are not known. `density`: the config of the model's density head, None for the usual one."""
    if sweep is None or objectives is None:
        return
    if not objectives:
        raise InputError("has no effect: the model is of text alone", field="sweep")
    first = objectives[0]
    row = OBJECTIVES[first]
    solves = row.is_diffusion or row.by_density and getattr(density, "head", None) == "diffusion"
    if not solves and sweep.sampler != ("euler",):
        raise InputError(f"has no effect: {first} is no diffusion, which samplers are of", field="sweep.sampler")
    if row.causal and not solves and len(sweep.num_steps) > 1:
        raise InputError(f"has no effect: {first} takes a step a position; give one value", field="sweep.num_steps")


class SamplingSweep(BaseModel):
    """Settings that a model's first objective is drawn with, each from the same noise; the cheapest of those that are
    not known to be worse than the best becomes the model's own. Each field is one value or a list."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    num_steps: tuple[int, ...] = (5, 10, 20, 40)
    """Steps of a diffusion, rounds of masked codes."""
    guidance_scale: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Scales of classifier-free guidance; 1 costs half of any other."""
    sampler: tuple[str, ...] = ("euler",)
    """Samplers of a diffusion, but amed, which needs a predictor."""
    drawings: int = Field(200, ge=20)
    """Pictures drawn from held-out captions by each setting."""

    @field_validator("num_steps", "guidance_scale", "sampler", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("num_steps", "guidance_scale", "sampler")
    @classmethod
    def _distinct(cls, values: tuple) -> tuple:
        if not values or len(set(values)) < len(values):
            raise ValueError(f"expected values that differ, at least one, got {list(values)}")
        return values

    @field_validator("num_steps")
    @classmethod
    def _steps(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError(f"expected integers of at least 1, got {list(values)}")
        return values

    @field_validator("guidance_scale")
    @classmethod
    def _scales(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if min(values) < 0:
            raise ValueError(f"expected numbers of at least 0, got {list(values)}")
        return values

    @field_validator("sampler")
    @classmethod
    def _samplers(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        known = [name for name in SAMPLERS if name != "amed"]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"expected any of {', '.join(known)}, got {', '.join(unknown)}")
        return values

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All combinations, as fields of `VisualSampling`."""
        names = ("num_steps", "guidance_scale", "sampler")
        return [
            dict(zip(names, values, strict=True))
            for values in product(self.num_steps, self.guidance_scale, self.sampler)
        ]
