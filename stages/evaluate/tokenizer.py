"""Measures the visual tokenizer. In: an `Evaluation`, which gets the figures and pictures."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from omniloom.models.pixels import half_range, to_uint8
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.config import Config
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import measuring
from omniloom.stages.evaluate.features.networks import lpips
from omniloom.stages.reporting import report

_BATCH = 32  # clips at once


def reconstruct(evaluation: Evaluation) -> None:
    """PSNR and SSIM of the tokenizer on held-out images and videos, each in the shape that it is tokenized in; LPIPS
    and rFID where their networks are given."""
    networks = evaluation.networks
    for kind, clips, num_shown in (("image", evaluation.images, 16), ("video", evaluation.videos, 3)):
        measured = clips.spread(evaluation.config.seed)[: cast(Config, evaluation.config).reconstructions]
        grids = {
            source: part[:num_shown]
            for source, part in (
                evaluation.by_source(measured.tolist()) if kind == "image" else {"": measured.tolist()}
            ).items()
        }
        wanted = {i for part in grids.values() for i in part}
        found: dict[str, dict[int, float]] = {}
        shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        seen: dict[int, np.ndarray] = {}
        for members in clips.buckets(measured):
            for chosen in np.split(members, range(_BATCH, len(members), _BATCH)):
                if not len(chosen):
                    continue
                batch = np.stack([clips[int(i)] for i in chosen])
                recons = _reconstructed(evaluation, batch)
                frames = [x.reshape(-1, *x.shape[2:]) for x in (batch, recons)]
                if networks and networks.inception and kind == "image":
                    seen |= dict(zip(chosen.tolist(), networks.inception(list(frames[1])), strict=True))
                for name, of_frames in {**metrics.reconstruction(*frames), **_lpips(evaluation, *frames)}.items():
                    means = of_frames.reshape(len(chosen), -1).mean(axis=1)  # of a clip's frames
                    found.setdefault(name, {}).update(zip(chosen.tolist(), means.tolist(), strict=True))
                shown |= {
                    int(i): pair for i, pair in zip(chosen, zip(batch, recons, strict=True), strict=True) if i in wanted
                }
        if not found:
            continue
        for name, values in found.items():
            ids = [clips.record(i)["id"] for i in values]
            evaluation.add(f"recon_{name}_{kind}", ids, list(values.values()))
        if seen:
            measuring.of_reconstructed(evaluation, list(seen), np.stack(list(seen.values())))
        for source, part in grids.items():
            a, b = zip(*(shown[i] for i in part), strict=True)
            if kind == "image":
                grid = report.pairs([x[0] for x in a], [x[0] for x in b], 8)
            else:
                grid = report.pairs([report.filmstrip(clip) for clip in a], [report.filmstrip(clip) for clip in b], 1)
            evaluation.pictures[f"reconstructed_{kind}s{source}"] = grid


def _lpips(evaluation: Evaluation, originals: np.ndarray, recons: np.ndarray) -> dict[str, np.ndarray]:
    if not (evaluation.networks and (net := evaluation.networks.lpips)):
        return {}
    return {"lpips": lpips(net, originals, recons)}


@torch.no_grad()
def _reconstructed(evaluation: Evaluation, batch: np.ndarray) -> np.ndarray:
    """Clips, uint8 (B, T, H, W, 3), as they come back."""
    pixels = half_range(torch.from_numpy(batch).permute(0, 4, 1, 2, 3).float())
    return to_uint8(evaluation.loom.visual_tokenizer(pixels.to(evaluation.loom.device))[0])


def codebook(evaluation: Evaluation) -> None:
    """Share of the codebook that the corpus uses, and the perplexity of its codes, over all splits."""
    size = evaluation.loom.visual_tokenizer.codebook_size
    if size is None:
        return
    counts = np.zeros(size, dtype=np.int64)
    for split in ("train", "validation", "test"):
        for document in TokenSet(evaluation.inputs["tokens"], split):
            for token in document:
                if token.codes is not None:
                    counts += np.bincount(token.codes, minlength=size)
    if not counts.any():
        return
    shares = counts[counts > 0] / counts.sum()
    evaluation.metrics["codebook_usage"] = float((counts > 0).mean())
    evaluation.metrics["codebook_perplexity"] = float(np.exp(-(shares * np.log(shares)).sum()))
