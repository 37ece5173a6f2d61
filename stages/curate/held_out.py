"""The comparison with what is held out: no record that is trained on may be a copy of what models are judged by.

Judged by are the records of `evaluation_sources` and those of `evaluation_sets`, which are read for this alone. A copy
of one is a record that holds the same, a picture or clip that shows the same (of a document, each picture of it), a
text that says nearly the same, and one that holds at least half of the other's text: the runs of forty letters that
both have are counted, of one in sixteen of all runs, chosen by their hash (Brown et al., "Language models are few-shot
learners", 2020, appendix C, compares runs of 13 words; letters serve languages without spaces).

Where steps make content (clips of a recording), what is trained on is compared with all that is held out: two clips may
be alike of recordings that are not.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omniloom.infra.errors import InputError
from omniloom.stages.curate.config import Config
from omniloom.stages.curate.item import Item
from omniloom.stages.curate.signatures import HELD, Outside, Signatures
from omniloom.stages.curate.steps.base import Comparison
from omniloom.stages.data import records
from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media.identity import picture_look
from omniloom.stages.data.media.sketches import SKETCH, text_runs, text_sketch
from omniloom.stages.ingest.splitting import text_twins, twins

_RUN, _ONE_IN = 40, 16  # letters of a run; runs of which one counts
_LEAST_RUNS, _CONTAINED = 3, 0.5  # counted runs of a text that can be looked for; the share that has to be found
_MOST_REFERENCES = 16  # texts that one run is looked up for


@dataclass
class Texts:
    """The counted runs of texts that models are judged by: `runs` uint64, sorted, each with the text that it is of;
    how many each text has, and the texts' keys."""

    runs: np.ndarray
    owners: np.ndarray
    counts: np.ndarray
    keys: list[records.Key] = field(default_factory=list)

    @classmethod
    def of(cls, found: Iterable[tuple[records.Key, np.ndarray]]) -> Texts:
        keys, runs = [], []
        for key, own in found:
            if len(own) >= _LEAST_RUNS:
                keys.append(key)
                runs.append(own)
        values = np.concatenate([np.empty(0, np.uint64), *runs])
        owners = np.repeat(np.arange(len(runs)), [len(own) for own in runs])
        order = np.argsort(values, kind="stable")
        return cls(values[order], owners[order], np.array([len(own) for own in runs], np.int64), keys)

    def held_by(self, text: str) -> list[int]:
        """The texts of which the given one holds at least half."""
        own = counted_runs(text)
        at, found = np.searchsorted(self.runs, own), Counter[int]()
        for step in range(_MOST_REFERENCES):
            there = at + step < len(self.runs)
            hits = at[there][self.runs[at[there] + step] == own[there]] + step
            if not len(hits):
                break
            found.update(self.owners[hits].tolist())
        return sorted(owner for owner, count in found.items() if count >= _CONTAINED * self.counts[owner])


def counted_runs(text: str) -> np.ndarray:
    """uint64 (n,), sorted: the runs of letters of a text that count."""
    runs = np.unique(text_runs(text, _RUN))
    return runs[(runs >> np.uint64(8)) % np.uint64(_ONE_IN) == 0]


class HeldOut(Comparison):
    """`outside` are signatures of evaluation sets, `texts` the texts that models are judged by, `sources` the
    evaluation sources. One that `refuses` stands before all steps: what it finds may be an error. One that does not
    stands behind them, and all that is held out of the corpus counts."""

    kinds = records.KINDS
    tables = ("same", "picture", "clip", "text", "held")

    def __init__(self, sources: Sequence[str], outside: Sequence[Outside], texts: Texts, refuses: bool):
        super().__init__(None)
        self.sources, self.outside_signatures, self.texts = frozenset(sources), tuple(outside), texts
        self.refuses = refuses

    @classmethod
    def name(cls) -> str:
        return "held_out"

    def sign(self, item: Item) -> list[tuple[str, bytes]]:
        judged = item.row["source"] in self.sources
        if not (judged or not self.refuses or item.row["split"] == "train"):
            return []
        found = list(signatures_of(item))
        if item.row["split"] == "train" and not judged and item.text:
            found += [("held", struct.pack("<q", owner)) for owner in self.texts.held_by(item.text)]
        return found

    def decide(self, table: str, signed: Signatures) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        if table == "held":
            yield from self._held(signed)
            return
        pairs, why = _pairs(table, signed)
        held = HELD[signed.split]
        trained = held == HELD[records.SPLITS.index("train")]
        across = trained[pairs[:, 0]] != trained[pairs[:, 1]]
        pairs = pairs[across]
        pairs = np.where(trained[pairs[:, :1]], pairs, pairs[:, ::-1])
        _, first = np.unique(pairs[:, 0], return_index=True)
        yield pairs[first, 0], pairs[first, 1], why

    def _held(self, signed: Signatures) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """Rows that hold a text; the texts are no rows, so that what they are is part of the reason."""
        owners = signed.as_type("<i8", 1)[:, 0]
        for owner in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == owner)
            yield rows, rows, f"holds most of {self.texts.keys[owner][0]}: {self.texts.keys[owner][1]}; found in"


def signatures_of(item: Item) -> Iterator[tuple[str, bytes]]:
    yield "same", bytes.fromhex(item.row["id"])
    if item.kind == "image":
        yield "picture", item.look
    elif item.kind == "video":
        yield "clip", item.look
    for segment in item.row["segments"] or ():
        if segment["type"] == "image":
            yield "picture", picture_look(media.decode_image(segment["media"], media.NO_LIMITS))
    if item.text and (sketch := text_sketch(item.text)):
        yield "text", sketch


def _pairs(table: str, signed: Signatures) -> tuple[np.ndarray, str]:
    if table == "same":
        values = signed.as_type("V32", 1)[:, 0]
        order = np.argsort(values, kind="stable")
        _, groups = np.unique(values, return_inverse=True)
        best: dict[int, int] = {}
        for row in signed.preference().tolist():
            best.setdefault(int(groups[row]), row)
        pairs = [(row, best[int(groups[row])]) for row in order.tolist() if best[int(groups[row])] != row]
        return np.array(pairs, np.int64).reshape(-1, 2), "holds the same as"
    if table == "text":
        return text_twins.near_texts(signed.as_type(np.uint32, SKETCH)), "says nearly the same as"
    return twins.near_pictures(signed.bytes) if len(signed) else np.empty((0, 2), np.int64), "shows the same as"


def read_evaluation(config: Config, shards: Sequence[str]) -> tuple[list[Outside], Texts]:
    """The signatures of the evaluation sets, and the runs of their texts and of those of the evaluation sources."""
    outside: list[Outside] = []
    found: list[tuple[records.Key, np.ndarray]] = []
    for row in _rows_of_sets(config):
        item, key = Item(row), records.key_of(row)
        outside += [Outside(table, key, signature) for table, signature in signatures_of(item)]
        found.append((key, counted_runs(item.text)))
    if config.evaluation_sources:
        columns = ("source", "path", "part", "kind", "text", "segments.type", "segments.text")
        for shard in shards:
            for row in records.iterate_shard(shard, columns=columns, kinds=("text", "document"), batch_size=256):
                if row["source"] in config.evaluation_sources:
                    found.append((records.key_of(row), counted_runs(Item(row).text)))
    return outside, Texts.of(found)


def _rows_of_sets(config: Config) -> Iterator[dict]:
    """The records of the evaluation sets. InputError for one that gives none: it would be compared with nothing."""
    from omniloom.stages.ingest import sources
    from omniloom.stages.ingest.readers import Reader

    if not config.evaluation_sets:
        return
    sets = sets_of(config)
    readers = [Reader(sets, index) for index in range(len(sets.sources))]
    empty = dict.fromkeys(("media", "text", "segments", "captions", "frames", "width", "height"))
    found, why = Counter[int](), dict[int, str]()
    for item in sources.items(sets, Counter()):
        for row in readers[item["source"]].read(item):
            if "code" in row:
                why.setdefault(item["source"], f"; the first: {row['path']}: {row['message']}")
            else:
                found[item["source"]] += 1
                yield {**empty, **row, "source": sets.source_name(item["source"]), "split": "test"}
    for index in range(len(sets.sources)):
        if not found[index]:
            raise InputError(f"no record came out of it{why.get(index, '')}", field=f"evaluation_sets.{index}")


def sets_of(config: Config) -> Any:
    """The evaluation sets as a config of ingest."""
    from omniloom.stages.ingest.config import IngestConfig

    return IngestConfig(sources=config.evaluation_sets)
