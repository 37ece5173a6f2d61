"""What `evaluate` measures of the visual tokenizer. In: an `Evaluation`, which gets the figures and pictures."""
from __future__ import annotations

import numpy as np
import torch

from models.bundle import to_uint8
from stages import metrics, report
from stages.aspects import Aspects
from stages.evaluation import Evaluation
from stages.tokens import TokenSet


def reconstruct(evaluation: Evaluation) -> None:
    """PSNR and SSIM of the tokenizer on held-out images and videos, each in the shape that it is tokenized in."""
    # Tokens from before there were ratios are of squares.
    tokenizer, facts = evaluation.loom.tokenizer, evaluation.facts
    aspects = Aspects(tuple(facts.get("aspects", Aspects.names)), tokenizer.config.patch_size)
    for kind, num_shown in (("image", 16), ("video", 3)):
        clips = evaluation.clips(kind, evaluation.config.split, aspects)
        parts: list[tuple[int, dict[str, float]]] = []
        shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for members in clips.buckets(evaluation.config.reconstructions):
            for chosen in np.split(members, range(32, len(members), 32)):
                if not len(chosen):
                    continue
                batch = np.stack([clips[int(i)] for i in chosen])
                pixels = torch.from_numpy(batch).permute(0, 4, 1, 2, 3).float() / 255 - 0.5
                with torch.no_grad():
                    recon, _ = tokenizer(pixels.to(evaluation.loom.device))
                recons = to_uint8(recon)
                frames = [x.reshape(-1, *x.shape[2:]) for x in (batch, recons)]
                parts.append((len(frames[0]), metrics.reconstruction(*frames)))
                shown |= {int(i): pair for i, pair in zip(chosen, zip(batch, recons, strict=True), strict=True)
                          if i < num_shown}
        if not parts:
            continue
        total = sum(count for count, _ in parts)
        evaluation.metrics |= {f"recon_{name}_{kind}": sum(count * figures[name] for count, figures in parts) / total
                               for name in parts[0][1]}
        a, b = zip(*(shown[i] for i in sorted(shown)), strict=True)
        if kind == "image":
            evaluation.pictures["reconstructed_images"] = report.pairs([x[0] for x in a], [x[0] for x in b], 8)
        else:
            evaluation.pictures["reconstructed_videos"] = report.pairs(
                [report.filmstrip(clip) for clip in a], [report.filmstrip(clip) for clip in b], 1)


def codebook(evaluation: Evaluation) -> None:
    """Share of the codebook that the corpus uses, and its perplexity as a share, over all splits."""
    size = evaluation.loom.tokenizer.codebook_size
    if size is None:
        return
    counts = np.zeros(size, dtype=np.int64)
    for split in ("train", "validation", "test"):
        for document in TokenSet(evaluation.inputs["pretokenize"], split):
            for token in document:
                if token.codes is not None:
                    counts += np.bincount(token.codes, minlength=size)
    shares = counts[counts > 0] / max(1, counts.sum())
    evaluation.metrics["codebook_usage"] = float((counts > 0).mean())
    evaluation.metrics["codebook_perplexity"] = float(np.exp(-(shares * np.log(shares)).sum()))
