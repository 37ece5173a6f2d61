"""Measures how many bits held-out pictures take behind their captions, by objectives that write them one position after
the other. In: an `Evaluation`, which gets the figures; what each means stands in `stages.evaluate.measures`.

A density has no bits by itself: how many a number takes depends on how exactly it is told. `image_bits_per_dimension`
is the differential one, -log2 of the density of latents of unit variance under the noise that the head models, over
their numbers; it may be below 0 and compares models of the same latents and noise. `image_bits_per_pixel` takes the
noise's own entropy away: what is left is what the noisy latents tell, about the length of a code for a draw of them
(relative entropy coding, arXiv 2010.01185); the codes of `next_code` are told exactly. It is of the latents, of which
the tokenizer makes something like the picture; PNG and WebP beside it make the picture itself.

Latents are as pictures before texts are shown: of a KL tokenizer the means of its posterior.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from omniloom.models.model import to_pixels
from omniloom.models.unified.batch import Document
from omniloom.models.unified.layouts import text_to_visual
from omniloom.models.unified.objectives.likelihoods import picture_nats
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.media.images import encode_png
from omniloom.stages.data.order import hash_seed
from omniloom.stages.evaluate.evaluation import Evaluation

_BITS = 1 / math.log(2)
_STREAM = 12  # of the seeds of noise
_TOGETHER = 64  # pictures that are encoded


def measure_bits(evaluation: Evaluation) -> None:
    config = evaluation.loom.config
    written = [name for name in config.objectives if OBJECTIVES[name].causal]
    chosen = evaluation.plain[: evaluation.config.drawings] if written else []
    if not chosen:
        return
    objective = UnifiedObjective(
        evaluation.loom.model, config.diffusion, pixel_diffusion=config.pixel_diffusion, objectives=config.objectives
    ).eval()
    pixels = np.array([math.prod(evaluation.images.shape(i)) for i in chosen], np.float64)
    _lossless(evaluation, chosen, pixels)
    for name in (name for name in written if hasattr(objective.losses[name], "nats")):  # others' need not
        documents, sizes = _documents(evaluation, chosen, name)
        seeds = [hash_seed(evaluation.config.seed, _STREAM, number) for number in range(len(chosen))]
        _add(evaluation, name, chosen, picture_nats(objective, name, documents, seeds), sizes, pixels)


def _documents(evaluation: Evaluation, chosen: Sequence[int], name: str) -> tuple[list[Document], np.ndarray]:
    """Each picture behind its caption, and of how many numbers it is made."""
    loom, found = evaluation.loom, dict[int, Document]()
    sizes = np.empty(len(chosen))
    for shape, places in evaluation.by_shape(evaluation.images, chosen).items():
        for at in range(0, len(places), _TOGETHER):
            part = places[at : at + _TOGETHER]
            values = loom.encode(to_pixels([evaluation.images[chosen[place]][0] for place in part], shape), name)
            grid = (values.shape[1], values.shape[2], values.shape[3])
            for place, picture in zip(part, values, strict=True):
                caption, sizes[place] = loom.text.encode(evaluation.caption(chosen[place])), picture.size
                flat = picture.reshape(math.prod(grid), *picture.shape[3:])
                found[place] = text_to_visual(caption, flat, grid, loom.config.unified.specials, objective=name)
    return [found[place] for place in range(len(chosen))], sizes


def _add(
    evaluation: Evaluation, name: str, chosen: Sequence[int], nats: Tensor, sizes: np.ndarray, pixels: np.ndarray
) -> None:
    bits, ids, suffix = nats.numpy() * _BITS, evaluation.ids(chosen), evaluation.suffix(name)
    density = evaluation.loom.config.unified.density
    if OBJECTIVES[name].by_density and density:
        evaluation.add(f"image_bits_per_dimension{suffix}", ids, bits / sizes, sizes)
        if not density.noise:  # numbers that are told exactly take bits without end
            return
        bits = bits - sizes * _BITS * (0.5 * math.log(2 * math.pi * math.e) + math.log(density.noise))
    evaluation.add(f"image_bits_per_pixel{suffix}", ids, bits / pixels, pixels)


def _lossless(evaluation: Evaluation, chosen: Sequence[int], pixels: np.ndarray) -> None:
    """The same pictures, at the size that they are encoded at, written without loss."""
    sizes = []
    for i in chosen:
        sink, picture = io.BytesIO(), evaluation.images[i][0]
        Image.fromarray(picture).save(sink, "WEBP", lossless=True)
        sizes.append((len(encode_png(picture)), len(sink.getvalue())))
    for name, total in zip(("png", "webp"), np.array(sizes).sum(0).tolist(), strict=True):
        evaluation.metrics[f"image_bits_per_pixel_{name}"] = 8 * total / float(pixels.sum())
