"""What a store refused for good. In: an event and why. Out: a line in `SPOOL-left-out/RUN_KEY/left-out.jsonl`, and
the files that came with it beside that: nothing that was logged is thrown away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from omniloom.infra.secrets import redact
from omniloom.infra.tracking.failures import say_once

_FILE = "left-out.jsonl"


def leave_out(folder: Path, event: dict, why: str) -> None:
    """Keep an event of the journals in `folder` apart; says so once for each run and kind of event."""
    target = folder.parent.with_name(f"{folder.parent.name}-left-out") / folder.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        if "path" in event and (staged := folder / event["path"]).exists():
            kept = target / staged.parent.name
            shutil.move(staged.parent, kept)
            event = {**event, "path": f"{kept.name}/{staged.name}"}
        with open(target / _FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"why": redact(why), **event}) + "\n")
    except OSError as error:
        say_once(folder.name, "tracking could not keep what was refused: %s", error)
    say_once(
        f"{folder.name} {event['kind']}", "tracking leaves out %s: %s; it is kept in %s", _name(event), why, target
    )


def _name(event: dict) -> str:
    values = event.get("values")
    if isinstance(values, dict):
        names = list(values)
    elif isinstance(values, list):
        names = sorted({str(value[0]) for value in values})
    else:
        names = [str(event[field]) for field in ("key", "name", "path") if event.get(field)]
    return f"{event['kind']} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
