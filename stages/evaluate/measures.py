"""The figures of `evaluate`: what each means, which way is better, and what a guess or real pictures would get.

One table: the gate is checked against it when the config is read, and the report prints it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omniloom.models.unified.representations import OBJECTIVES, VisualObjective
from omniloom.stages.evaluate.features.figures import RANKED, by_scorer, in_features
from omniloom.stages.evaluate.figure import HIGH, LEAST_PICTURES, LOW, Figure, given


def _is_written(row: VisualObjective) -> bool:
    return row.causal


def _one_class(metrics: Mapping[str, Any]) -> float | None:
    return 1 / metrics["classes"] if metrics.get("classes") else None


_DRAWN, _DESCRIBED = {"drawings": 1}, {"captions": 1}
_FILMED = {"videos": 1}


def _table(pixels: int) -> dict[str, Figure]:
    frechet = f"frechet_pixels{pixels}"
    distances = {"drawings": LEAST_PICTURES}
    return {
        "image_class_agreement": Figure(
            "share of the drawn pictures that a classifier of real ones calls what was asked for; each label weighs as "
            "much",
            "higher",
            _one_class,
            asks=_DRAWN,
            by_objective=True,
        ),
        "image_coverage": Figure(
            "share of the real pictures that have a drawn one nearer than their fifth real neighbour",
            "higher",
            asks=_DRAWN,
            by_objective=True,
        ),
        frechet: Figure(
            f"Fréchet distance between drawn and held-out pictures, as pixels of {pixels}x{pixels}",
            "lower",
            given(f"{frechet}_train"),
            "of train pictures",
            distances,
            True,
        ),
        f"{frechet}_train": Figure("the same distance of as many train pictures: the floor", asks=distances),
        "image_bits_per_dimension": Figure(
            "-log2 of the density of held-out pictures' latents behind their captions, over their numbers; of latents "
            "of unit variance under the noise of `density.noise`; an upper bound of the diffusion head",
            "lower",
            asks=_DRAWN,
            by_objective=True,
            objectives=lambda row: row.by_density,
        ),
        "image_bits_per_pixel": Figure(
            "bits that held-out pictures' codes, or latents to within their noise, take behind their captions, over "
            "the pictures' pixels; what the tokenizer loses is not counted",
            "lower",
            given("image_bits_per_pixel_webp"),
            "of WebP without loss",
            asks=_DRAWN,
            by_objective=True,
            objectives=_is_written,
        ),
        **{
            f"image_bits_per_pixel_{name.lower()}": Figure(
                f"the same pictures as {name} without loss", asks=_DRAWN, objectives=_is_written
            )
            for name in ("PNG", "WebP")
        },
        "frechet_pictures": Figure("pictures on either side of the Fréchet distance", asks=distances),
        "classes": Figure("labels that the classifier tells apart", asks=_DRAWN),
        "classifier_accuracy": Figure(
            "share of the real held-out pictures that the classifier names rightly; each label weighs as much",
            "higher",
            _one_class,
            asks=_DRAWN,
            of_model=False,
        ),
        "caption_accuracy": Figure(
            "share of the captions that name the picture's label and no other; each label weighs as much",
            "higher",
            _one_class,
            asks=_DESCRIBED,
            by_objective=True,
        ),
        "caption_exact": Figure(
            "share of the captions that are one of the picture's own, letter by letter",
            "higher",
            asks=_DESCRIBED,
            by_objective=True,
        ),
        "caption_cider": Figure(
            "CIDEr-D of the captions against the picture's own, from 0 to 10",
            "higher",
            asks=_DESCRIBED,
            by_objective=True,
        ),
        "image_following": Figure(
            "share of pairs of captions, drawn from one noise, whose drawings lie nearer to their own pictures than "
            "crosswise",
            "higher",
            lambda metrics: 0.5,
            asks={"drawings": 1, "counterfactuals": 1},
            by_objective=True,
        ),
        "image_memorised": Figure(
            "share of the drawn pictures that lie as near to one train picture, against the next five, as a twentieth "
            "of the held-out ones do",
            "lower",
            lambda metrics: 0.05,
            "of held-out pictures",
            _DRAWN,
            True,
        ),
        "leaked_images": Figure(
            "share of the held-out pictures that the train split has too, by id or by look",
            "lower",
            of_model=False,
        ),
        "leaked_texts": Figure(
            "share of the held-out texts of whose words, eight in a row, train texts have more than half, or the whole",
            "lower",
            asks={"texts": 1},
            of_text=True,
            of_model=False,
        ),
        "video_class_agreement": Figure(
            "share of the frames of drawn videos that a classifier of train frames calls what was asked for; each "
            "label weighs as much",
            "higher",
            asks=_FILMED,
            by_objective=True,
        ),
        "video_motion": Figure(
            "how much drawn videos move, against the held-out ones of their captions: the less over the more",
            "higher",
            asks=_FILMED,
            by_objective=True,
        ),
        "video_consistency": Figure(
            "correlation of one frame and the next in drawn videos",
            "higher",
            given("video_consistency_real"),
            "of held-out videos",
            _FILMED,
            True,
        ),
        "video_consistency_real": Figure("the same of held-out videos", asks=_FILMED),
        "export_gap": Figure(
            "relative difference of the exported model's validation losses from those that training wrote down last",
            "lower",
            of_text=True,
            by_item=False,
        ),
        "text_repeated": Figure(
            "share of three tokens in a row that stood before in the same text, of what the model writes",
            "lower",
            given("text_repeated_real"),
            "of held-out texts",
            {"texts": 1},
            of_text=True,
        ),
        "text_repeated_real": Figure("the same of held-out texts", asks={"texts": 1}, of_text=True),
        "retrieval_captions": Figure("captions that each picture is held against", asks=RANKED),
        **{
            f"retrieval_recall_at_{k}": Figure(
                "share of the pictures whose own caption comes first"
                if k == 1
                else f"share of the pictures whose own caption is among the first {k}",
                "higher",
                given(f"retrieval_recall_at_{k}_chance"),
                asks=RANKED,
                by_objective=True,
            )
            for k in (1, 10)
        },
        "retrieval_mean_rank": Figure(
            "mean place of a picture's own caption, from 1",
            "lower",
            given("retrieval_mean_rank_chance"),
            asks=RANKED,
            by_objective=True,
        ),
        **{
            f"retrieval_{name}_chance": Figure("of a random order", asks=RANKED)
            for name in ("recall_at_1", "recall_at_10", "mean_rank")
        },
        "bits_per_byte": Figure(
            "the model's code length of held-out texts over their UTF-8 bytes, read in windows as long as in training",
            "lower",
            lambda metrics: 8.0,
            "uncompressed",
            {"texts": 1},
            of_text=True,
        ),
        **{
            f"recon_{name}_{kind}": Figure(
                f"{name.upper()} of reconstructed {kind}s{' in dB' if name == 'psnr' else ''}",
                "higher",
                asks={"reconstructions": 1},
            )
            for kind in ("image", "video")
            for name in ("psnr", "ssim")
        },
        **in_features(),
        **by_scorer(),
        "codebook_usage": Figure("share of the codes that the corpus uses", "higher", by_item=False),
        "codebook_perplexity": Figure(
            "perplexity of the codes, as a count of equally likely ones", "higher", by_item=False
        ),
    }


def measured(config: Any, objectives: Sequence[str], scorer: bool = False) -> dict[str, Figure]:
    """The figures by name that a `MeasureConfig` asks for, of a model that was trained on pictures by
    these objectives, in a pipeline that has a `scorer` or none. Some need what only the data tell: labels, captions,
    videos, enough pictures."""
    found: dict[str, Figure] = {}
    networks = (*(config.features.networks if config.features else ()), *(("scorer",) if scorer else ()))
    for name, figure in _table(config.class_pixels).items():
        if not (objectives or figure.of_text):
            continue
        # What is asked for is not always a field of the config that measures: a study reconstructs nothing.
        if figure.network and figure.network not in networks:
            continue
        if any(getattr(config, asked, 0) < least for asked, least in figure.asks.items()):
            continue
        of = [objective for objective in objectives if figure.objectives(OBJECTIVES[objective])]
        if objectives and not of:
            continue
        several = figure.by_objective and len(objectives) > 1
        found |= {f"{name}_{objective}" if several else name: figure for objective in (of if several else [""])}
    return found


def of_interval(name: str) -> str | None:
    """The figure of whose interval this is an end, such as `bits_per_byte` of `bits_per_byte_high`; None of others."""
    for end in (LOW, HIGH):
        base = name.removesuffix(end)
        if base != name and (figure := named(base)) and figure.better and figure.by_item:
            return base
    return None


def named(name: str) -> Figure | None:
    """The figure of that name in any config; None where there is no such figure."""
    base = next((name.removesuffix(f"_{part}") for part in OBJECTIVES if name.endswith(f"_{part}")), name)
    pixels = re.match(r"frechet_pixels(\d+)", base)
    figure = _table(int(pixels[1]) if pixels else 8).get(base)
    if figure and base != name and not figure.is_of(OBJECTIVES[name.removeprefix(f"{base}_")]):
        return None
    return figure


def all_names() -> list[str]:
    """The names of all figures, of a model of one objective and of several."""
    return [
        name
        for base, figure in _table(8).items()
        for name in (base, *(f"{base}_{row.name}" for row in OBJECTIVES.values() if figure.is_of(row)))
    ]


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of the `known` ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"
