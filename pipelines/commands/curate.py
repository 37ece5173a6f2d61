"""`curate`: what curation leaves out, or would."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.arguments import AsJson, ConfigPath, Overrides, planned
from omniloom.pipelines.selection import Selection


def curate(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, of the records that are there; make nothing.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where a dry run writes its page of what would go and why, with samples."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring curation up to date, or say what it would leave out and why.

    Without --dry-run this is `run --until curate`, and the page is part of the artifact.
    """
    if not dry_run:
        if page or as_json:
            raise InputError("goes with --dry-run", field="--page" if page else "--json")
        from omniloom.pipelines.commands.pipeline import bring_up

        bring_up(config, overrides, Selection(until="curate"))
        made = planned(config, overrides)["curate"]
        print(f"page: {storage.join(made.uri, 'curation.html')}")
        return
    from omniloom.pipelines.curating import dry_run as look

    found = look(planned(config, overrides), _tell)
    if page:
        page.write_text(found["html"], encoding="utf-8")
    left = sum(found["left"].values())
    if as_json:
        print(json.dumps({"records": found["records"], "would_go": left, "by_step": found["left"]}, indent=2))
        return
    print(f"{left:,} of {found['records']:,} records would go")
    for name, count in found["left"].items():
        print(f"  {name}: {count:,}")
    print(f"page: {page.resolve()}" if page else "with --page FILE a page shows which, and why")


def _tell(done: int, total: int, unit: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {unit}", end="\n" if done == total else "", file=sys.stderr)
