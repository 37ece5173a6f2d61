"""The `forecast` section of a pipeline's config: the small trainings that `omniloom forecast` learns from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniloom.pipelines.sweeps.config import GoalConfig

_Positive = Annotated[int, Field(ge=1)]


class ForecastConfig(BaseModel):
    """A ladder of trainings of stage `train`: each of the sizes for each of the steps, under each mixture and each of
    the objectives. Learning rates go from one size to another by muP."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    sizes: list[dict[str, _Positive]] | None = Field(None, min_length=3)
    """Shapes of the model, the fields of stages.train.model that differ (width, layers, heads, ...); null: a quarter,
    three eighths, a half and three quarters of the config's width, of heads as wide as its own."""
    steps: list[_Positive] | None = Field(None, min_length=2)
    """Optimizer steps of the trainings; null: a quarter, a half and all of stages.train.steps."""
    rates: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=2)
    """Learning rates that are tried first, on the smallest size for the fewest steps, of which the best is all the
    others'; null: stages.train.optimizer.lr. Each is of the base of muP, by default the config's own model."""
    mixtures: list[dict[str, Any]] | None = Field(None, min_length=2)
    """Values of stages.train.packing.mixture; null: the config's own."""
    objectives: list[dict[str, float]] | None = Field(None, min_length=2)
    """Values of stages.train.objectives; null: the config's own. Their losses are of different things, so `goal` has to
    judge between them."""
    goal: GoalConfig | None = None
    """A figure from 0 to 1, or one that falls to 0, of a stage behind `train` by which objectives are compared, such as
    evaluate.image_class_agreement; null: the losses alone."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """By loss (text_loss, visual_loss, ...), how much it counts in the sum by which a size and a mixture are chosen;
    null: as in training."""
    resamples: int = Field(200, ge=20)
    """Bootstrap resamples of the trainings, for the intervals."""
    seed: int = Field(0, ge=0)
    """Seed of the resamples."""

    @field_validator("sizes", "steps", "rates", "mixtures", "objectives")
    @classmethod
    def _differ(cls, values: list[Any] | None) -> list[Any] | None:
        if values and any(value in values[:place] for place, value in enumerate(values)):
            raise ValueError("has a value twice")
        return values

    @field_validator("sizes")
    @classmethod
    def _grow(cls, sizes: list[dict[str, int]] | None) -> list[dict[str, int]] | None:
        if sizes and (len({frozenset(size) for size in sizes}) > 1 or not ({"width", "layers"} & set(sizes[0]))):
            raise ValueError("expected the same fields in each, and width or layers among them")
        return sizes

    @model_validator(mode="after")
    def _can_be_judged(self) -> ForecastConfig:
        if self.objectives and self.goal is None:
            raise ValueError(
                "goal: is missing: losses of different objectives are not comparable; name a figure of an evaluation"
            )
        return self
