"""The config of stage `distill`: how, to how many steps, and by which training. In: the pipeline's YAML. Out: `Config`,
and the training that it means of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator

from omniloom.infra.errors import InputError, within
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.shares import most, stages
from omniloom.stages.train.config import ArchitectureConfig, LossConfig, TrainConfig, TrainEngineConfig

# Fields that mean what they mean of `train`.
_AS_TRAINED = (
    *("seed", "optimizer", "engine", "workers", "cache_bytes"),
    *("validate_every", "validation_rows", "samples"),
)
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_FIELDS: dict[str, Any] = {
    name: (TrainConfig.model_fields[name].annotation, TrainConfig.model_fields[name]) for name in _AS_TRAINED
}
_Training: Any = create_model("TrainingFields", __config__=_SETTINGS, **_FIELDS)


class DistillConfig(_Training):
    """The model's first objective, a diffusion, is distilled; all else is trained as it was."""

    method: Literal["reflow", "consistency", "shortcut"] = "consistency"
    """How: reflow (arXiv 2209.03003), on pictures of the model's own; consistency (arXiv 2303.01469), on the corpus's;
    shortcut (arXiv 2410.12557), on the corpus's, to any power of two of steps at once."""
    num_steps: int = Field(2, ge=1)
    """Steps of the sampler that it is distilled to, which becomes the model's own; by shortcut a power of two."""
    teacher_steps: int = Field(20, ge=1)
    """Steps of the teacher's sampler, from noise to picture; by shortcut rounded up to a power of two."""
    guidance_scale: float = Field(2.0, ge=0)
    """Scale of the guidance that the model learns: sampled with a scale of 1 it draws as its teacher does with this."""
    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    packing: PackingConfig | None = None
    """How documents are packed into rows, which keep a share of texts and captions; null: as they were in training."""
    batch_rows: int | None = Field(None, ge=1)
    """Packed rows an optimizer step, over all workers; null: as in training."""
    loss: LossConfig | None = None
    """Weights of the losses; null: those of the training."""

    @model_validator(mode="after")
    def _halved(self) -> DistillConfig:
        if self.method == "shortcut" and self.num_steps & (self.num_steps - 1):
            raise ValueError(f"num_steps: expected a power of two with method: shortcut, got {self.num_steps}")
        return self

    @property
    def distillation(self) -> Distillation:
        return Distillation(self.method, self.num_steps, self.teacher_steps, self.guidance_scale)

    def training(self, teacher: TrainConfig, folder: str | None = None) -> TrainConfig:
        """The training of a model that was trained by `teacher` and lies in this folder; where it is not there yet,
        None, one that a plan can be checked by. InputError where it cannot be distilled."""
        first = next(iter(teacher.trained), None)
        if first is None or OBJECTIVES[first].representation.discrete:
            drawn = f"draws by {first}, which is no diffusion" if first else "knows text alone"
            raise InputError(f"the model {drawn}; only a diffusion has steps to be distilled", field="method")
        if dense := [name for name in teacher.trained if OBJECTIVES[name].by_density]:
            raise InputError(
                f"the model is trained by {dense[0]} too, beside which nothing is distilled", field="method"
            )
        if self.method == "shortcut":
            _check_halves(getattr(teacher, _PATHS[OBJECTIVES[first].representation.name]))
        engine: TrainEngineConfig = getattr(self, "engine")  # noqa: B009  # a field of `train`'s, which types do not know
        if engine.sequence_parallel > 1:
            raise InputError("expected 1: a teacher sees whole rows", field="engine.sequence_parallel")
        packing = teacher.packing.model_copy(update={"mixture": dict(stages(teacher.packing.mixture)[-1])})
        told = {name: getattr(self, name) for name in _AS_TRAINED}
        with within(), _plainly():
            return TrainConfig(
                model=ArchitectureConfig() if folder else teacher.model,
                init_from=folder or teacher.init_from,
                objectives=dict(most(teacher.objectives)),
                diffusion=teacher.diffusion,
                pixel_diffusion=teacher.pixel_diffusion,
                loss=self.loss or teacher.loss,
                packing=self.packing or packing,
                batch_rows=self.batch_rows or teacher.batch_rows,
                steps=self.steps,
                **told,
            )


_PATHS = {"latents": "diffusion", "pixels": "pixel_diffusion"}


def _check_halves(path: DiffusionConfig) -> None:
    """InputError for a diffusion of which two steps do not make one of the next coarser sampler."""
    if path.sampling_grid != "time":
        raise InputError(
            f"shortcut makes one step of two, and the model's sampling_grid {path.sampling_grid} has no times at which "
            "two steps of one sampler would make one of another; use consistency",
            field="method",
        )
    if path.predict == "noise" and path.formulation in ("flow", "vp"):
        raise InputError(
            "the model predicts noise, which from pure noise says nothing of the picture that shortcut's longest step "
            "goes to; use consistency",
            field="method",
        )


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What pydantic finds as the first ValueError that its checks raise."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


Config = DistillConfig
