"""Configs of training: optimizer and schedule, numerics, and where the workers run. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from omniloom.infra.fields import PLACEMENT

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """AdamW with a linear warm-up and then a cosine (or constant) schedule."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    lr: float = Field(1e-3, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_ratio: float = Field(0.05, ge=0, le=1)
    grad_clip: float = Field(1.0, ge=0, description="maximum norm of the gradient; 0 switches clipping off")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.lr * (self.final_lr_ratio + (1 - self.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


class EngineConfig(BaseModel):
    """Numerics and ZeRO. The ZeRO stage moves memory and traffic, not results, so it is placement."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    zero_stage: Literal[0, 1, 2, 3] = Field(1, json_schema_extra=PLACEMENT)
    offload: bool = Field(False, json_schema_extra=PLACEMENT, description="optimizer states in host memory")
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0 keeps none")
    activation_checkpointing: bool = Field(False, json_schema_extra=PLACEMENT)
    compile: bool = Field(False, json_schema_extra=PLACEMENT)


class WorkersConfig(BaseModel):
    """Where the training workers run. All of it is placement: results do not depend on it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    count: int = Field(2, ge=1, json_schema_extra=PLACEMENT)
    cpus: float = Field(1, gt=0, json_schema_extra=PLACEMENT, description="CPUs of one worker")
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT, description="GPUs of one worker")
    max_failures: int = Field(1, ge=0, json_schema_extra=PLACEMENT, description="restarts from the last checkpoint")
    accumulate: int = Field(1, ge=1, json_schema_extra=PLACEMENT, description="forward passes per optimizer step")
    checkpoint_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, json_schema_extra=PLACEMENT)
    log_every: int = Field(20, ge=1, json_schema_extra=PLACEMENT, description="steps between logged metrics")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        json_schema_extra=PLACEMENT,
        description="what one worker's device "
        "can compute, TFLOP/s, for model_flops_utilization; known of some GPUs in bf16",
    )
