"""How a diffusion is distilled to few steps (`models.unified.objectives.distillation`). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Distillation:
    """The student's sampler, and what its teacher does.

    method          how, as `models.unified.objectives.distillation` says
    num_steps       of the student's sampler
    teacher_steps   of the teacher's, from noise to picture
    guidance_scale  of the teacher
    """

    method: Literal["reflow", "consistency"]
    num_steps: int
    teacher_steps: int
    guidance_scale: float

    @property
    def parts(self) -> int:
        """Of the teacher's steps, how many make one of the student's."""
        return -(-self.teacher_steps // self.num_steps)

    @property
    def forward_passes(self) -> int:
        """What a step makes more than one of any training: a guided pass is two, and under consistency the student says
        once what it will be held to."""
        guided = 1 if self.guidance_scale == 1 else 2
        return guided * self.teacher_steps if self.method == "reflow" else guided + 1

    @property
    def sampling(self) -> dict[str, Any]:
        """How the student draws where nothing is chosen (`models.folder.BundleConfig`)."""
        return {"num_steps": self.num_steps, "guidance_scale": 1.0, "sampler": "ddim"}
