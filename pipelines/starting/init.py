"""A first config for a folder. In: a URI, and this machine. Out: the config's file, checked by the plan that it gives,
and beside it a manifest of captions where these lay where no source reads them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact, redact_uris
from omniloom.pipelines.remaining import Remaining
from omniloom.pipelines.starting.corpus import Corpus, Source, corpus, manifest_rows
from omniloom.pipelines.starting.page import page
from omniloom.pipelines.starting.sizes import Machine, Sizes, fitted, sizes, this_machine

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan


@dataclass(frozen=True)
class Started:
    """`file`: the config; `manifests`: of captions, beside it; `takes`: how long its run takes, in words."""

    file: Path
    manifests: list[Path]
    corpus: Corpus
    sizes: Sizes
    takes: str

    def to_dict(self) -> dict[str, Any]:
        made = [
            {
                **redact(source.options),
                "makes": source.makes,
                "records": source.records,
                "captioned": source.captioned,
                "captions_from": source.how or None,
            }
            for source in self.corpus.sources
        ]
        return {
            "config": str(self.file),
            "manifests": [str(path) for path in self.manifests],
            "sources": made,
            "size": self.sizes.name,
            "machine": str(self.sizes.machine),
            "step_seconds": dict(self.sizes.step_seconds),
            "takes": self.takes,
        }


def init(
    folder: str,
    out: str | Path | None = None,
    size: str | None = None,
    machine: Machine | None = None,
    minutes: float | None = None,
) -> Started:
    """Look at what lies at `folder` and write the config that trains on it to `out`, by default NAME.yaml in the
    current folder, NAME being the folder's. With `minutes`, or a size that has its own, steps of trainings are timed
    on this machine, and there are as many as that time has room for; for another `machine` nothing is timed. Nothing
    that is there is written over. InputError where nothing can be read, and where the file is there."""
    seen = corpus(folder)
    chosen = sizes(seen, machine or this_machine(), size)
    name = name_of(seen.uri)
    file = Path(out) if out is not None else Path(f"{name}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"expected a name that ends in .yaml, got {file}", field="--out")
    if out is not None:
        name = name_of(file.stem)
    manifests = {_manifest(file, number): source for number, source in enumerate(seen.sources) if source.pairing}
    for path in (file, *manifests):
        if path.exists():
            raise InputError("is there already; name another file by --out", field="--out", file=str(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, source in manifests.items():
        _write_manifest(path, source)
    file.write_text(page(name, seen, chosen), encoding="utf-8")
    plan = _plan(file)
    timed = machine is None and (minutes or chosen.rung.minutes)
    if timed and (seconds := _measured(plan)):
        chosen = fitted(chosen, seconds, minutes)
        file.write_text(page(name, seen, chosen), encoding="utf-8")
        plan = _fitted(plan, file)
    return Started(file, list(manifests), seen, chosen, Remaining.of(plan).line())


def _plan(file: Path) -> Plan:
    """Of what was written; it refuses what would not run."""
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan

    return make_plan(load(str(file), files=True))


def _measured(plan: Plan) -> dict[str, float]:
    """By training the seconds of a step here."""
    from omniloom.pipelines import measuring

    return {name: found["seconds_per_step"] for name, found in measuring.measure(plan.config).items()}


def _fitted(measured: Plan, file: Path) -> Plan:
    """The plan with as many steps as there is time for, by what was measured."""
    from omniloom.pipelines import measuring

    plan = _plan(file)
    measuring.same_steps(measured.config, plan.config)
    return plan


def _manifest(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.captions{f'-{number}' if number else ''}.jsonl")


def _write_manifest(path: Path, source: Source) -> None:
    assert source.pairing
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in manifest_rows(source.pairing))
    path.write_text("".join(lines), encoding="utf-8")
    source.options["captions"] = {"manifest": storage.absolute(str(path))}


def name_of(uri: str) -> str:
    """A pipeline's name after a folder or a file."""
    last = redact_uris(uri).rstrip("/").rpartition("/")[2].split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-") or "corpus"
