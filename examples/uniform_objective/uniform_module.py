"""Discrete diffusion of codes with uniform noise (D3PM, arXiv 2107.03006, appendix A.2.1).

A code of K is kept with probability a, else it becomes any of the K, itself included, each as likely as another: a is
1 - `mask_ratio`, so that the share of noise is the share that masked_code masks. The network is asked for the clean
code at every target, and its loss is their cross entropy (the auxiliary term of the paper's equation 5).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.unified.batch import Batch
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.draw import Canvas
from omniloom.models.unified.objectives.corruption import Seed, draw_uniforms, mask_ratio
from omniloom.models.unified.objectives.losses import Shown
from omniloom.models.unified.representations import VisualObjective


class UniformCodeLoss:
    """Codes of K, some of them drawn anew, are shown; every target's own code is asked for."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig | None = None):
        self.name, self.size, self.streams = row.name, config.codebook_size, (row.draw_stream, row.mask_stream)

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part, device = batch.tasks[self.name], batch.parts["codes"], batch.ids.device
        (scores, progress), (others, _) = (draw_uniforms(batch, self.name, seed, stream) for stream in self.streams)
        sizes = torch.tensor([math.prod(grid) for _, grid, *_ in task.segments], dtype=torch.int64)
        caps = torch.tensor([cap for _, _, cap, _ in task.segments], dtype=torch.float64)
        noise = (mask_ratio(progress) * caps).repeat_interleave(sizes)
        replaced = (torch.from_numpy(scores) < noise).to(device)
        codes, drawn = part.values[task.rows], (torch.from_numpy(others) * self.size).long().to(device)
        extras = {
            "codes": codes[task.targets],
            "weights": None if task.weights is None else task.weights[task.targets],
        }
        return Shown(torch.where(replaced, drawn, codes), part.index[task.rows][task.targets], extras=extras)

    def error(self, logits: Tensor, shown: Shown, batch: Batch) -> Tensor:
        """The sum over targets of the cross entropy, by their segments' weights where they have some."""
        entropy = F.cross_entropy(logits, shown.extras["codes"], reduction="none")
        weights = shown.extras["weights"]
        return (entropy if weights is None else entropy * weights).sum()


def denoise(canvas: Canvas) -> Tensor:
    """Codes int64 (R, N): all begin as noise; each step draws clean codes, then the codes of a step less noise."""
    size, steps = canvas.state.model.config.codebook_size, canvas.how.num_steps
    draws = canvas.drawn(torch.rand, 1 + 2 * steps, canvas.count)
    codes = (draws[:, 0].double() * size).long()
    for step in range(steps):
        before, after = (1 - float(mask_ratio(at / steps)) for at in (step, step + 1))
        clean = canvas.choose(canvas.predict(canvas.feed(codes, keep=False)), draws[:, 1 + 2 * step])
        cumulated = posterior(codes, clean, before, after, size).cumsum(dim=-1)
        at = draws[:, 2 + 2 * step, :, None].double() * cumulated[..., -1:]
        codes = torch.searchsorted(cumulated, at, right=True)[..., 0]
    return codes


def posterior(noisy: Tensor, clean: Tensor, before: float, after: float, size: int) -> Tensor:
    """How likely each of `size` codes is at the share `after` that is kept, given `noisy` codes at the smaller share
    `before` and the `clean` ones (equation 3); float64 (..., size), not normalised."""
    between = before / after

    def kept(codes: Tensor, share: float) -> Tensor:
        return share * F.one_hot(codes, size).double() + (1 - share) / size

    return kept(noisy, between) * kept(clean, after)
