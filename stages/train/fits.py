"""Fit of a corpus into packed rows: nothing that a config asks for is left out of training in silence.

In: the stages' configs; the counts of ingest; the tokens' index. Out: InputError naming the field and what would do,
where a kind that has a share of training has nothing to give; else counts of what is left out, by kind and reason.
Asked at the earliest moment that each can answer: before anything runs, once ingest is done, and before the first step
of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from omniloom.infra.errors import InputError
from omniloom.models.unified.representations import OBJECTIVES, Objective
from omniloom.stages.data import survey
from omniloom.stages.data.index import Index
from omniloom.stages.data.packing import Kind, PackingConfig
from omniloom.stages.data.planner import Planner
from omniloom.stages.data.shares import Shares, most, stages

_FRAME = 4  # tokens around a picture in a row: the two that frame it, <bos> and <eos>
_PICTURE = {"image": "image", "video": "video", "document": "picture of a document"}
_PLURAL = {"image": "images", "video": "videos", "text": "texts", "document": "documents"}


def check_kinds(packing: PackingConfig, records: Any) -> None:
    """From the configs alone: that some source gives each kind that has a share."""
    kinds = getattr(records, "kinds", None)
    for kind, share in most(packing.mixture).items():
        if share and kinds is not None and kind not in kinds:
            raise InputError(
                f"{kind} has a share of {share:g}, and no source gives {_PLURAL[kind]}", field=f"packing.mixture.{kind}"
            )


def check_sources(packing: PackingConfig, records: Any) -> None:
    """From the configs alone: that the sources that something is said of are there."""
    if packing.sources and hasattr(records, "source_name"):
        _named(packing, [records.source_name(number) for number in range(len(records.sources))])


def _named(packing: PackingConfig, known: Sequence[str]) -> None:
    for name in packing.sources or ():
        if name not in known:
            raise InputError(
                f"there is no source of that name, expected some of {', '.join(sorted(known))}",
                field=f"packing.sources.{name}",
            )


def check_pictures(packing: PackingConfig, trained: Sequence[str], upstream: Mapping[str, Any]) -> None:
    """From the configs alone: that an image and a video, whose sizes they set, fit into a row."""
    tokenizer, tokens = upstream.get("tokenizer"), upstream.get("tokens")
    if not (trained and tokenizer and tokenizer.model and tokens):
        return
    for kind in sorted(getattr(upstream.get("records"), "kinds", set()) & {"image", "video", "document"}):
        count = picture_tokens(tokenizer.model, tokens, kind, trained)
        if count and _share(packing, kind) != 0 and count + _FRAME > packing.length:
            least = count + _FRAME
            raise InputError(
                f"{packing.length} tokens hold no {_PICTURE[kind]}: one is {count} tokens and {_FRAME} around "
                f"them; {least} takes those without a caption, {_rounded(least)} most with one "
                f"(packing.mixture: {{{kind}: 0}} leaves them out)",
                field="packing.length",
            )


def check_corpus(packing: PackingConfig, trained: Sequence[str], counts: Mapping[str, Any]) -> None:
    """From ingest's metrics: that it holds the kinds that have a share, and captions where pictures are only
    described."""
    for kind, share in most(packing.mixture).items():
        if share and counts.get(f"records_{kind}") == 0:
            found = ", ".join(f"{_PLURAL[k]} {counts.get(f'records_{k}', 0):,}" for k in get_args(Kind))
            raise InputError(
                f"{kind} has a share of {share:g}, and the corpus holds none ({found})",
                field=f"packing.mixture.{kind}",
            )
    pictures = counts.get("records_image", 0) + counts.get("records_video", 0)
    if (
        trained
        and not packing.caption_first
        and pictures
        and counts.get("uncaptioned") == pictures
        and any(counts.get(f"records_{kind}") and _share(packing, kind) != 0 for kind in ("image", "video"))
    ):
        raise InputError(
            f"is 0, so that pictures are only described, and none of the {pictures:,} has a caption",
            field="packing.caption_first",
        )


def check_tokens(
    index: Index, packing: PackingConfig, objectives: Shares[Objective], seed: int, rows: int = 0
) -> dict[str, int]:
    """{"left_out_KIND_REASON": documents} of the train split; InputError where a kind that has a share has nothing that
    fits, or sources are used up before so many rows. Reasons are those of `stages.data.survey`."""
    if not len(index):
        raise InputError("the train split of the tokens holds no documents")
    trained = get_args(Kind) if any(most(objectives).values()) else ("text",)
    for kind in trained:
        if (share := _share(packing, kind)) and not index.count(kind):
            raise InputError(
                f"{kind} has a share of {share:g}, and the train split holds none",
                field=f"packing.mixture.{kind}",
            )
    if index.sources:
        _named(packing, index.sources)
    planner = Planner(index, packing, seed, objectives, empty=True)
    found = survey.left_out(planner)
    for kind in trained:
        if _share(packing, kind) != 0 and index.count(kind) and kind not in planner.kinds:
            raise _nothing_fits(planner, found, kind)
    if not planner.shares:
        present = ", ".join(f"{_PLURAL[kind]} {index.count(kind):,}" for kind in get_args(Kind))
        raise InputError(
            f"leaves nothing to train on: what has a share is not in the train split ({present})",
            field="packing.mixture",
        )
    if planner.tokens < rows * packing.length:
        raise InputError(
            f"all may be seen for so many epochs that there are {planner.tokens:,.0f} tokens, and {rows:,} rows of "
            f"{packing.length:,} take {rows * packing.length:,}; raise some `epochs`, or lower steps",
            field="packing.sources",
        )
    return {f"left_out_{name}": count for name, count in sorted(found.items())}


def check_held_out(index: Index, packing: PackingConfig, objectives: Shares[Objective], seed: int) -> dict[str, int]:
    """{"validation_left_out_KIND_REASON": documents} of a split that losses are measured on, which may hold nothing."""
    found = survey.left_out(Planner(index, packing, seed, objectives, empty=True))
    return {f"validation_left_out_{name}": count for name, count in sorted(found.items())}


def told(left_out: dict[str, int]) -> str:
    """One line of what `check_tokens` found; empty where nothing is left out."""
    words = [f"{count:,} {name.removeprefix('left_out_').replace('_', ' ')}" for name, count in left_out.items()]
    return f"left out of training: {', '.join(words)}" if words else ""


def picture_tokens(model: Any, tokens: Any, kind: str, trained: Sequence[str]) -> int | None:
    """Tokens of the least image or video that a tokenizer of the shape `model` and the config of the `tokens` make, in
    the representation that it is longest in; None where the two do not fit each other."""
    from omniloom.stages.data.aspects import Aspects

    size = tokens.video_size if kind == "video" else tokens.image_size
    aspects, frames = Aspects(tokens.aspects, model.patch_size), tokens.frames if kind == "video" else 1
    try:
        area = min(math.prod(aspects.shape(bucket, size)) for bucket in range(len(tokens.aspects)))
    except ValueError:  # pretokenize says so
        return None
    latent_frames = 1 + (frames - 1) // getattr(model, "temporal_patch", 1)
    found = {"latents": getattr(model, "num_latents", None) or latent_frames * area // model.patch_size**2}
    found["codes"] = found["latents"]
    if tokens.pixel_patch:
        found["pixels"] = frames * area // tokens.pixel_patch**2
    return max(found.get(OBJECTIVES[name].representation.name, 0) for name in trained)


def _share(packing: PackingConfig, kind: Kind) -> float | None:
    """A kind's share of training; None for its natural one, which is 0 where the others take all."""
    shares = most(packing.mixture)
    if kind in shares:
        return shares[kind]
    return 0.0 if all(sum(held.values()) >= 1 for held in stages(packing.mixture)) else None


def _rounded(tokens: int) -> int:
    """The next multiple of 64 that leaves room for a caption of 32 tokens."""
    return -(-(tokens + 32) // 64) * 64


def _nothing_fits(planner: Planner, left_out: Mapping[str, int], kind: str) -> InputError:
    total = planner.index.count(kind)
    if left_out.get(f"{kind}_no_caption") == total:
        return InputError(
            f"is 0, so that pictures are only described, and none of the {total:,} {_PLURAL[kind]} has a caption",
            field="packing.caption_first",
        )
    least, most = survey.needed(planner, kind)
    return InputError(
        f"of {total:,} {_PLURAL[kind]} none fits into {planner.config.length} tokens; {least} takes the "
        f"shortest, {most} all of them (packing.mixture: {{{kind}: 0}} leaves them out)",
        field="packing.length",
    )
