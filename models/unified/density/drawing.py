"""How `next_latent` draws a picture: one position's latents after the other. In: a canvas
(`models.unified.generation.draw`). Out: latents (R, N, C).

Guidance. Densities do not mix as logits do: p_c^w / p_u^(w-1) has no closed form under any head here. So `CANDIDATES`
values of a position are drawn from the whole condition's density p_c, and one of them is chosen by the weights
(p_c / p_u)^(w-1): importance resampling (Rubin 1988), which draws from the guided density as candidates become many.
With two scales the exponents are those of `VisualSampling`'s second formula. At w = 1 there is one candidate. The
diffusion head has scores, which are guided as a diffusion's are.

Temperature scales variances: of a mixture's normals (GIVT, arXiv 2312.02116, section 3.4), of the normal that a flow
starts from, of the noise that the diffusion head does. Candidates are drawn at it and weighed by the densities as they
are learnt.

Shapes: R requests, V variants of each, N positions, P candidates, C channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omniloom.models.unified.density.base import LikelihoodHead
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, sampling_times
from omniloom.models.unified.diffusion.samplers import Time, sample

if TYPE_CHECKING:
    from omniloom.models.unified.generation.draw import Canvas

CANDIDATES = 16


def write_latents(canvas: Canvas) -> Tensor:
    head, hidden = canvas.state.model.density, canvas.opening
    draw = _by_likelihood(canvas, head) if isinstance(head, LikelihoodHead) else _by_denoising(canvas)
    values: list[Tensor] = []
    for place in range(canvas.count):
        if canvas.watch:
            canvas.watch(place, None)
        values.append(draw(hidden, place))
        hidden = canvas.feed(values[-1][:, None], keep=True, first=place)[:, 0]
    return torch.stack(values, dim=1)


def _by_likelihood(canvas: Canvas, head: LikelihoodHead):
    variants = len(canvas.how.variants)
    count = CANDIDATES if variants > 1 else 1
    normals = canvas.drawn(torch.randn, canvas.count, count, canvas.size)
    uniforms = canvas.drawn(torch.rand, canvas.count, count, canvas.size)
    choices = canvas.drawn(torch.rand, canvas.count) if variants > 1 else None

    def draw(hidden: Tensor, place: int) -> Tensor:
        full = hidden.chunk(variants)[0][:, None]
        values_RPC = head.sample(full, normals[:, place], uniforms[:, place], canvas.how.temperature)
        if choices is None:
            return values_RPC[:, 0]
        log_prob_VP = head.log_prob(hidden[:, None], values_RPC.repeat(variants, 1, 1))
        weights_RP = (canvas.guided(log_prob_VP) - log_prob_VP[: len(full)]).double().softmax(-1)
        chosen_R1 = (weights_RP.cumsum(-1) <= choices[:, place, None]).sum(-1, keepdim=True).clamp(max=count - 1)
        return values_RPC.gather(1, chosen_R1[..., None].expand(-1, 1, canvas.size))[:, 0]

    return draw


def _by_denoising(canvas: Canvas):
    how, head = canvas.how, canvas.state.model.density
    diffusion = how.trained_diffusion()
    times = sampling_times(diffusion, how.num_steps)
    noise = math.sqrt(how.temperature) * canvas.drawn(torch.randn, canvas.count, canvas.size)

    def draw(hidden: Tensor, place: int) -> Tensor:
        def network(x_RC: Tensor, time: Time) -> Tensor:
            times_R = torch.as_tensor(time, dtype=torch.float32, device=x_RC.device).expand(len(x_RC), 1)
            x_VC, times_V = (a.repeat(len(how.variants), 1) for a in (x_RC, times_R))
            return canvas.guided(head(hidden, x_VC[:, None], times_V)[:, 0])

        return sample(how.sampler, NetworkDenoiser(diffusion, network), noise[:, place], times)

    return draw
