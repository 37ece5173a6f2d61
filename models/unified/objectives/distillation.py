"""Distillation of a diffusion: few steps without a second pass for guidance. In: the batch of a training step and a
frozen teacher, the model as it was before. Out: the same loss as any diffusion's, with other targets.

The student learns the field that its teacher is guided by, F(0) + s (F(I, T) - F(0)) as in
`models.unified.generation.sampling.VisualSampling`, so that it is sampled with a guidance scale of 1. By method:

    reflow       the picture is the teacher's own: its sampler goes from the row's noise to the picture that the student
                 learns on the straight way between the two (rectified flow, arXiv 2209.03003, algorithm 1). Its times
                 are those of the student's sampler, of which each is as likely (section 2.2 there, "k-step")
    consistency  the picture is the corpus's. The way is cut at the times of the student's sampler, and each part into
                 `parts` small steps: the teacher makes one, and what the student says from there of the part's end is
                 its target before (consistency distillation, arXiv 2303.01469, algorithm 2; without a moving average,
                 arXiv 2310.14189, section 3.2; in several parts by DDIM's step, arXiv 2403.06807, section 3)

Either gives a pair of data and noise (D, e) with x_t = a D + b e, and what the network has to predict of it, by which
weight, is the formulation's (`models.unified.diffusion.diffusion.residual`). Under consistency D is what DDIM's step
takes to the end of the part: x_end = a_end D + b_end e. Sampled by `ddim`, of as many steps as it was trained for.

Shapes: N positions of the objective's targets, C channels; B rows, S visual segments of a row at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from omniloom.models.unified.batch import Batch, Document, collate, document_length
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import corrupt, denoised, finer_times, sampling_times
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.layouts import without
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.corruption import Seed
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.objectives.losses import DiffusionLoss, Shown
from omniloom.models.unified.objectives.objective import UnifiedObjective, predict
from omniloom.models.unified.representations import OBJECTIVES

_CONDITION = ("text", "image")


class DistilledLoss(DiffusionLoss):
    """A diffusion's loss at some of its times alone, each of which is as likely."""

    def __init__(self, *arguments: Any, times: Sequence[float]):
        super().__init__(*arguments)
        self.law, self.times = DiffusionConfig(time="uniform"), torch.tensor(times, dtype=torch.float32)

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, Tensor]:
        noise_KC, uniform_BS = super().draw_ahead(batch, seed)
        numbers = (uniform_BS * len(self.times)).long().clamp(max=len(self.times) - 1)
        return noise_KC, self.times.to(numbers.device)[numbers]


class DistilledObjective(UnifiedObjective):
    """`UnifiedObjective` whose first objective, a diffusion, is distilled; what else is trained goes on as it was. In
    evaluation mode its loss is the plain one, of the corpus's pictures at any time.

    teacher  is no part of the module: it has neither gradients nor a place in checkpoints
    """

    def __init__(
        self,
        model: UnifiedModel,
        diffusion: DiffusionConfig,
        *arguments: Any,
        teacher: UnifiedModel,
        distillation: Distillation,
        **more: Any,
    ):
        super().__init__(model, diffusion, *arguments, **more)
        if self.sequence:
            raise ValueError("DistilledObjective.sequence: expected None, a teacher sees whole rows")
        self.distilled, self.how = next(iter(self.losses)), distillation
        self.row = OBJECTIVES[self.distilled]
        own = self.plain = self.losses[self.distilled]
        if not isinstance(own, DiffusionLoss):
            raise ValueError(f"DistilledObjective: {self.distilled}, the first objective, is no diffusion")
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple no module registers it
        self.path = own.config
        steps = sampling_times(self.path, distillation.num_steps)
        parts = distillation.parts if distillation.method == "consistency" else 1
        power = 1 if self.path.sampling_grid == "time" else 7
        ways = [finer_times(now, end, parts, power) for now, end in zip(steps, steps[1:])]
        nodes = [(now, after, way[-1]) for way in ways for now, after in zip(way, way[1:])]
        # Of each time that is trained: itself, the next one, and the end of the student's step.
        self.nodes = torch.tensor(nodes, dtype=torch.float32)
        times = self.nodes[:, 0].tolist()
        self.losses[self.distilled] = DistilledLoss(self.row, model.config, own.config, times=times)

    def beside(self, rows: Sequence[Sequence[Document]], device: str | None) -> Batch | None:
        if self.how.guidance_scale == 1:
            return None
        special = self.model.config.specials
        alone = [
            [
                [*without(document[:number], _CONDITION, special), segment]
                for document in row
                for number, segment in enumerate(document)
                if segment.kind == "visual" and segment.objective == self.distilled and segment.loss
            ]
            for row in rows
        ]
        length = max((sum(map(document_length, row)) for row in alone), default=0)
        return collate(alone, max(1, length), self.model.config, device)

    def show(self, batch: Batch, seed: Seed) -> dict[str, Shown]:
        shown = super().show(batch, seed)
        if not self.training:
            return {**shown, self.distilled: self.plain.show(batch, seed)}
        own = shown[self.distilled]
        with torch.no_grad():
            field = _Field(self, batch, shown)
            clean_NC, noise_NC = own.extras["clean"], own.extras["noise"]
            nodes = self.nodes.to(clean_NC.device)
            nearest_N = (own.extras["time"] - nodes[:, 0]).abs().argmin(1)
            time_N1, after_N1, end_N1 = nodes[nearest_N].split(1, dim=1)
            if self.how.method == "reflow":
                clean_NC = field.drawn(noise_NC, self.how.teacher_steps)
            x_NC = corrupt(self.path, clean_NC, noise_NC, time_N1)
            if self.how.method == "consistency":
                clean_NC, noise_NC = field.pair(x_NC, time_N1, after_N1, end_N1)
            seen = field.shown_at(batch, own, x_NC, time_N1)
        extras = {**own.extras, "clean": clean_NC, "noise": noise_NC, "time": time_N1}
        return {**shown, self.distilled: replace(seen, extras=extras)}


class _Field:
    """What the teacher, guided, and the student say at the targets of a batch."""

    def __init__(self, objective: DistilledObjective, batch: Batch, shown: Mapping[str, Shown]):
        self.path, self.name, self.row = objective.path, objective.distilled, formulation(objective.path)
        self.scale, self.student = objective.how.guidance_scale, objective.model
        like = next(self.student.parameters())
        self.teacher = objective._teacher[0].to(like.device, like.dtype)
        # Text is asked of nobody here, and nothing enters as a learned token.
        self.batch = _without_labels(batch)
        self.shown = {name: replace(own, masked=None) for name, own in shown.items()}
        self.alone = batch.unconditioned and _without_labels(batch.unconditioned)

    def shown_at(self, batch: Batch, own: Shown, x_NC: Tensor, time_N1: Tensor) -> Shown:
        """`own` with the targets at x_t, (N, C), and times (N, 1)."""
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        values_KC = own.values.index_copy(0, task.targets, x_NC * self.row.input_scale(time_N1))
        numbers_N = part.segment[task.rows[task.targets]]  # of each position b*S + s
        told_N = torch.as_tensor(self.row.c_noise(time_N1))[:, 0]
        times = cast(Tensor, own.times)  # a diffusion has them
        times_BS = times.flatten().index_copy(0, numbers_N, told_N.to(times.dtype)).view_as(times)
        return replace(own, values=values_KC, times=times_BS)

    def _said(self, model: UnifiedModel, x_NC: Tensor, time_N1: Tensor) -> Tensor:
        """The network's output (N, C) behind the whole condition, float32."""
        own = self.shown_at(self.batch, self.shown[self.name], x_NC, time_N1)
        return predict(model, self.batch, {**self.shown, self.name: own})[1][self.name].float()

    def _said_alone(self, x_NC: Tensor, time_N1: Tensor) -> Tensor:
        """The teacher's output (N, C) without a condition, float32."""
        if self.alone is None:
            raise ValueError("batch.unconditioned: is missing, which guidance needs (`DistilledObjective.beside`)")
        shown = {name: _nothing_known(self.alone, name, own) for name, own in self.shown.items()}
        shown[self.name] = self.shown_at(self.alone, shown[self.name], x_NC, time_N1)
        return predict(self.teacher, self.alone, shown)[1][self.name].float()

    def guided(self, x_NC: Tensor, time_N1: Tensor) -> Tensor:
        """The teacher's D (N, C)."""
        said_NC = self._said(self.teacher, x_NC, time_N1)
        if self.scale != 1:
            alone_NC = self._said_alone(x_NC, time_N1)
            said_NC = alone_NC + self.scale * (said_NC - alone_NC)
        return denoised(self.path, said_NC, x_NC, time_N1)

    def _towards(self, x_NC: Tensor, data_NC: Tensor, now_N1: Tensor, after_N1: Tensor) -> Tensor:
        """DDIM's step, as of `samplers.ddim`."""
        (a, b), (a_after, b_after) = self.row.scales(now_N1), self.row.scales(after_N1)
        return (b_after / b) * x_NC + (a_after - a * b_after / b) * data_NC

    def drawn(self, noise_NC: Tensor, steps: int) -> Tensor:
        """The teacher's pictures (N, C) of the noise."""
        times = [torch.full_like(noise_NC[:, :1], t) for t in sampling_times(self.path, steps)]
        x_NC = self.row.scales(times[0])[1] * noise_NC
        for now_N1, after_N1 in zip(times, times[1:]):
            x_NC = self._towards(x_NC, self.guided(x_NC, now_N1), now_N1, after_N1)
        return x_NC

    def pair(self, x_NC: Tensor, now_N1: Tensor, after_N1: Tensor, end_N1: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise, (N, C) each, on whose way x_t and the target at the end of its step lie."""
        ahead_NC = self._towards(x_NC, self.guided(x_NC, now_N1), now_N1, after_N1)
        # At the end itself nothing is left to be said, and 1 stands in for its time, which may be 0.
        inside_N1 = after_N1 > end_N1
        told_N1 = torch.where(inside_N1, after_N1, now_N1)
        said_NC = denoised(self.path, self._said(self.student, ahead_NC, told_N1), ahead_NC, told_N1)
        end_NC = torch.where(inside_N1, self._towards(ahead_NC, said_NC, told_N1, end_N1), ahead_NC)
        (a, b), (a_end, b_end) = self.row.scales(now_N1), self.row.scales(end_N1)
        data_NC = (end_NC - (b_end / b) * x_NC) / (a_end - a * b_end / b)
        return data_NC, (x_NC - a * data_NC) / b


def _without_labels(batch: Batch) -> Batch:
    return replace(batch, label_index=batch.label_index[:0])


def _nothing_known(batch: Batch, name: str, like: Shown) -> Shown:
    """The positions of an objective in a batch whose values and times are still open."""
    task, part = batch.tasks[name], batch.parts[OBJECTIVES[name].representation.name]
    times = None if like.times is None else like.times.new_zeros(len(batch.ids), batch.num_segments)
    return Shown(part.values[task.rows], part.index[task.rows[task.targets]], times)
