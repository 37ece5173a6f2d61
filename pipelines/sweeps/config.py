"""The `sweep` section of a pipeline's config: which fields have which values in turn, and what the trials are judged
by."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from omniloom.pipelines.sweeps.fields import SPACES

Direction = Literal["maximize", "minimize"]
_FIELD = re.compile(r"(stages|pins)(\.[\w-]+(\[\d+\])?)+|data|seed")
_METRIC = r"^\w+\.[\w@.+-]+$"


class SpaceConfig(BaseModel):
    """What a field may be: one of the four."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these values; the same as the list by itself."""
    uniform: tuple[float, float] | None = None
    """A number from the first to the second, each as likely."""
    log_uniform: tuple[float, float] | None = None
    """A number from the first to the second, each order of magnitude as likely."""
    integers: tuple[int, int] | None = None
    """A whole number from the first to the second, both among them."""

    @model_validator(mode="after")
    def _is_one(self) -> SpaceConfig:
        given = [name for name in SPACES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(SPACES)}, got {' and '.join(given) or 'none'}")
        if ends := self.ends:
            low, high = ends
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{given[0]}: expected two finite numbers, the lower first, got {low} and {high}")
            if self.log_uniform and low <= 0:
                raise ValueError(f"log_uniform: expected numbers above 0, got {low}")
        return self

    @property
    def ends(self) -> tuple[float, float] | None:
        """The least and the greatest number; None of a choice."""
        return self.uniform or self.log_uniform or self.integers

    @property
    def count(self) -> float:
        """How many values there are."""
        if self.choice is not None:
            return len(self.choice)
        return self.integers[1] - self.integers[0] + 1 if self.integers else math.inf


def _as_space(value: Any) -> Any:
    """A list by itself is a choice."""
    if isinstance(value, list):
        return {"choice": value}
    if not isinstance(value, dict | SpaceConfig):
        raise ValueError(f"expected a list of values, or a range such as {{log_uniform: [low, high]}}, got {value!r}")
    return value


_Space = Annotated[SpaceConfig, BeforeValidator(_as_space, json_schema_input_type=list[Any] | SpaceConfig)]


class GoalConfig(BaseModel):
    """What the trials are judged by."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    metric: str = Field(pattern=_METRIC)
    """STAGE.METRIC, a figure of a stage's manifest, such as evaluate.image_class_agreement or train.loss."""
    direction: Direction
    """maximize where higher is better, minimize where lower is."""

    @property
    def stage(self) -> str:
        return self.metric.partition(".")[0]

    @property
    def name(self) -> str:
        return self.metric.partition(".")[2]

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.direction == "maximize" else -1


class PruneConfig(BaseModel):
    """Trainings that fall behind the other trials' are ended, their checkpoints kept."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    metric: str = Field(pattern=_METRIC)
    """STAGE.METRIC of that training's validations, such as train.validation_visual_loss. Of trials that train by
    different losses it says nothing."""
    direction: Direction = "minimize"
    """minimize where lower is better, as of losses."""
    rule: Literal["asha", "median"] = "asha"
    """asha: at steps spaced by `factor`, all but the best 1 / factor of the trials that came so far; median: where a
    trial's best value is worse than the median of the others' means so far. Both are Ray Tune's."""
    after: int = Field(1, ge=1)
    """Steps of the training before which nothing is pruned: the first rung of asha."""
    factor: float | None = Field(None, gt=1)
    """Of asha: how many times the steps of a rung the next one's are; null: 4."""
    least_trials: int | None = Field(None, ge=1)
    """Of median: trials that must have come so far; null: 3."""

    @model_validator(mode="after")
    def _of_its_rule(self) -> PruneConfig:
        for name, rule in (("factor", "asha"), ("least_trials", "median")):
            if getattr(self, name) is not None and self.rule != rule:
                raise ValueError(f"{name}: is of rule {rule}; with {self.rule} it has no effect")
        return self

    @property
    def stage(self) -> str:
        return self.metric.partition(".")[0]

    @property
    def name(self) -> str:
        return self.metric.partition(".")[2]


class SweepConfig(BaseModel):
    """Trials of a pipeline, each with other values of some of its fields."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    method: Literal["grid", "zip", "random", "optuna"] = "grid"
    """grid: each value of each field with each of the others; zip: the first values of all fields, then the second
    ones, and so on; random: drawn by the seed; optuna: chosen by what came out before, by Ray Tune's search with
    Optuna's TPE (`pip install omniloom[sweep]`)."""
    fields: dict[str, _Space] = Field(min_length=1)
    """By a field's path, as overrides have it: a list of values, or a space to draw from. A value stands in place of
    all that is there, a mapping too."""
    trials: int | None = Field(None, ge=1, le=10_000)
    """Of random and optuna: how many."""
    seed: int | None = Field(None, ge=0, lt=1 << 32)
    """Of random and optuna: seed of the values, null: 0. The same config gives the same trials."""
    goal: GoalConfig
    """By which figure of which stage the trials are judged."""
    concurrent: int = Field(1, ge=1)
    """Trials that run at once, as far as the cluster has room for what each takes most; optuna chooses a trial knowing
    all but so many before it."""
    prune: PruneConfig | None = None
    """Ends trials that fall behind; null: all run to their end."""
    foretell: list[Annotated[str, Field(pattern=r"^\w+(\.[\w@.+-]+)?$")]] = Field(default_factory=list)
    """Stages before the goal's, or STAGE.METRIC, whose figures are held against the goal over the trials: by which of
    them the best trial could have been told before the rest was paid for."""

    @field_validator("fields")
    @classmethod
    def _are_fields(cls, fields: dict[str, SpaceConfig]) -> dict[str, SpaceConfig]:
        for path in fields:
            if not _FIELD.fullmatch(path):
                raise ValueError(f"expected paths of fields in stages or pins, data or seed, got {path!r}")
            if around := next((other for other in fields if path.startswith((f"{other}.", f"{other}["))), None):
                raise ValueError(f"{path} lies within {around}, which has values of its own")
        return fields

    @model_validator(mode="after")
    def _of_its_method(self) -> SweepConfig:
        if self.method == "zip":
            self._check_lists("a zip has as many trials as its lists have values")
            counts = {path: int(space.count) for path, space in self.fields.items()}
            if len(set(counts.values())) > 1:
                told = ", ".join(f"{path} has {count}" for path, count in counts.items())
                raise ValueError(f"fields: a zip takes lists of one length; {told}")
            return self
        for path, space in self.fields.items():
            if space.choice and any(value in space.choice[:place] for place, value in enumerate(space.choice)):
                raise ValueError(f"fields.{path}: has a value twice")
        if self.method == "grid":
            self._check_lists("a grid has all combinations of its values")
            if (count := math.prod(space.count for space in self.fields.values())) > 10_000:
                raise ValueError(f"fields: {count:,} combinations; at most 10,000, or method: random with trials")
        elif self.trials is None:
            raise ValueError(f"trials: is missing: how many {self.method} makes")
        elif self.method == "random" and self.trials > (
            count := math.prod(space.count for space in self.fields.values())
        ):
            raise ValueError(f"trials: {self.trials}, of {count:,} different ones that the fields give")
        if self.method == "optuna" and importlib.util.find_spec("optuna") is None:
            raise ValueError("method: optuna is not installed; `pip install omniloom[sweep]` installs it")
        return self

    def _check_lists(self, why: str) -> None:
        for name in ("trials", "seed"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: is of random and optuna; {why}")
        if drawn := [path for path, space in self.fields.items() if space.choice is None]:
            raise ValueError(f"fields: a {self.method} takes lists of values, and {', '.join(drawn)} is of a range")
