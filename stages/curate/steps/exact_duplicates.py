"""Step `exact_duplicates`: of records that hold the same the best stays.

What a record holds is its identity: a picture's pixels, a clip's frames, a text's words, decoded. Ingest has done that
once; behind a step that changes records, or with `letters`, there is more to find.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from omniloom.stages.curate.steps.base import Comparison, StepConfig

_NO_LETTER = re.compile(r"[\W_]+")


class ExactDuplicatesConfig(StepConfig):
    """Of records that hold the same one stays."""

    kind: Literal["exact_duplicates"]
    """Of records that hold the same one stays."""
    letters: bool = False
    """Texts and documents without pictures are the same where their letters and digits are: case, white space and
    punctuation do not count."""


class ExactDuplicates(Comparison):
    Config = ExactDuplicatesConfig
    kinds = ("image", "video", "text", "document")

    def sign(self, item):
        pictures = any(segment["type"] == "image" for segment in item.row["segments"] or ())
        if self.config.letters and item.kind in ("text", "document") and not pictures:
            letters = _NO_LETTER.sub("", item.text.casefold())
            digest = hashlib.sha256(letters.encode("utf-8", "surrogatepass")).digest()
            return [("all", digest)] if letters else []
        return [("all", bytes.fromhex(item.row["id"]))]

    def decide(self, table, signed):
        import numpy as np

        from omniloom.stages.curate.signatures import grouped

        best = grouped(signed.bytes, signed.preference())
        gone = np.flatnonzero(best != np.arange(len(signed)))
        yield gone, best[gone], "holds the same as"
