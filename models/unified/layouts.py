"""The documents that training packs and sampling opens. In: text ids and latents. Out: lists of `Segment`.

text to image   <bos> caption <boi> IMG <eoi> <eos>      a video has <bov>; without a condition, no caption
image to text   <bos> <boi> IMG <eoi> caption <eos>      the picture is clean context
text            <bos> text <eos>

<boi>, <bov> and <eoi> are added by `collate`. A prefix for sampling is the same document cut before what is
to be made, so what training shows as context is what sampling shows as context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.unified.batch import Segment
from models.unified.config import SpecialIds
from models.unified.positions import Grid


def _text(ids: Sequence[int] | np.ndarray, loss: bool = True) -> Segment:
    return Segment("text", ids=np.asarray(ids, dtype=np.int64), loss=loss)


def plain_text(ids: Sequence[int], specials: SpecialIds) -> list[Segment]:
    return [_text([specials.bos, *ids, specials.eos])]


def text_to_visual(
    caption: Sequence[int], latents: np.ndarray, grid: Grid, specials: SpecialIds, caption_loss: bool = True
) -> list[Segment]:
    """An empty caption gives the document without a condition, which guidance needs."""
    return [
        _text([specials.bos, *caption], caption_loss),
        Segment("visual", latents=latents, grid=grid),
        _text([specials.eos]),
    ]


def visual_to_text(
    latents: np.ndarray, grid: Grid, caption: Sequence[int], specials: SpecialIds
) -> list[Segment]:
    return [
        _text([specials.bos]),
        Segment("visual", latents=latents, grid=grid, loss=False),
        _text([*caption, specials.eos]),
    ]


def prefix_for_text(
    prompt: Sequence[int], specials: SpecialIds, latents: np.ndarray | None = None, grid: Grid | None = None
) -> list[Segment]:
    """What `generate_text` goes on from: a prompt, behind a picture where one is given."""
    if latents is None:
        return [_text([specials.bos, *prompt], loss=False)]
    picture = Segment("visual", latents=latents, grid=grid, loss=False)
    return [_text([specials.bos], loss=False), picture, _text(prompt, loss=False)]


def prefix_for_visual(caption: Sequence[int], specials: SpecialIds) -> list[Segment]:
    """What `generate_visual` draws after; an empty caption is the unconditional prefix."""
    return [_text([specials.bos, *caption], loss=False)]
