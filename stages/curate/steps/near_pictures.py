"""Step `near_pictures`: of pictures and clips that show the same the best stays.

Copies that were re-encoded, scaled, or cut by up to 5% at their edges are found by a perceptual hash, and each pair is
laid upon one another at 32 x 32 pixels: see `stages.ingest.splitting.twins` and `stages.ingest.splitting.registration`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Comparison, StepConfig


class NearPicturesConfig(StepConfig):
    """Of pictures, or clips, that are copies of one another (re-encoded, scaled, cut a little) one stays."""

    kind: Literal["near_pictures"]
    """Of pictures, or clips, that are copies of one another (re-encoded, scaled, cut a little) one stays."""
    of: list[Literal["image", "video"]] = Field(default=["image", "video"], min_length=1)
    """The kinds of records that are compared, each with its own."""


class NearPictures(Comparison):
    Config = NearPicturesConfig
    kinds = ("image", "video")
    tables = ("image", "video")

    def sign(self, item):
        return [(item.kind, item.look)] if item.kind in self.config.of else []

    def decide(self, table, signed):
        yield *copies(signed), "shows the same as"


def copies(signed):
    """(rows that go, rows that they are like). A row is paired with few of its copies at once, so those that stay and
    had some are compared again until none has."""
    import numpy as np

    from omniloom.stages.curate.signatures import first_of_each
    from omniloom.stages.ingest.splitting import twins

    preference, gone = signed.preference(), np.zeros(len(signed), bool)
    leave, like = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    left, looks = np.arange(len(signed)), signed.bytes
    while len(left) and len(pairs := left[twins.near_pictures(looks)]):
        some, others = first_of_each(pairs, preference, gone)
        leave.append(some)
        like.append(others)
        left = np.unique(pairs)
        left = left[~gone[left]]
        looks = signed.bytes[left]
    return np.concatenate(leave), np.concatenate(like)
