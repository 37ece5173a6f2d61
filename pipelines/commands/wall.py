"""`wall`: all trainings of a storage on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omniloom.pipelines.commands.arguments import ConfigPath, Overrides


def wall(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the page and its pictures are written.")] = Path(
        "wall"
    ),
) -> None:
    """Write one offline page of every training's pictures by step, under one slider.

    It shows all trainings in the storage, whatever pipeline made them, with curves, figures and lineage.
    """
    from omniloom.infra.artifacts import ArtifactStore
    from omniloom.infra.errors import InputError
    from omniloom.pipelines.config import load
    from omniloom.stages.reporting.wall import build

    storage = load(config, overrides or []).storage
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is no folder", field="--out")
    page, count = build(ArtifactStore(storage).all(), out)
    print(f"{page}: {count} trainings")
