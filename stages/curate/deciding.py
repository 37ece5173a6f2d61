"""What a comparison decides, once all shards are signed: written down by shard for the workers of the next phase."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.curate import phases
from omniloom.stages.curate.item import Item
from omniloom.stages.curate.phases import Phase
from omniloom.stages.curate.signatures import Signatures
from omniloom.stages.data import records

_Decided = dict[int, dict[str, list]]  # by shard, then by row of it: what goes
_SAMPLES = 6  # pairs that are shown, of one comparison
_NAMED = 5  # of records that an error names


def decide(phase: Phase, state: str, views: Sequence[Mapping], refuse_overlap: bool) -> None:
    """Compare what the phase's workers have signed; nothing happens where that is done. InputError where records that
    are trained on are copies of what models are judged by and that is to be refused."""
    done = phase.place(state, "decided.json")
    if phase.comparison is None or storage.exists(done):
        return
    comparison, uris = phase.comparison.step, [view["uri"] for view in views]
    signed_at = [phase.place(state, "signed", f"{number:05d}.parquet") for number in range(len(views))]
    decided: _Decided = {}
    for table in comparison.tables:
        with tempfile.TemporaryFile() as file:
            signed = Signatures(table, signed_at, uris, file, getattr(comparison, "outside_signatures", ()))
            for gone, like, why in comparison.decide(table, signed):
                _note(decided, comparison, signed, gone, like, why)
    if refuse_overlap and getattr(comparison, "refuses", False):
        _refuse(decided, uris)
    for number in range(len(views)):
        storage.write_json(phase.place(state, "decided", f"{number:05d}.json"), decided.get(number, {}))
    storage.write_json(done, {"shards": len(decided)})


def _note(decided: _Decided, comparison: Any, signed: Signatures, gone: np.ndarray, like: np.ndarray, why: str) -> None:
    """Add [caption or -1, reason, sample or None] of what goes, by shard and row. A record goes once."""
    names = _names(signed, like)
    for number, (a, b) in enumerate(zip(gone.tolist(), like.tolist(), strict=True)):
        of_row = decided.setdefault(int(signed.shard[a]), {}).setdefault(str(signed.row[a]), [])
        part = int(signed.part[a]) if comparison.of_captions else -1
        if part < 0 and of_row:
            continue
        source, path, _ = names[b]
        sample = _shown(signed, b) if number < _SAMPLES else None
        of_row.append([part, f"{why} {source}: {path}", sample])


def _names(signed: Signatures, rows: np.ndarray) -> dict[int, records.Key]:
    """The key of the record of each of these rows of the signatures."""
    found = {row: signed.outside[int(signed.row[row])].key for row in rows[signed.shard[rows] < 0].tolist()}
    for number in np.unique(signed.shard[rows]).tolist():
        if number < 0:
            continue
        wanted: dict[int, list[int]] = {}
        for row in np.unique(rows[signed.shard[rows] == number]).tolist():
            wanted.setdefault(int(signed.row[row]), []).append(row)
        columns = ("source", "path", "part")
        for position, row in enumerate(records.iterate_shard(signed.shards[number], columns=columns, batch_size=4096)):
            found |= dict.fromkeys(wanted.get(position, ()), records.key_of(row))
    return found


def _shown(signed: Signatures, row: int) -> dict | None:
    """What is shown of the record that something is like."""
    if signed.shard[row] < 0:
        return None
    wanted = int(signed.row[row])
    rows = records.iterate_shard(signed.shards[int(signed.shard[row])], batch_size=16)
    return next(phases.shown(Item(found)) for position, found in enumerate(rows) if position == wanted)


def _refuse(decided: Mapping[int, Mapping[str, list]], uris: Sequence[str]) -> None:
    told: list[str] = []
    count = 0
    for number in sorted(decided):
        for position, row in enumerate(records.iterate_shard(uris[number], columns=("source", "path", "part"))):
            for _, reason, _ in decided[number].get(str(position), ()):
                count += 1
                if len(told) < _NAMED:
                    part = f" (part {row['part']})" if row["part"] else ""
                    told.append(f"{row['source']}: {row['path']}{part} {reason}")
    if count:
        more = f" and {count - len(told):,} more" if count > len(told) else ""
        raise InputError(
            f"{count:,} records that would be trained on are copies of what models are judged by: "
            f"{'; '.join(told)}{more}. Take them out of the sources, or let them go with on_overlap: drop",
            field="on_overlap",
        )


def lines(uri: str) -> list[dict]:
    """JSON lines; they end with a line feed alone, for a path may hold other ends."""
    return [json.loads(line) for line in storage.read_bytes(uri).split(b"\n") if line]
