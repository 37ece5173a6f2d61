"""A record as steps see it: its row, and what is decoded of it, once, when a step first asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media.identity import ClipIdentity, picture_look, text_identity
from omniloom.stages.data.media.video_stream import opened

FRAMES_A_SECOND, MOST_FRAMES, LONGEST_SIDE = 2.0, 64, 256


@dataclass(frozen=True)
class Clip:
    """Frames of a video: two a second, thinned out evenly where it is longer than half a minute, uint8 (T, h, w, 3) of
    at most LONGEST_SIDE pixels; and its look, as `stages.data.media.identity` has it."""

    frames: np.ndarray
    look: bytes


class Item:
    """`row` is the record, a dictionary of `records.SCHEMA`."""

    def __init__(self, row: dict):
        self.row = row

    @property
    def kind(self) -> str:
        return self.row["kind"]

    @property
    def captions(self) -> list[str]:
        return list(self.row["captions"] or ())

    @property
    def meta(self) -> dict:
        return json.loads(self.row["meta"])

    @cached_property
    def text(self) -> str:
        """The text of a text, or of all stretches of a document, as paragraphs; empty of pictures."""
        if self.kind == "document":
            return "\n\n".join(s["text"] for s in self.row["segments"] if s["type"] == "text" and s["text"])
        return self.row["text"] or ""

    @cached_property
    def pixels(self) -> np.ndarray:
        """An image, uint8 (H, W, 3)."""
        return media.decode_image(self.row["media"], media.NO_LIMITS)

    @cached_property
    def clip(self) -> Clip:
        return _clip(self.row["media"])

    @property
    def look(self) -> bytes:
        """Of an image, or of a video."""
        return picture_look(self.pixels) if self.kind == "image" else self.clip.look

    def changed(self, **fields: Any) -> dict:
        """The row with other `captions`, `label`, `text`, `license` or `meta` (a dictionary, added to what there is),
        and with what follows from them."""
        row = {**self.row, **fields}
        if "captions" in fields:
            row["captions"] = list(dict.fromkeys(fields["captions"]))
            row["caption"] = next(iter(row["captions"]), None)
        if "text" in fields:
            row["id"] = text_identity(fields["text"])
        if "meta" in fields:
            row["meta"] = json.dumps({**self.meta, **fields["meta"]}, ensure_ascii=False)
        return row


def _clip(data: bytes) -> Clip:
    identity, kept, every, due, count = ClipIdentity(), [], 1, None, 0
    with opened(data, media.NO_LIMITS) as video:
        for frame in video.frames():
            identity.add(frame)
            moment = video.end if frame.time is None else float(frame.time)
            if due is not None and moment < due:
                continue
            due = moment + 1 / FRAMES_A_SECOND - 1e-6
            if count % every == 0:
                kept.append(small_frame(frame, LONGEST_SIDE))
                if len(kept) == MOST_FRAMES:
                    kept, every = kept[::2], 2 * every
            count += 1
    first = kept[0].shape
    return Clip(np.stack([frame for frame in kept if frame.shape == first]), identity.look())


def small_frame(frame: Any, longest: int) -> np.ndarray:
    """uint8 (h, w, 3) as stored, neither turned nor with square pixels, scaled down to `longest` pixels at most."""
    scale = min(1.0, longest / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    return frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()
