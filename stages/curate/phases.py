"""Phases of curation: the filters up to a comparison, and the comparison; what a worker does with one shard in one.

A phase reads what the one before it left of a shard: a view, {"uri", "rows"}, which is a file and the rows of it that
are left, or null for all. It writes a shard only where its steps change records, and last of all the artifact's. Each
shard of each phase is written down when it is done, and what a comparison decided before it is acted on: a killed run
goes on after its last shard.

Below the state, PP the phase and NNNNN the shard:
    PP/NNNNN.json          the report: the view that is left, counts and samples by step
    PP/left/NNNNN.jsonl    {source, path, part, step, reason} of each record and caption that went in it
    PP/signed/NNNNN.parquet   the signatures for its comparison
    PP/decided.json, PP/decided/NNNNN.json   what the comparison decided
    PP/records/shard-*.parquet   shards with changed records
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.curate import pictures, signatures
from omniloom.stages.curate.item import Item
from omniloom.stages.curate.steps.base import Comparison, Filter
from omniloom.stages.data import records
from omniloom.stages.data.media.limits import MediaError

_NUMBER = re.compile(r"\d[\d.,]*")
_SAMPLES = 3  # of what goes by one step of one shard that are kept with their pictures


@dataclass(frozen=True)
class Numbered:
    """A step and its number in the config; -1 of the comparison with what is held out."""

    number: int
    step: Any

    @property
    def label(self) -> str:
        return f"{self.number}.{self.step.name()}" if self.number >= 0 else "held_out"


@dataclass(frozen=True)
class Phase:
    number: int
    filters: tuple[Numbered, ...]
    comparison: Numbered | None  # none of the last

    def place(self, state: str, *parts: str) -> str:
        return storage.join(state, f"{self.number:02d}", *parts)


def phases(steps: list[Any], held_out_first: Comparison | None, held_out_last: Comparison | None) -> list[Phase]:
    """The phases of the steps, in order. The comparisons with what is held out stand before and behind all."""
    found: list[Phase] = []
    filters: list[Numbered] = []
    numbered = [Numbered(number, step) for number, step in enumerate(steps)]
    numbered = [*_held(held_out_first), *numbered, *_held(held_out_last)]
    for one in numbered:
        if isinstance(one.step, Filter):
            filters.append(one)
        else:
            found.append(Phase(len(found), tuple(filters), one))
            filters = []
    return [*found, Phase(len(found), tuple(filters), None)]


def _held(comparison: Comparison | None) -> list[Numbered]:
    return [] if comparison is None else [Numbered(-1, comparison)]


@dataclass
class _Done:
    """What comes of a shard in one phase."""

    records: int = 0
    kept: list[int] = field(default_factory=list)  # of the rows of the view's file
    signed: list[tuple] = field(default_factory=list)
    left: list[dict] = field(default_factory=list)
    samples: dict[str, list[dict]] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Work:
    """All that a worker has to know; picklable. `held_out` are the sources that models are judged by. Without an
    `output` the last phase writes nothing."""

    phases: list[Phase]
    state: str
    output: str | None
    held_out: frozenset[str]

    def __call__(self, task: Mapping) -> dict:
        """Do one shard, {"phase", "shard", "view", "before"}: `before` is the label of the step that decided before it.
        Returns the report; one that holds an "error" was not written."""
        phase, number = self.phases[task["phase"]], task["shard"]
        marker = phase.place(self.state, f"{number:05d}.json")
        if (report := storage.read_json(marker)) is not None:
            return report
        done = _Done()
        try:
            view = self._view(phase, task, done)
        except InputError as error:
            return {"error": {"message": error.message, "field": error.field, "file": error.file}}
        if phase.comparison:
            signatures.write(phase.place(self.state, "signed", f"{number:05d}.parquet"), done.signed)
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done.left)
        storage.write_bytes(phase.place(self.state, "left", f"{number:05d}.jsonl"), lines.encode())
        report = {"view": view, "records": done.records, "counts": dict(done.counts), "samples": done.samples}
        storage.write_json(marker, report)
        return report

    def _view(self, phase: Phase, task: Mapping, done: _Done) -> dict:
        """What is left of the view, written where it is to be, and signed where it is compared next."""
        view, decided = task["view"], self._decided(phase, task["shard"])
        target = self._target(phase, view, decided)
        items = self._items(phase, task, decided, done)
        if target is None:
            for position, item in items:
                done.kept.append(position)
                self._keep(phase, position, item, done)
            return {"uri": view["uri"], "rows": done.kept if len(done.left) or view["rows"] is not None else None}
        with records.shard_writer(target) as writer:
            for number, (_, item) in enumerate(items):
                writer.add(item.row)
                self._keep(phase, number, item, done)
            writer.flush()
            if writer.refused:
                first = writer.refused[0]
                raise InputError(f"{first['source']}: {first['path']} cannot be written: {first['message']}")
        return {"uri": target, "rows": None}

    def _keep(self, phase: Phase, position: int, item: Item, done: _Done) -> None:
        done.records += 1
        if phase.comparison:
            done.signed += _signed(phase.comparison.step, position, item)

    def _decided(self, phase: Phase, shard: int) -> dict:
        before = self.phases[phase.number - 1] if phase.number else None
        return (before and storage.read_json(before.place(self.state, "decided", f"{shard:05d}.json"))) or {}

    def _target(self, phase: Phase, view: Mapping, decided: Mapping) -> str | None:
        """Where the shard is written; None where no record of it is changed, which the next phase then reads where it
        is, or nothing is to be written."""
        name = view["uri"].rpartition("/")[2]
        if phase.comparison is None:
            return self.output and storage.join(self.output, "records", name)
        changes = (
            phase.number == 0
            and bool(self.held_out)
            or any(one.step.changes for one in phase.filters)
            or any(caption >= 0 for of_row in decided.values() for caption, *_ in of_row)
        )
        return phase.place(self.state, "records", name) if changes else None

    def _items(self, phase: Phase, task: Mapping, decided: Mapping, done: _Done) -> Iterator[tuple[int, Item]]:
        """(row of the view's file, record) of all that is left."""
        view = task["view"]
        kept = None if view["rows"] is None else set(view["rows"])
        for position, row in enumerate(records.iterate_shard(view["uri"], batch_size=16)):
            if kept is not None and position not in kept:
                continue
            if row["source"] in self.held_out and row["split"] != "test":
                row = {**row, "split": "test"}
            item = _as_decided(Item(row), decided.get(str(position), ()), task["before"], done)
            items = [item] if item else []
            for one in phase.filters:
                items = [out for item in items for out in _filtered(one, item, done)]
            yield from ((position, item) for item in items)


def _as_decided(item: Item, decided: Any, label: str, done: _Done) -> Item | None:
    """What a comparison left of a record; `decided` are [caption or -1, reason, sample]."""
    if not decided:
        return item
    if any(caption < 0 for caption, *_ in decided):
        _, reason, like = next(one for one in decided if one[0] < 0)
        _leave(item, label, reason, done, like, decided=True)
        return None
    for _, reason, like in decided:
        _leave(item, label, reason, done, like, "caption")
    gone = {caption for caption, *_ in decided}
    return Item(item.changed(captions=[c for number, c in enumerate(item.captions) if number not in gone]))


def _filtered(one: Numbered, item: Item, done: _Done) -> Iterator[Item]:
    if item.kind not in one.step.kinds:
        yield item
        return
    done.counts[f"{one.label}.seen"] += 1
    try:
        said = one.step.apply(item)
    except MediaError as error:
        said = str(error)
    except InputError as error:
        error.field = ".".join(part for part in ("steps", str(one.number), error.field) if part)
        raise
    if said is None:
        yield item
    elif isinstance(said, str):
        _leave(item, one.label, said, done)
    else:
        done.counts[f"{one.label}.made"] += len(said)
        if len(said) == 1 and len(said[0]["captions"] or ()) < len(item.captions):
            gone = [caption for caption in item.captions if caption not in (said[0]["captions"] or ())]
            for caption in gone:
                _leave(item, one.label, f"caption: {caption}", done, what="caption")
        for row in said:
            yield item if row is item.row else Item(row)


def _leave(
    item: Item, label: str, reason: str, done: _Done, like: Any = None, what: str = "record", decided: bool = False
) -> None:
    row = item.row
    done.counts[f"{label}.{what}s"] += 1
    line = {"source": row["source"], "path": row["path"], "part": row["part"], "step": label, "what": what}
    done.left.append({**line, "reason": reason})
    if what == "record" and not decided:
        done.counts[f"{label}.because.{_NUMBER.sub('N', reason.partition(': ')[0])}"] += 1
    samples = done.samples.setdefault(label, [])
    if len(samples) < _SAMPLES or like:  # of what a comparison decided few have a picture beside them
        samples.append({**line, "reason": reason, "like": like, **shown(item)})


def shown(item: Item) -> dict:
    """What a person is shown of a record: a small picture, as base64, and words."""
    png = pictures.thumbnail(item)
    words = item.text or " / ".join(item.captions)
    return {"png": base64.b64encode(png).decode() if png else None, "words": words[:300]}


def _signed(step: Comparison, position: int, item: Item) -> Iterator[tuple]:
    if item.kind not in step.kinds:
        return
    worth, split = signatures.worth(item.row), records.SPLITS.index(item.row["split"])
    counts: Counter = Counter()
    for table, signature in step.sign(item):
        yield table, position, counts[table], split, worth, signature
        counts[table] += 1
