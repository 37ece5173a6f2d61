"""Configs of training: optimizer and schedule, numerics, and where the workers run. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from omniloom.infra.fields import LATER, PLACEMENT

HANG_SECONDS = 60.0  # no shorter silence counts as a hang, unless a config says otherwise
Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """AdamW with a linear warm-up and then a cosine (or constant) schedule."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    lr: float = Field(1e-3, gt=0)
    """Learning rate after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decays of the averages of the gradient and of its square."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second average (epsilon)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, of matrices alone."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate grows linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on: along half a cosine, or constant."""
    final_lr_ratio: float = Field(0.05, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of `lr`."""
    grad_clip: float = Field(1.0, ge=0)
    """Maximum norm of the gradient; 0 switches clipping off."""

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.lr * (self.final_lr_ratio + (1 - self.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


class MuonConfig(BaseModel):
    """Muon with Nesterov's momentum, scaled to updates as large as AdamW's (arXiv 2502.16982)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    momentum: Decay = 0.95
    """Decay of the average of the gradient."""


class BlocksOptimizerConfig(OptimizerConfig):
    """An optimizer of a model that has blocks."""

    muon: MuonConfig | None = Field(None, json_schema_extra=LATER)
    """Muon for the matrices of the blocks, at the same `lr` and `weight_decay`, and AdamW for all else; null: AdamW for
    all. Needs engine.zero_stage 0 or 1, without offload."""

    @property
    def by_elements(self) -> OptimizerConfig:
        """The same without Muon, for a network that has no such blocks."""
        return OptimizerConfig(**self.model_dump(exclude={"muon"}))


class EngineConfig(BaseModel):
    """Numerics and ZeRO. The ZeRO stage moves memory and traffic, not results, so it is placement."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    zero_stage: Literal[0, 1, 2, 3] = Field(1, json_schema_extra=PLACEMENT)
    """DeepSpeed's ZeRO stage: what is sharded over the workers (0 nothing, 1 optimizer states, 2 gradients too, 3
    weights too)."""
    offload: bool = Field(False, json_schema_extra=PLACEMENT)
    """Optimizer states in host memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward passes; weights and optimizer states are fp32 in both."""
    communication: Literal["fp32", "bf16"] = "fp32"
    """What gradients travel between workers as; they are added up in fp32 in both. bf16 needs zero_stage 1."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the weights' moving average; 0 keeps none."""
    activation_checkpointing: bool = Field(False, json_schema_extra=PLACEMENT)
    """Compute activations again in the backward pass, which saves memory and costs time."""
    compile: bool = Field(False, json_schema_extra=PLACEMENT)
    """Compile the blocks with torch.compile. What was compiled is kept on each machine, below $OMNILOOM_CACHE."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a step whose loss or gradient is not finite or a spike: the training stops; its update is left out;
    or training goes back to the last checkpoint and leaves out the documents to blame, or the step where none stands
    out. The last two ask the host once a step, before the update."""
    spike_sigmas: float | None = Field(None, gt=0)
    """A loss or gradient norm so many deviations above the median of the last good steps is a spike; null: 8 with skip
    and rollback, and with stop no spike ends the training."""
    spike_window: int = Field(128, ge=4)
    """The good steps that a step is compared with; it is judged once half of them are there."""
    max_bad_steps: int = Field(20, ge=0)
    """Bad steps that are skipped or gone back from in all; one more stops the training."""

    @model_validator(mode="after")
    def _gradients_are_ours(self) -> EngineConfig:
        if self.communication != "fp32" and (self.zero_stage != 1 or self.offload):
            raise ValueError("communication: bf16 needs zero_stage 1 without offload, where DeepSpeed does not reduce")
        return self


class WorkerRange(BaseModel):
    """Training goes on with as many workers as there is room for, at the same rows a step."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    min: int = Field(ge=1, json_schema_extra=PLACEMENT)
    """Fewer than these wait for more."""
    max: int = Field(ge=1, json_schema_extra=PLACEMENT)
    """More than these are not asked for."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"max: expected at least min {self.min}, got {self.max}")
        return self


def _count(value: Any) -> Any:
    """A union's own errors name its types, not what was expected."""
    if isinstance(value, dict):
        try:
            return WorkerRange.model_validate(value)
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise ValueError(f"{where + ': ' if where else ''}{wrong['msg'].removeprefix('Value error, ')}") from None
    if isinstance(value, WorkerRange) or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"expected a whole number of at least 1, or {{min, max}}, got {value!r}")


class WorkersConfig(BaseModel):
    """Where the training workers run. All of it is placement: results do not depend on it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    count: Annotated[Annotated[int, Field(ge=1)] | WorkerRange, BeforeValidator(_count)] = Field(
        2, json_schema_extra=PLACEMENT
    )
    """Workers; or {min, max}: as many as there is room for, fewer when a machine is lost and more when one comes."""
    cpus: float = Field(1, gt=0, json_schema_extra=PLACEMENT)
    """CPUs of one worker."""
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)
    """GPUs of one worker."""
    accelerator_type: str | None = Field(None, min_length=1, json_schema_extra=PLACEMENT)
    """Ray's name of the GPUs, as H100 or A100-80G: workers run on nodes that have such ones alone, and `plan` and
    `doctor` know their memory; null: on any."""
    max_failures: int = Field(3, ge=0, json_schema_extra=PLACEMENT)
    """Restarts from the last checkpoint in a row; one that reaches a later checkpoint sets the count back to 0."""
    hang_seconds: float = Field(HANG_SECONDS, gt=0, json_schema_extra=PLACEMENT)
    """The shortest silence of a rank that may count as a hang; the rhythm of its steps may allow longer ones."""
    grace_seconds: float = Field(30, ge=0, json_schema_extra=PLACEMENT)
    """How long a run that is told to end waits for a checkpoint."""
    accumulate: int = Field(1, ge=1, json_schema_extra=PLACEMENT)
    """Forward passes per optimizer step; with fewer workers than the most, as many as keep the rows of a pass."""
    checkpoint_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, json_schema_extra=PLACEMENT)
    """How many of the last checkpoints are kept."""
    keep_every: int | None = Field(None, ge=1, json_schema_extra=PLACEMENT)
    """Checkpoints of every so many steps stay besides until the stage is done; a multiple of `checkpoint_every`."""
    log_every: int = Field(20, ge=1, json_schema_extra=PLACEMENT)
    """Steps between logged metrics."""
    peak_tflops: float | None = Field(None, gt=0, json_schema_extra=PLACEMENT)
    """Peak of one worker's device in TFLOP/s, for model_flops_utilization; known of some GPUs in bf16."""

    @model_validator(mode="after")
    def _type_is_of_gpus(self) -> WorkersConfig:
        if self.accelerator_type and not self.gpus:
            raise ValueError("accelerator_type: has no effect: workers.gpus is 0")
        return self

    @model_validator(mode="after")
    def _kept_are_saved(self) -> WorkersConfig:
        if self.keep_every and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every: expected a multiple of checkpoint_every {self.checkpoint_every}, got {self.keep_every}"
            )
        return self

    @property
    def most(self) -> int:
        """The most workers that there can be."""
        return self.count if isinstance(self.count, int) else self.count.max

    @property
    def least(self) -> int:
        """The fewest workers that training goes on with."""
        return self.count if isinstance(self.count, int) else self.count.min

    def passes(self, rows: int, ranks: int, together: int = 1) -> int:
        """Forward passes of a step of so many rows on so many ranks, of which so many take the same rows together: on
        the most of them `accumulate`, on fewer as many as leave no pass with more rows, as far as every pass has
        one."""
        groups = ranks // together
        at_once = max(1, rows // (self.most // together * self.accumulate))
        return max(1, min(-(-rows // (groups * at_once)), rows // groups))

    def division(self, rows: int, rank: int, ranks: int, together: int = 1) -> list[range]:
        """The rows of a step that a rank takes, by forward pass; sizes differ by at most one over all ranks. Ranks side
        by side take the same rows, so many `together`."""
        passes = self.passes(rows, ranks, together)
        rank, ranks = rank // together, ranks // together
        bounds = [rows * part // (ranks * passes) for part in range(rank * passes, (rank + 1) * passes + 1)]
        return [range(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]

    def keeps(self, done: int, steps: int) -> bool:
        """Whether a checkpoint is written when `done` of `steps` steps are."""
        return done % self.checkpoint_every == 0 or done == steps

    def logs(self, done: int, steps: int) -> bool:
        """Whether a row is logged then. A checkpoint closes the window, so that a resumed run logs the same rows and
        counts every unit once."""
        return done % self.log_every == 0 or self.keeps(done, steps)


def check_muon(optimizer: BlocksOptimizerConfig, engine: EngineConfig) -> None:
    """ValueError where the engine divides the matrices that Muon must see whole."""
    if optimizer.muon and (engine.zero_stage > 1 or engine.offload):
        raise ValueError(
            "optimizer.muon: sees matrices whole; set engine.zero_stage to 0 or 1 and engine.offload to false"
        )
