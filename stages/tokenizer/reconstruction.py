"""Validation of a tokenizer in training: reconstruction figures on held-out clips, and originals beside what came back.

In: a tokenizer and pixels in [-0.5, 0.5] of the validation split, batch by batch. Out: figures and a PNG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from omniloom.models.model import to_uint8
from omniloom.models.tokenizer.base import Encoded, VisualTokenizer
from omniloom.stages.reporting import report

COLUMNS = 12
SHOWN_CLIPS = 2


@torch.no_grad()
def validate(
    tokenizer: VisualTokenizer,
    reconstruct: Callable[[Tensor], tuple[Tensor, Encoded]],
    clips: Iterable[tuple[str, Tensor]],
    engine: Any,
) -> tuple[dict[str, float], bytes]:
    """`clips`: (kind, pixels) in batches of one shape; `reconstruct` is asked while the tokenizer is in eval mode.

    Figures: `validation_psnr_KIND` in dB, over all values of the kind; `validation_codebook_usage` (share of the codes
    that the clips use) and `validation_perplexity`. Without clips, no figures and no picture.
    """
    was_training = tokenizer.training
    tokenizer.eval()
    errors: dict[str, list[tuple[float, int]]] = {}
    counts = torch.zeros(tokenizer.codebook_size or 0)
    shown: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with engine.autocast():
        for kind, pixels in clips:
            recon, encoded = reconstruct(pixels.to(engine.device))
            recon = recon.float().cpu()
            error = (recon.clamp(-0.5, 0.5) - pixels).double().square().sum()
            errors.setdefault(kind, []).append((float(error), pixels.numel()))
            if encoded.codes is not None:
                counts += torch.bincount(encoded.codes.flatten().cpu(), minlength=len(counts))
            shown.setdefault(kind, []).append((pixels, recon))
    tokenizer.train(was_training)
    figures = {f"validation_psnr_{kind}": _psnr(parts) for kind, parts in errors.items()}
    if counts.sum():
        share = counts / counts.sum()
        figures["validation_codebook_usage"] = float((counts > 0).float().mean())
        figures["validation_perplexity"] = float((-torch.xlogy(share, share).sum()).exp())
    return figures, _side_by_side(shown) if shown else b""


def _psnr(parts: list[tuple[float, int]]) -> float:
    """For a range of 1, over all values of the parts (squared error, values)."""
    error = sum(part for part, _ in parts) / sum(count for _, count in parts)
    return float(-10.0 * torch.log10(torch.tensor(max(error, 1e-10))))


def _side_by_side(shown: dict[str, list[tuple[Tensor, Tensor]]]) -> bytes:
    """Originals above reconstructions, as PNG; a video shows frames of its first clips."""
    originals: list = []
    recons: list = []
    for pairs in shown.values():
        room = COLUMNS
        for original, recon in pairs:
            for source, target in ((original, originals), (recon, recons)):
                pixels = to_uint8(source)
                target += (
                    list(pixels[:room])
                    if pixels.ndim == 4
                    else [frame for clip in pixels[:SHOWN_CLIPS] for frame in clip[: COLUMNS // SHOWN_CLIPS]]
                )
            room -= len(original) if original.ndim == 4 else COLUMNS
            if room <= 0:
                break
    return report.pairs(originals, recons, COLUMNS)
