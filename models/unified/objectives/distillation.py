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
    shortcut     the picture is the corpus's, and the network is told the size of its step beside the time. The way is
                 cut into 1, 2, 4, ... steps; the target of a step is where two of half its size arrive, which the
                 student makes, those of the least size the guided teacher (shortcut models, arXiv 2410.12557, eq. 4 and
                 5; guidance in the least steps alone, section 4). At size 0 the target is the plain diffusion's. Each
                 size, 0 among them, is as likely; the paper, which trains from scratch and a moving average's halves,
                 has 0 in three of four

Each gives a pair of data and noise (D, e) with x_t = a D + b e, and what the network has to predict of it, by which
weight, is the formulation's (`models.unified.diffusion.diffusion.residual`). Under consistency and shortcut D is what
DDIM's step takes to the end of the part: x_end = a_end D + b_end e. Of flow matching and two equal halves that is the
paper's v(x, t, 2d) = (v(x, t, d) + v(x', t - d, d)) / 2. Sampled by `ddim`, of as many steps as it was trained for.

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
from omniloom.models.unified.objectives.losses import DiffusionLoss, Shown, drawn
from omniloom.models.unified.objectives.objective import UnifiedObjective, predict
from omniloom.models.unified.representations import OBJECTIVES

_CONDITION = ("text", "image")


class DistilledLoss(DiffusionLoss):
    """A diffusion's loss on some ways alone: of a step's size, each of which is as likely, any of its ways.

    ways     by size, float32 (W, 4): the time, where a part of the step goes, where the step does, and 1 where the
             teacher makes that part, else 0
    anytime  whether size 0 is one more, at any time (t, t, t)
    """

    def __init__(self, *arguments: Any, ways: Sequence[Tensor], anytime: bool):
        super().__init__(*arguments)
        self.law, self.ways, self.anytime = DiffusionConfig(time="uniform"), ways, anytime

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, Tensor]:
        """Noise (K, C) and ways (B, S, 4) before any cap."""
        noise_KC, uniform_BS = super().draw_ahead(batch, seed)
        sizes = len(self.ways) + self.anytime
        size_BS = (uniform_BS * sizes).long().clamp(max=sizes - 1)
        rest_BS = uniform_BS * sizes - size_BS
        found = [of_size.to(rest_BS.device)[_number(rest_BS, len(of_size))] for of_size in self.ways]
        if self.anytime:
            row = formulation(self.config)
            found.append(row.shift(row.spread(rest_BS))[..., None].expand(-1, -1, 4))
        return noise_KC, torch.stack(found).take_along_dim(size_BS[None, ..., None], 0)[0]

    def show(self, batch: Batch, seed: Seed) -> Shown:
        """As a diffusion's, with the targets' ways (N, 4) in `extras`."""
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        noise_KC, ways_BS4 = drawn(self, self.name, batch, seed)
        shown = self._shown(batch, noise_KC, ways_BS4[..., 0])
        times, made = ways_BS4.flatten(0, 1).split((3, 1), dim=-1)
        capped = torch.cat((times * task.caps[:, None], made), dim=-1)
        shown.extras["way"] = capped[part.segment[task.rows[task.targets]]]
        return shown


def _number(uniform: Tensor, count: int) -> Tensor:
    return (uniform * count).long().clamp(max=count - 1)


def ways(path: DiffusionConfig, how: Distillation) -> list[Tensor]:
    """Of `DistilledLoss`."""
    if how.method == "shortcut":
        halves = {count: sampling_times(path, 2 * count) for count in how.counts}
        least = how.counts[-1]
        return [
            torch.tensor([(*way, float(count == least)) for way in zip(times[:-1:2], times[1::2], times[2::2])])
            for count, times in halves.items()
        ]
    steps = sampling_times(path, how.num_steps)
    parts = how.parts if how.method == "consistency" else 1
    power = 1 if path.sampling_grid == "time" else 7
    finer = [finer_times(now, end, parts, power) for now, end in zip(steps, steps[1:])]
    return [torch.tensor([(now, after, way[-1], 1.0) for way in finer for now, after in zip(way, way[1:])])]


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
        if distillation.tells_steps and not model.config.tells_steps:
            raise ValueError(f"DistilledObjective.model: {distillation.method} needs one of step_sizes: true")
        self.losses[self.distilled] = DistilledLoss(
            self.row,
            model.config,
            own.config,
            ways=ways(self.path, distillation),
            anytime=distillation.method == "shortcut",
        )

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
            clean_NC, noise_NC, step_N1 = own.extras["clean"], own.extras["noise"], None
            time_N1, after_N1, end_N1, made_N1 = own.extras["way"].split(1, dim=1)
            if self.how.method == "reflow":
                clean_NC = field.drawn(noise_NC, self.how.teacher_steps)
            x_NC = corrupt(self.path, clean_NC, noise_NC, time_N1)
            if self.how.method == "consistency":
                clean_NC, noise_NC = field.pair(x_NC, time_N1, after_N1, end_N1)
            if self.how.method == "shortcut":
                step_N1, is_step_N1 = field.told(time_N1, end_N1), time_N1 > end_N1
                twice = field.two_halves(x_NC, time_N1, after_N1, end_N1, made_N1 > 0)
                clean_NC, noise_NC = (
                    torch.where(is_step_N1, of_step, plain) for of_step, plain in zip(twice, (clean_NC, noise_NC))
                )
            seen = field.shown_at(batch, own, x_NC, time_N1, step_N1)
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

    def shown_at(self, batch: Batch, own: Shown, x_NC: Tensor, time_N1: Tensor, step_N1: Tensor | None = None) -> Shown:
        """`own` with the targets at x_t, (N, C), times (N, 1), and step sizes as the network is told them."""
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        values_KC = own.values.index_copy(0, task.targets, x_NC * self.row.input_scale(time_N1))
        numbers_N = part.segment[task.rows[task.targets]]  # of each position b*S + s
        told_N = torch.as_tensor(self.row.c_noise(time_N1))[:, 0]
        times = cast(Tensor, own.times)  # a diffusion has them
        times_BS = times.flatten().index_copy(0, numbers_N, told_N.to(times.dtype)).view_as(times)
        steps_BS = None
        if step_N1 is not None:
            steps_BS = torch.zeros_like(times).flatten().index_copy(0, numbers_N, step_N1[:, 0]).view_as(times)
        return replace(own, values=values_KC, times=times_BS, steps=steps_BS)

    def told(self, now_N1: Tensor, end_N1: Tensor) -> Tensor:
        """The size of a step as the network is told it."""
        return torch.as_tensor(self.row.c_noise(now_N1)) - torch.as_tensor(self.row.c_noise(end_N1))

    def _said(self, model: UnifiedModel, x_NC: Tensor, time_N1: Tensor, step_N1: Tensor | None = None) -> Tensor:
        """The network's output (N, C) behind the whole condition, float32."""
        own = self.shown_at(self.batch, self.shown[self.name], x_NC, time_N1, step_N1)
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
        return self._between(x_NC, end_NC, now_N1, end_N1)

    def two_halves(
        self, x_NC: Tensor, now_N1: Tensor, after_N1: Tensor, end_N1: Tensor, by_teacher_N1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `pair`, of a step's two halves, which the student makes, or the teacher where that is told. What it gives
        where there is no step means nothing."""
        x_t_NC = x_NC
        for start_N1, stop_N1 in ((now_N1, after_N1), (after_N1, end_N1)):
            said_NC = self._said(self.student, x_t_NC, start_N1, self.told(start_N1, stop_N1))
            own_NC = denoised(self.path, said_NC, x_t_NC, start_N1)
            data_NC = torch.where(by_teacher_N1, self.guided(x_t_NC, start_N1), own_NC)
            x_t_NC = torch.where(start_N1 > stop_N1, self._towards(x_t_NC, data_NC, start_N1, stop_N1), x_t_NC)
        return self._between(x_NC, x_t_NC, now_N1, end_N1)

    def _between(self, x_NC: Tensor, end_NC: Tensor, now_N1: Tensor, end_N1: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise of the way from x_t at `now` to `end_NC` at its end."""
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
