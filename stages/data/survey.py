"""What of a split never comes into a row, counted by kind and reason, and what row would take it. Lengths alone are
read, a piece of the index at a time.

    KIND_too_long            documents that are longer than a row, or begin with a picture that is
    KIND_captions_too_long   captions that a picture does not fit into a row with, where others of it do
    KIND_no_caption          pictures without a caption where caption_first is 0
    KIND_no_share            documents of a kind, or of a kind and source, that has no share
    KIND_no_objective        documents with pictures where nothing is trained on them
    document_cut             interleaved documents of which only the beginning fits
    document_pictures_cut    their pictures behind the cut
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from omniloom.stages.data.arrange import Arranger, Segments, first_of
from omniloom.stages.data.index import KINDS
from omniloom.stages.data.planner import Planner

_PIECE = 1 << 17


def left_out(planner: Planner) -> Counter[str]:
    """Documents of the planner's split by KIND_REASON, without what is 0."""
    found: Counter[str] = Counter()
    for kind in KINDS:
        count = planner.index.count(kind)
        if kind != "text" and not planner.arranger.names:
            found[f"{kind}_no_objective"] = count
            continue
        without = [s for name, s in planner.streams.items() if s.kind == kind and name not in planner.shares]
        if without:
            found[f"{kind}_no_share"] = sum(stream.documents_in for stream in without)
        if kind != "text":
            for held in _pieces(planner, kind):
                found.update(_of_pictures(planner.arranger, kind, held))
    return +found


def needed(planner: Planner, kind: str) -> tuple[int, int]:
    """The least and the greatest `length` that has room for a picture of the kind with its shortest caption, or for
    the picture that an interleaved document begins with."""
    found = []
    for held in _pieces(planner, kind):
        if kind == "document":
            found.append(4 - np.minimum(first_of(held), 0))
            continue
        captions, _ = planner.arranger.captions(held)
        shortest = np.full(len(held.counts), np.iinfo(np.int64).max)
        np.minimum.at(shortest, held.owners[held.values >= 0], captions[held.values >= 0])
        alone = 2 + held.sums(np.where(held.values < 0, held.sizes, 0))
        found.append(np.where(held.sums(held.values >= 0) > 0, shortest, alone))
    return int(min(part.min() for part in found)), int(max(part.max() for part in found))


def _pieces(planner: Planner, kind: str) -> Iterator[Segments]:
    count = planner.index.count(kind)
    for at in range(0, count, _PIECE):
        yield planner.arranger.longest(planner.index, kind, np.arange(at, min(at + _PIECE, count)))
        planner.index.release()


def _of_pictures(arranger: Arranger, kind: str, held: Segments) -> dict[str, int]:
    fits, _ = arranger.fits(kind, held)
    total, length = held.sums(held.sizes) + 2, arranger.config.length
    if kind == "document":
        cut = fits & (total > length)
        behind = held.sums((held.values < 0) & (held.reached + 1 > length))
        return {
            "document_too_long": int((~fits).sum()),
            "document_cut": int(cut.sum()),
            "document_pictures_cut": int(behind[cut].sum()),
        }
    _, fitting = arranger.captions(held)
    captions = held.sums(held.values >= 0)
    unsaid = (captions == 0) & (arranger.config.caption_first == 0)
    return {
        f"{kind}_no_caption": int(unsaid.sum()),
        f"{kind}_captions_too_long": int((captions - held.sums(fitting))[fits].sum()),
        f"{kind}_too_long": int((~fits & ~unsaid).sum()),
    }
