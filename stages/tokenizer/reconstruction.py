"""Validation of a tokenizer in training: reconstruction figures on held-out clips, and originals beside what came back.

In: a tokenizer and pixels in [-0.5, 0.5] of the validation split, batch by batch. Out: figures and a PNG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omniloom.infra.training.shards import gathered
from omniloom.models.model import to_uint8
from omniloom.models.tokenizer.base import Encoded, VisualTokenizer
from omniloom.stages.reporting import report

COLUMNS = 12
SHOWN_CLIPS = 2


class _Clip(NamedTuple):
    """What one clip gave: squared error and number of values, and what is shown of it."""

    kind: str
    number: int
    error: float
    values: int
    shown: tuple[Tensor, Tensor] | None


@torch.no_grad()
def validate(
    tokenizer: VisualTokenizer,
    reconstruct: Callable[[Tensor], tuple[Tensor, Encoded]],
    clips: Iterable[tuple[str, Tensor, list[int]]],
    engine: Any,
) -> tuple[dict[str, float], bytes]:
    """`clips`: (kind, pixels, numbers) in batches of one shape, this rank's share of them; `reconstruct` is asked while
    the tokenizer is in eval mode. Figures over the clips of all ranks: `validation_psnr_KIND` in dB, over all values of
    the kind; `validation_codebook_usage` (share of the codes that the clips use) and `validation_perplexity`. Without
    clips, no figures and no picture. Every rank must call it."""
    was_training = tokenizer.training
    tokenizer.eval()
    counts = torch.zeros(tokenizer.codebook_size or 0)
    mine: list[_Clip] = []
    with engine.autocast():
        for kind, pixels, numbers in clips:
            recon, encoded = reconstruct(pixels.to(engine.device))
            recon = recon.float().cpu()
            errors = (recon.clamp(-0.5, 0.5) - pixels).double().square().flatten(1).sum(1)
            for place, number in enumerate(numbers):
                shown = (pixels[place], recon[place]) if number < COLUMNS else None
                mine.append(_Clip(kind, number, float(errors[place]), pixels[place].numel(), shown))
            if encoded.codes is not None and numbers:
                counts += torch.bincount(encoded.codes.flatten().cpu(), minlength=len(counts))
    tokenizer.train(was_training)
    parts = gathered((mine, counts))
    found = sorted((clip for part, _ in parts for clip in part), key=lambda clip: clip.number)
    kinds = sorted({clip.kind for clip in found})
    figures = {f"validation_psnr_{kind}": _psnr([clip for clip in found if clip.kind == kind]) for kind in kinds}
    counts = torch.stack([count for _, count in parts]).sum(0)
    if counts.sum():
        share = counts / counts.sum()
        figures["validation_codebook_usage"] = float((counts > 0).float().mean())
        figures["validation_perplexity"] = float((-torch.xlogy(share, share).sum()).exp())
    return figures, _side_by_side(found, kinds) if found else b""


def _psnr(clips: list[_Clip]) -> float:
    """For a range of 1, over all values of the clips."""
    error = sum(clip.error for clip in clips) / sum(clip.values for clip in clips)
    return float(-10.0 * torch.log10(torch.tensor(max(error, 1e-10))))


def _side_by_side(clips: list[_Clip], kinds: list[str]) -> bytes:
    """Originals above reconstructions, as PNG: images, or frames of the first videos of one shape."""
    originals: list = []
    recons: list = []
    for kind in kinds:
        shown = [clip.shown for clip in clips if clip.kind == kind and clip.shown]
        for original, recon in shown if shown[0][0].ndim == 3 else _alike(shown)[:SHOWN_CLIPS]:
            for source, target in ((original, originals), (recon, recons)):
                pixels = to_uint8(source[None])[0]
                target += [pixels] if original.ndim == 3 else list(pixels[: COLUMNS // SHOWN_CLIPS])
    return report.pairs(originals, recons, COLUMNS)


def _alike(shown: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [pair for pair in shown if pair[0].shape == shown[0][0].shape]
