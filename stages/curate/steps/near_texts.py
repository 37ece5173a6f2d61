"""Steps `near_texts` and `near_captions`: of texts that say the same in nearly the same words the best stays; of
captions that are said, or nearly said, of many records few do.

Candidates come from MinHash sketches of the texts' runs of letters, looked up by bands (Broder, "On the resemblance and
containment of documents", 1997; Leskovec, Rajaraman and Ullman, "Mining of massive datasets", 3.4). Of each pair the
runs themselves are compared: the share of runs that both have (Jaccard) is exact.
"""

from __future__ import annotations

import tempfile
from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Comparison, StepConfig

_TEXT_RUN, _CAPTION_RUN = 9, 4  # letters
_SLACK = 0.15  # by which a sketch of 64 values may say less than the truth: 2.4 deviations


class NearTextsConfig(StepConfig):
    """Of texts and documents that say the same in nearly the same words one stays."""

    kind: Literal["near_texts"]
    """Of texts and documents that say the same in nearly the same words one stays."""
    similarity: float = Field(default=0.5, ge=0.4, le=1)
    """The share of their runs of nine letters that two texts have in common, at least, to be the same."""


class NearCaptionsConfig(StepConfig):
    """Captions that are said, or nearly said, of many records: all but a few lose them."""

    kind: Literal["near_captions"]
    """Captions that are said, or nearly said, of many records: all but a few lose them."""
    similarity: float = Field(default=0.8, ge=0.5, le=1)
    """The share of their runs of four letters that two captions have in common, at least, to be the same."""
    max_records: int = Field(default=1, ge=1)
    """How many records keep a caption that is said of more."""


class NearTexts(Comparison):
    Config = NearTextsConfig
    kinds = ("text", "document")

    def sign(self, item):
        from omniloom.stages.data.media.sketches import text_sketch

        sketch = text_sketch(item.text)
        return [("all", sketch)] if sketch else []

    def decide(self, table, signed):
        leaders = _leaders(signed, self.config.similarity, _TEXT_RUN)
        yield *_behind(signed, leaders, 1), "says nearly the same as"


class NearCaptions(Comparison):
    Config = NearCaptionsConfig
    kinds = ("image", "video")
    of_captions = True

    def sign(self, item):
        from omniloom.stages.data.media.sketches import SKETCH, text_sketch

        empty = b"\xff" * (4 * SKETCH)  # of captions that are too short to be told apart: each has its place
        return [("all", text_sketch(caption, _CAPTION_RUN, 1) or empty) for caption in item.captions]

    def decide(self, table, signed):
        leaders = _leaders(signed, self.config.similarity, _CAPTION_RUN)
        yield *_behind(signed, leaders, self.config.max_records), "is said of others, such as"


def _leaders(signed, similarity, run):
    """int64 (n,): of each row the best that says nearly the same; itself where none does.

    Rows of one sketch are compared with the best of them, those best ones with each other by bands. A row is paired
    with few of its copies at once, so those that lead are compared again until no two are alike.
    """
    import numpy as np

    from omniloom.stages.curate.signatures import first_of_each, grouped
    from omniloom.stages.data.media.sketches import SKETCH
    from omniloom.stages.ingest.splitting import text_twins

    preference = signed.preference()
    sketches = signed.as_type(np.uint32, SKETCH)
    leaders = np.arange(len(signed))
    best = grouped(signed.bytes, preference)
    equal = np.stack([best, leaders], axis=1)[best != leaders]
    same = _alike(signed, equal, similarity, run)
    leaders[equal[same, 1]] = equal[same, 0]
    left, gone = np.flatnonzero(leaders == np.arange(len(leaders))), leaders != np.arange(len(leaders))
    while len(pairs := left[text_twins.near_texts(sketches[left], similarity - _SLACK)]):
        pairs = pairs[_alike(signed, pairs, similarity, run)]
        some, others = first_of_each(pairs, preference, gone)
        leaders[some] = others
        left = np.unique(pairs)
        left = left[~gone[left]]
    while (leaders[leaders] != leaders).any():
        leaders = leaders[leaders]
    return leaders


def _alike(signed, pairs, similarity, run):
    """bool (n,): whether the texts of pairs of rows have at least that share of runs in common."""
    import numpy as np

    with tempfile.TemporaryFile() as file:
        runs = _Runs(signed, np.unique(pairs), run, file)
        return np.array([runs.shared(a, b) >= similarity for a, b in pairs.tolist()], bool)


class _Runs:
    """The runs of letters of some texts, sorted, uint64, in a temporary file."""

    def __init__(self, signed, rows, run, file):
        import numpy as np

        from omniloom.stages.data.media.sketches import text_runs

        self.places, at = {}, 0
        for row, text in signed.texts(rows):
            found = np.unique(text_runs(text, run))
            file.write(found.tobytes())
            self.places[row] = slice(at, at + len(found))
            at += len(found)
        file.flush()
        self.values = np.memmap(file, np.uint64, "r", shape=(at,)) if at else np.empty(0, np.uint64)

    def shared(self, a, b) -> float:
        """Jaccard: of the runs that either has, the share that both have."""
        import numpy as np

        a, b = (self.values[self.places[row]] for row in (a, b))
        both = len(np.intersect1d(a, b, assume_unique=True))
        return both / max(1, len(a) + len(b) - both)


def _behind(signed, leaders, most):
    """(rows that go, rows that they are like): of rows with one leader the best `most` stay."""
    import numpy as np

    preference = signed.preference()
    order = preference[np.argsort(leaders[preference], kind="stable")]
    followed = leaders[order]
    starts = np.flatnonzero(np.r_[True, followed[1:] != followed[:-1]]) if len(order) else np.empty(0, np.int64)
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    gone = order[place >= most]
    return gone, leaders[gone]
