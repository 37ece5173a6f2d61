"""How a diffusion is distilled to few steps (`models.unified.objectives.distillation`). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Distillation:
    """The student's sampler, and what its teacher does.

    method          how, as `models.unified.objectives.distillation` says
    num_steps       of the student's sampler; of a shortcut a power of two
    teacher_steps   of the teacher's, from noise to picture; of a shortcut the next power of two
    guidance_scale  of the teacher
    """

    method: Literal["reflow", "consistency", "shortcut"]
    num_steps: int
    teacher_steps: int
    guidance_scale: float

    @property
    def parts(self) -> int:
        """Of the teacher's steps, how many make one of the student's."""
        return -(-self.teacher_steps // self.num_steps)

    @property
    def forward_passes(self) -> int:
        """What a step makes more than one of any training: a guided pass is two, under consistency the student says
        once what it will be held to, and under shortcut both say both halves of a step."""
        guided = 1 if self.guidance_scale == 1 else 2
        return {"reflow": guided * self.teacher_steps, "shortcut": 2 * (guided + 1)}.get(self.method, guided + 1)

    @property
    def counts(self) -> list[int]:
        """Of a shortcut the numbers of steps that the way is cut into, the powers of two from 1 on. The teacher makes
        steps of half the least size, at least as many as its own."""
        return [
            1 << power for power in range(max(1, (self.teacher_steps - 1).bit_length(), self.num_steps.bit_length()))
        ]

    @property
    def tells_steps(self) -> bool:
        """Whether the student is told the size of its steps (`UnifiedConfig.step_sizes`)."""
        return self.method == "shortcut"

    @property
    def sampling(self) -> dict[str, Any]:
        """How the student draws where nothing is chosen (`models.folder.BundleConfig`)."""
        return {"num_steps": self.num_steps, "guidance_scale": 1.0, "sampler": "ddim"}
