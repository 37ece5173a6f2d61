"""Where the time of finished runs went, by stage: python tests/benchmarks/startup.py STORAGE [STORAGE ...]

From the run's own log (STORAGE/runs/*.log, seconds): `workers` is when a training asked for its ranks, `first` when its
first step was done, or the first of what another stage counts, `tail` what came after the last line that counted. Runs
on a machine that does other work beside them tell little; the log does not say whether it did.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:(?P<stage>[a-z_]+): )?(?P<text>.*)")
_COUNTED = re.compile(r"\d[\d.]*/\d[\d.]* \w+")


@dataclass
class Row:
    stage: str
    start: float
    workers: float | None = None
    counted: list[float] = field(default_factory=list)
    end: float | None = None


def rows(log: str) -> tuple[float, list[Row]]:
    """(seconds from the log's first line to the first stage, a row a stage; times in seconds since the first line)."""
    found: dict[str, Row] = {}
    zero: float | None = None
    for line in filter(None, map(_LINE.fullmatch, log.splitlines())):
        moment = datetime.fromisoformat(line["time"]).timestamp()
        zero = moment if zero is None else zero
        stage, text, at = line["stage"], line["text"], moment - zero
        if stage and text.startswith("starting ("):
            found[stage] = Row(stage, at)
        elif stage in found:
            row = found[stage]
            if re.match(r"starting \d", text):
                row.workers = row.workers if row.workers is not None else at
            elif _COUNTED.match(text):
                row.counted.append(at)
            elif text.startswith("done in"):
                row.end = at
    ordered = sorted(found.values(), key=lambda row: row.start)
    return (ordered[0].start if ordered else 0.0), ordered


def table(log: str) -> str:
    before, stages = rows(log)
    lines = [f"{'stage':<18}{'start':>7}{'workers':>9}{'first':>7}{'tail':>7}{'seconds':>9}"]
    for row in stages:
        first = row.counted[0] - row.start if row.counted else None
        tail = row.end - row.counted[-1] if row.end is not None and row.counted else None
        seconds = row.end - row.start if row.end is not None else None
        cells = [row.start, None if row.workers is None else row.workers - row.start, first, tail, seconds]
        told = ["-" if cell is None else f"{cell:.0f}" for cell in cells]
        lines.append(
            f"{row.stage:<18}" + "".join(f"{text:>{w}}" for text, w in zip(told, (7, 9, 7, 7, 9), strict=True))
        )
    ends = [row.end for row in stages if row.end is not None]
    lines.append(f"{before:.0f} s before the first stage; {max(ends, default=0.0):.0f} s to the end of the last")
    return "\n".join(lines)


if __name__ == "__main__":
    for storage in sys.argv[1:] or ["runs/demo"]:
        for path in sorted(Path(storage, "runs").glob("*.log")):
            print(f"{path}\n{table(path.read_text())}\n")
