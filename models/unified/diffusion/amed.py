"""AMED's predictor and its training (arXiv 2312.00094, sections 3.2 and 3.3). In: a denoiser, noise, the times of
a sampler of few steps. Out: a tiny network that picks where inside each step one evaluation tells most of the
step's mean direction; as a safetensors file, too.

As in the paper the student's x after each step is drawn towards a finer solver's, and the time told to the denoiser
and the length of the step are scaled (a, c). Unlike there the predictor sees the step's times alone and no features
of the network, so that what a request draws does not depend on its batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import finer_times
from omniloom.models.unified.diffusion.samplers import Denoiser, amed_step, heun

_C_RANGE, _A_RANGE = 0.5, 0.2
_VERSION = "1"


class AmedPredictor(nn.Module):
    """(r, c, a) of `models.unified.diffusion.samplers.amed_step` for each step of one list of times, at first (1/2, 1,
    1): the geometric midpoint. r is in (0, 1), c in 1 +- 0.5, a in 1 +- 0.2.

    times      falling path times, the last one 0; it serves no others
    width      of its hidden layer
    diffusion  that it was trained for, where that is a network's
    """

    def __init__(self, times: Sequence[float], width: int = 32, diffusion: DiffusionConfig | None = None):
        super().__init__()
        self.diffusion = diffusion
        grid = torch.tensor([float(t) for t in times], dtype=torch.float64)
        if len(grid) < 2 or grid[-1] != 0 or not (grid[1:] < grid[:-1]).all():
            raise ValueError(f"times: expected at least two that fall to 0, got {grid.tolist()}")
        self.register_buffer("times", grid)
        self.net = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 3))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, now: float, after: float) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions for the step from time `now` to `after` > 0: float32 scalars."""
        weight = self.net[0].weight
        out = self.net(torch.tensor([math.log(now), math.log(now / after)], device=weight.device) / 4)
        return out[0].sigmoid(), 1 + _C_RANGE * out[1].tanh(), 1 + _A_RANGE * out[2].tanh()

    @torch.no_grad()
    def steps(self, times: Sequence[float]) -> list[tuple[float, float, float]]:
        """(r, c, a) of each step but the last. ValueError where `times` are not those it was made for."""
        own = self.times.tolist()
        if len(own) != len(times) or not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(own, times)):
            raise ValueError(
                f"predictor: made for {len(own) - 1} steps from t = {own[0]:g}, {own[1]:g}, ..., asked for "
                f"{len(times) - 1} from {', '.join(f'{t:g}' for t in times[:2])}, ..."
            )
        return [tuple(value.item() for value in self(now, after)) for now, after in zip(times[:-2], times[1:-1])]

    def check(self, diffusion: DiffusionConfig) -> None:
        """ValueError naming what another diffusion was trained with."""
        if self.diffusion is None or self.diffusion == diffusion:
            return
        for field in dataclasses.fields(diffusion):
            own, other = getattr(self.diffusion, field.name), getattr(diffusion, field.name)
            if own != other:
                raise ValueError(f"predictor: made for diffusion.{field.name} {own}, the model has {other}")

    def save(self, path: str | Path) -> None:
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        made_for = {"diffusion": json.dumps(dataclasses.asdict(self.diffusion))} if self.diffusion else {}
        save_file(state, path, metadata={"format": "amed", "version": _VERSION, **made_for})

    @classmethod
    def load(cls, path: str | Path) -> AmedPredictor:
        """Read what `save` wrote. ValueError naming the file and what is wrong with it."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:  # safetensors raises several classes for a wrong file
            raise ValueError(f"{path}: cannot read the sampler's predictor: {error}") from error
        if (metadata.get("format"), metadata.get("version")) != ("amed", _VERSION):
            raise ValueError(f"{path}: metadata: expected format amed, version {_VERSION}, got {metadata}")
        try:
            made_for = json.loads(metadata.get("diffusion", "null"))
            diffusion = made_for and DiffusionConfig(**made_for)
            predictor = cls(state["times"].tolist(), len(state["net.0.bias"]), diffusion)
            predictor.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: does not hold a predictor's tensors: {error}") from error
        return predictor


def train_amed(
    batch: Callable[[int], tuple[Denoiser, Tensor]],
    times: Sequence[float],
    *,
    iterations: int = 150,
    teacher_steps: int = 8,
    learning_rate: float = 0.02,
    width: int = 32,
    seed: int = 0,
    diffusion: DiffusionConfig | None = None,
) -> tuple[AmedPredictor, list[float]]:
    """Train a predictor for one list of sampling times: Adam, its rate falling to 0 by a cosine.

    batch          gives iteration i its (denoiser, noise); a denoiser may hold prompts of its own. It has to give
                   gradients with respect to x and to scalar tensor times; its own parameters get none
    times          falling path times, the last one 0, of at least two steps
    teacher_steps  Heun's steps inside each of the student's
    width, diffusion  as in `AmedPredictor`
    Returns the predictor and, for each iteration, the mean over the steps of |x - teacher|^2 / (a^2 + b^2): the
    distance of the two after the same step from the same noise, in units of the path's deviation.
    """
    if len(times) < 3:
        raise ValueError(f"times: expected at least two steps, got {len(times) - 1}")
    if iterations < 1 or teacher_steps < 1:
        raise ValueError(f"iterations, teacher_steps: expected at least 1, got {iterations}, {teacher_steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = AmedPredictor(times, width, diffusion)
    parameters = list(predictor.parameters())
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for iteration in range(iterations):
        denoiser, noise = batch(iteration)
        predictor.to(noise.device)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        x = teacher = denoiser.scales(times[0])[1] * noise
        total = 0.0
        for now, after in zip(times, times[1:-1]):
            with torch.no_grad():
                teacher = heun(denoiser, teacher, finer_times(now, after, teacher_steps))
            x = amed_step(denoiser, x, now, after, *predictor(now, after))
            a, b = denoiser.scales(after)
            loss = (x - teacher).square().mean() / ((a * a + b * b) * (len(times) - 2))
            # Step by step, which bounds the memory, and of the predictor alone: backward() would fill the network's
            # gradients as well.
            for gradient, more in zip(gradients, torch.autograd.grad(loss, parameters)):
                gradient += more
            x, total = x.detach(), total + loss.item()
        optimizer.step()
        schedule.step()
        losses.append(total)
    return predictor, losses
