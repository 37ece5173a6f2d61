"""Measures how many bits held-out pictures take behind their captions, by objectives that write them one position after
the other. In: an `Evaluation`, which gets the figures; what each means stands in `stages.evaluate.measures`.

A density has no bits by itself: how many a number takes depends on how exactly it is told. `image_bits_per_dimension`
is the differential one, -log2 of the density of latents of unit variance under the noise that the head models, over
their numbers; it may be below 0 and compares models of the same latents and noise. `image_bits_per_pixel` takes
the noise's own entropy away: what is left is what the noisy latents tell, about the length of a code for a draw of them
(relative entropy coding, arXiv 2010.01185); the codes of `next_code` are told exactly. It is of the latents, of which
the tokenizer makes something like the picture; PNG and WebP beside it make the picture itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from omniloom.models.unified.layouts import text_to_visual
from omniloom.models.unified.objectives.likelihoods import picture_nats
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.media.images import encode_png
from omniloom.stages.data.order import hash_seed
from omniloom.stages.evaluate.evaluation import Evaluation

_BITS = 1 / math.log(2)
_STREAM = 12  # of the seeds of noise


def measure_bits(evaluation: Evaluation) -> None:
    written = [name for name in evaluation.objectives if OBJECTIVES[name].causal]
    chosen = _pictures(evaluation) if written else {}
    if not chosen:
        return
    config = evaluation.loom.config
    objective = UnifiedObjective(
        evaluation.loom.model, config.diffusion, pixel_diffusion=config.pixel_diffusion, objectives=config.objectives
    ).eval()
    places = list(chosen)
    ids, pixels = evaluation.ids(places), np.array([math.prod(evaluation.images.shape(i)) for i in places], np.float64)
    _lossless(evaluation, places, pixels)
    for name in (name for name in written if hasattr(objective.losses[name], "nats")):  # others' need not
        _of_objective(evaluation, objective, name, ids, [chosen[i] for i in places], pixels)


def _pictures(evaluation: Evaluation) -> dict[int, int]:
    """Held-out pictures with a caption, as frequent as they are, as many as are drawn: by their index the number of
    their document among the tokens, where those hold it."""
    numbers = {name: i for i, name in enumerate(evaluation.tokens.table["id"].to_pylist())}
    asked = evaluation.plain[: evaluation.config.drawings]
    return {i: numbers[name] for i, name in zip(asked, evaluation.ids(asked), strict=True) if name in numbers}


def _of_objective(
    evaluation: Evaluation,
    objective: UnifiedObjective,
    name: str,
    ids: Sequence[str],
    documents: Sequence[int],
    pixels: np.ndarray,
) -> None:
    config, specials = evaluation.loom.config.unified, evaluation.loom.config.unified.specials
    values = Documents(evaluation.tokens, config)
    values.mean, values.std = (
        np.array(a, np.float32) for a in (evaluation.loom.config.latent_mean, evaluation.loom.config.latent_std)
    )
    seeds = [hash_seed(evaluation.config.seed, _STREAM, number) for number in range(len(documents))]
    built, numbers = [], []
    for seed, number in zip(seeds, documents, strict=True):
        segments = evaluation.tokens.document(number)
        captions = [segment.ids for segment in segments if segment.kind == "text"]
        picture = next(segment for segment in segments if segment.kind == "visual")
        shown, grid = values.picture(picture, name, (seed,))
        numbers.append(shown.size)
        built.append(text_to_visual(captions[0] if captions else [], shown, grid, specials, objective=name))
    bits = picture_nats(objective, name, built, seeds).numpy() * _BITS
    suffix, sizes = evaluation.suffix(name), np.array(numbers, np.float64)
    if OBJECTIVES[name].by_density:
        evaluation.add(f"image_bits_per_dimension{suffix}", ids, bits / sizes, sizes)
        noise = config.density.noise if config.density else 0.0
        if not noise:  # numbers that are told exactly take bits without end
            return
        bits = bits - sizes * _BITS * (0.5 * math.log(2 * math.pi * math.e) + math.log(noise))
    evaluation.add(f"image_bits_per_pixel{suffix}", ids, bits / pixels, pixels)


def _lossless(evaluation: Evaluation, places: Sequence[int], pixels: np.ndarray) -> None:
    """The same pictures, at the size that they are encoded at, written without loss."""
    sizes = []
    for i in places:
        sink, picture = io.BytesIO(), evaluation.images[i][0]
        Image.fromarray(picture).save(sink, "WEBP", lossless=True)
        sizes.append((len(encode_png(picture)), len(sink.getvalue())))
    for name, total in zip(("png", "webp"), np.array(sizes).sum(0).tolist(), strict=True):
        evaluation.metrics[f"image_bits_per_pixel_{name}"] = 8 * total / float(pixels.sum())
