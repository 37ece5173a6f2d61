"""What becomes of a record's captions. In: the record, scores of its captions and of such as a model wrote. Out: the
record as it stays, and what is told of it.

Captions below the threshold go. The best that a model wrote takes the place of all where it is not below the threshold
and better than the best that is there (CapFilt, arXiv 2201.12086, section 3.2, of which both would stay); the record is
marked as synthetic then, and its `meta` says under `recaption` what it said before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# kept: nothing goes. partly: some of several captions go. dropped: the picture stays without any. left_out: it goes.
# replaced: a model's caption stands in the place of others. added: it stands where none was.
OUTCOMES = ("kept", "partly", "replaced", "added", "dropped", "left_out", "uncaptioned")


@dataclass(frozen=True)
class Scored:
    """Captions with their scores, in the record's order."""

    captions: Sequence[str] = ()
    scores: Sequence[float] = ()

    @property
    def best(self) -> tuple[str, float] | None:
        return max(zip(self.captions, self.scores, strict=True), key=lambda one: one[1], default=None)


@dataclass(frozen=True)
class Decision:
    outcome: str
    captions: list[str]
    made: bool = False
    old: Scored = field(default_factory=Scored)
    new: tuple[str, float] | None = None

    def line(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """As it is written down."""
        told = {name: row[name] for name in ("source", "path", "part")}
        before = [[caption, round(score, 4)] for caption, score in zip(self.old.captions, self.old.scores, strict=True)]
        written = {"written": [self.new[0], round(self.new[1], 4)]} if self.new else {}
        return {**told, "outcome": self.outcome, "before": before, **written, "captions": self.captions}


def decide(old: Scored, new: Scored, threshold: float, leave_out: bool) -> Decision:
    """`leave_out`: a picture of which no caption is left goes."""
    stay = [caption for caption, score in zip(old.captions, old.scores, strict=True) if score >= threshold]
    written, best = new.best, old.best
    if written and written[1] >= threshold and (best is None or written[1] > best[1]):
        if written[0] not in old.captions:
            return Decision("replaced" if old.captions else "added", [written[0]], True, old, written)
    if stay:
        return Decision("kept" if len(stay) == len(old.captions) else "partly", stay, False, old, written)
    if leave_out:
        return Decision("left_out", [], False, old, written)
    return Decision("dropped" if old.captions else "uncaptioned", [], False, old, written)


def applied(row: dict[str, Any], decision: Decision, made_by: Mapping[str, str]) -> dict[str, Any] | None:
    """The record as it stays; None where it goes."""
    if decision.outcome == "left_out":
        return None
    if decision.outcome in ("kept", "uncaptioned"):
        return row
    changed = {**row, "captions": decision.captions, "caption": next(iter(decision.captions), None)}
    if decision.made:
        meta = {**json.loads(row["meta"]), "recaption": {"before": list(decision.old.captions), **made_by}}
        changed |= {"synthetic": True, "meta": json.dumps(meta, ensure_ascii=False)}
    return changed
