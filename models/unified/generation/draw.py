"""How one picture is drawn by each objective. In: a state of requests that are about to open a picture, a seed and a
number of the picture in its request each. Out: its values, and where the state goes on behind it.

Under guidance the state holds the requests once for each variant of their prefixes (`VisualSampling.variants`), and all
variants are shown what is drawn. Every request draws from a generator of its own on the CPU, so that a seed gives the
same picture whatever it is batched with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from omniloom.models.extensions import resolve
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import DensityConfig
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, denoised, sampling_times
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.diffusion.samplers import MidpointPredictor, Time, sample
from omniloom.models.unified.generation.cache import GenerationState, joined, opening
from omniloom.models.unified.generation.choice import sample_tokens
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.objectives.corruption import mask_ratio
from omniloom.models.unified.positions import Grid

_PICTURE_SEED_STEP = 1_000_003
_TINY = 1e-20

Draw = tuple[int, int]  # seed of the request, number of the picture in it
Predicted = Callable[[], Tensor]
# Told each time that the network has been evaluated: the number of the step, from 0, and how the values of the finished
# pictures are predicted there, in the shape of the result; None where nothing predicts them. What it raises ends the
# drawing.
Watch = Callable[[int, Predicted | None], None]


def check_drawing(config: UnifiedConfig, how: VisualSampling) -> None:
    """ValueError naming what is missing of `how`, whose objective and diffusion a model fills in, or of the model."""
    kind = how.row.representation
    if how.row.is_diffusion:
        how.trained_diffusion()  # is checked
    if getattr(config, kind.size) is None:
        raise ValueError(f"objective: {how.objective} needs a model with {kind.size}")
    if how.row.by_density:
        if config.density is None:
            raise ValueError(f"objective: {how.objective} needs a model with a density head")
        _check_head(config.density, how)


def _check_head(config: DensityConfig, how: VisualSampling) -> None:
    """ValueError naming what the head does not draw by."""
    if config.head == "diffusion":
        how.trained_diffusion()  # is checked
    if how.predictor is not None:
        raise ValueError(f"sampler: {how.sampler} is of diffusions of whole pictures, got {how.objective}")
    if config.head == "fourier" and how.temperature != 1:
        raise ValueError(f"temperature: the head fourier draws at 1 alone, got {how.temperature}")


def nothing(config: UnifiedConfig, grid: Grid, how: VisualSampling) -> Tensor:
    """The result for no request at all."""
    kind = how.row.representation
    if kind.discrete:
        return torch.zeros((0, *grid), dtype=torch.int64)
    return torch.zeros((0, *grid, getattr(config, kind.size)))


def draw_visual(
    state: GenerationState, draws: Sequence[Draw], grid: Grid, how: VisualSampling, watch: Watch | None = None
) -> Tensor:
    """Draw a segment for each of R requests, in a state of V R rows for V variants: all requests' first, and so on.

    Returns latents or pixels (R, N, C), or codes int64 (R, N). The state is of no use then."""
    canvas = _open(state, draws, grid, how)
    canvas.watch = watch
    return resolve(how.row.draw)(canvas)


def draw_and_go_on(
    state: GenerationState, draws: Sequence[Draw], grid: Grid, how: VisualSampling
) -> tuple[Tensor, Tensor]:
    """As `draw_visual`, and hidden (rows, width) at <eoi>; the state then holds the clean segment."""
    canvas = _open(state, draws, grid, how)
    values = resolve(how.row.draw)(canvas)
    if not how.row.causal:  # a causal segment was kept as it was drawn
        canvas.feed(values, keep=True)
    if state.closing is not None:
        return values, state.closing
    return values, state.feed_text([state.model.config.specials.eoi] * len(state.lengths))


def open_diffusion(
    state: GenerationState, draws: Sequence[Draw], grid: Grid, how: VisualSampling
) -> tuple[NetworkDenoiser, Tensor]:
    """What a sampler needs to draw as `draw_visual` does: the guided denoiser behind each request's prefix, and the
    noise (R, N, C). Gradients flow through it to x and to the times."""
    canvas = _open(state, draws, grid, how)
    return canvas.denoiser(), canvas.noise()


def _open(state: GenerationState, draws: Sequence[Draw], grid: Grid, how: VisualSampling) -> Canvas:
    model = state.model
    check_drawing(model.config, how)
    rows = len(state.lengths)
    hidden = state.feed_text([opening(model.config, grid)] * rows, [not joined(model.config, how.row.name)] * rows)
    generators = [torch.Generator().manual_seed(seed + number * _PICTURE_SEED_STEP) for seed, number in draws]
    return Canvas(state, hidden, generators, grid, how)


@dataclass
class Canvas:
    """State that the drawing functions share; `opening` is the hidden state (rows, width) at <boi>, before the picture
    is there."""

    state: GenerationState
    opening: Tensor
    generators: list[torch.Generator]
    grid: Grid
    how: VisualSampling
    watch: Watch | None = None

    @property
    def count(self) -> int:
        return math.prod(self.grid)

    def drawn(self, function: Callable, *shape: int) -> Tensor:
        """(R, *shape), each request's from its generator."""
        return torch.stack([function(*shape, generator=g) for g in self.generators]).to(self.state.device)

    def feed(self, values: Tensor, time: Time = 0.0, *, keep: bool, first: int = 0, step: float = 0.0) -> Tensor:
        """`GenerationState.feed_visual` in all rows."""
        values = values.repeat(len(self.state.lengths) // len(values), *[1] * (values.ndim - 1))
        return self.state.feed_visual(self.how.row.name, values, self.grid, time, keep=keep, first=first, step=step)

    def predict(self, hidden: Tensor) -> Tensor:
        """The guided output of the head for the requests, float32."""
        kind, state = self.how.row.representation, self.state
        return self.guided(state.model.visual_head(kind.name, hidden, state.given).float())

    def guided(self, out: Tensor) -> Tensor:
        """What is predicted for all variants (V R, ...) -> for the requests (R, ...)."""
        variants = self.how.variants
        *more, guided = outputs = out.chunk(len(variants))
        for (scale, _), full, less in reversed(list(zip(variants, more, outputs[1:]))):
            guided = guided + scale * (full - less)
        return guided

    @property
    def size(self) -> int:
        """Channels of a value, or how many codes there are."""
        return getattr(self.state.model.config, self.how.row.representation.size)

    def noise(self) -> Tensor:
        return self.drawn(torch.randn, self.count, self.size)

    def denoiser(self) -> NetworkDenoiser:
        diffusion = self.how.trained_diffusion()
        told: list[float] = []  # the sampler's times as the network is told them
        if self.state.model.config.tells_steps:
            told = [float(formulation(diffusion).c_noise(t)) for t in sampling_times(diffusion, self.how.num_steps)]

        def network(x: Tensor, time: Time) -> Tensor:
            step = float(time) - max((after for after in told if after < time), default=float(time))
            return self.predict(self.feed(x, time, keep=False, step=step))

        return NetworkDenoiser(diffusion, network)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Codes of logits (..., K) by uniforms (...)."""
        return sample_tokens(logits.flatten(0, -2), uniforms.flatten(), self.how).view(uniforms.shape)


class _Watched(NetworkDenoiser):
    """A denoiser that tells `watch` of each of its evaluations."""

    def __init__(self, denoiser: NetworkDenoiser, times: Sequence[float], watch: Watch):
        super().__init__(denoiser.config, denoiser.network)
        self.times, self.watch = times, watch

    def _predict(self, x: Tensor, t: Time) -> Tensor:
        prediction = super()._predict(x, t)
        step = sum(earlier > float(t) for earlier in self.times)
        self.watch(step, lambda: denoised(self.config, prediction, x, t))
        return prediction


def diffuse(canvas: Canvas) -> Tensor:
    times = sampling_times(canvas.how.trained_diffusion(), canvas.how.num_steps)
    denoiser = canvas.denoiser()
    return sample(
        canvas.how.sampler,
        _Watched(denoiser, times, canvas.watch) if canvas.watch else denoiser,
        canvas.noise(),
        times,
        cast(MidpointPredictor | None, canvas.how.predictor),
    )


def write_codes(canvas: Canvas) -> Tensor:
    """One code after the other."""
    uniforms, hidden = canvas.drawn(torch.rand, canvas.count), canvas.opening
    codes: list[Tensor] = []
    for place in range(canvas.count):
        if canvas.watch:
            canvas.watch(place, None)
        codes.append(canvas.choose(canvas.predict(hidden), uniforms[:, place]))
        hidden = canvas.feed(codes[-1][:, None], keep=True, first=place)[:, 0]
    return torch.stack(codes, dim=1)


def unmask(canvas: Canvas) -> Tensor:
    """MaskGIT's iterative decoding (arXiv 2202.04200, section 3.2): all masked codes are drawn at once, and those of
    least confidence are masked again, fewer each round."""
    how, count = canvas.how, canvas.count
    rounds, mask = min(how.num_steps, count), canvas.size  # the code behind the last stands for none
    draws = canvas.drawn(torch.rand, rounds, 2, count)
    codes = torch.full((len(canvas.generators), count), mask, device=draws.device)
    for step in range(rounds):
        logits = canvas.predict(canvas.feed(codes, keep=False))
        unknown = codes == mask
        chosen = canvas.choose(logits, draws[:, step, 0])
        codes = torch.where(unknown, chosen, codes)
        if canvas.watch:
            canvas.watch(step, partial(torch.clone, codes))
        progress = (step + 1) / rounds
        # At least one becomes known a round; the schedule leaves none masked after the last.
        masked = min(math.floor(count * mask_ratio(progress)), int(unknown[0].sum()) - 1) if step + 1 < rounds else 0
        gumbel = -(-draws[:, step, 1].clamp(_TINY, 1 - 2**-24).log()).log()
        confidence = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
        confidence = confidence + how.confidence_noise * (1 - progress) * gumbel
        confidence = confidence.masked_fill(~unknown, torch.inf)
        again = confidence.argsort(dim=-1, stable=True)[:, :masked]
        codes = codes.scatter(1, again, mask)
    return codes
