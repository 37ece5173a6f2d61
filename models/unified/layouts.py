"""The documents that training packs and sampling opens. In: text ids, and pictures as the
latents, pixels or codes that their objective is about. Out: lists of `Segment`.

text to image   <bos> caption <boi> IMG <eoi> <eos>      a video has <bov>; without a condition, no caption
image to text   <bos> <boi> IMG <eoi> caption <eos>      the picture is clean context
text            <bos> text <eos>
interleaved     <bos> text <boi> IMG <eoi> text ...   cut behind the picture that is drawn, where one is

<boi>, <bov> and <eoi> are added by `collate`. A prefix for sampling is the same document cut before what is
to be made, so what training shows as context is what sampling shows as context; `without` leaves sources of a
condition out for both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from omniloom.models.unified.batch import Document, Segment, visual_segment
from omniloom.models.unified.config import SpecialIds
from omniloom.models.unified.positions import Grid

_SOURCE = {"text": "text", "visual": "image"}


def _text(ids: Sequence[int] | np.ndarray, loss: bool = True) -> Segment:
    return Segment("text", ids=np.asarray(ids, dtype=np.int64), loss=loss)


def plain_text(ids: Sequence[int], specials: SpecialIds) -> list[Segment]:
    return [_text([specials.bos, *ids, specials.eos])]


def text_to_visual(
    caption: Sequence[int] | np.ndarray,
    values: np.ndarray,
    grid: Grid,
    specials: SpecialIds,
    caption_loss: bool = True,
    objective: str = "latent_diffusion",
) -> list[Segment]:
    """An empty caption gives the document without a condition, which guidance needs. Without `caption_loss` the
    picture alone is a target."""
    picture = visual_segment(objective, values, grid)
    return [_text([specials.bos, *caption], caption_loss), picture, _text([specials.eos], caption_loss)]


def visual_to_text(
    values: np.ndarray,
    grid: Grid,
    caption: Sequence[int] | np.ndarray,
    specials: SpecialIds,
    objective: str = "latent_diffusion",
    max_time: float = 0.0,
) -> list[Segment]:
    """max_time above 0 shows the picture with noise, as in `Segment`."""
    picture = visual_segment(objective, values, grid, loss=False, max_time=max_time)
    return [_text([specials.bos]), picture, _text([*caption, specials.eos])]


def without(document: Document, sources: Collection[str], specials: SpecialIds) -> list[Segment]:
    """What stands before a picture that is drawn, its condition's `sources` left out: "text" for what words say,
    "image" for earlier pictures. Where nothing is left it is <bos>."""
    kept = [segment for segment in document if _SOURCE[segment.kind] not in sources]
    return [_text([specials.bos]), *kept] if "text" in sources else kept


def prefix(prompt: Sequence[int], specials: SpecialIds, pictures: Sequence[Segment] = ()) -> list[Segment]:
    """The segments that generation continues, in text or with a picture: a prompt behind pictures."""
    if not pictures:
        return [_text([specials.bos, *prompt], loss=False)]
    return [_text([specials.bos], loss=False), *pictures, _text(prompt, loss=False)]


def prefix_for_text(
    prompt: Sequence[int],
    specials: SpecialIds,
    values: np.ndarray | None = None,
    grid: Grid | None = None,
    objective: str = "latent_diffusion",
) -> list[Segment]:
    """The segments that `generate_text` continues: a prompt, behind a picture where there is one."""
    if values is None:
        return prefix(prompt, specials)
    if grid is None:
        raise ValueError("grid: expected (t, h, w) of the values, got None")
    return prefix(prompt, specials, [visual_segment(objective, values, grid, loss=False)])


def prefix_for_visual(caption: Sequence[int], specials: SpecialIds) -> list[Segment]:
    """The segments before the picture of `generate_visual`; an empty caption is the unconditional prefix."""
    return prefix(caption, specials)
