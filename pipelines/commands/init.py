"""`init`: from a folder to a config that trains on it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from omniloom.infra.secrets import redact
from omniloom.pipelines.commands.arguments import AsJson


def init(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A folder, a file or an archive, on any filesystem that fsspec reaches."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The config to write. Default: DIR's name with .yaml, here.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="tiny, small or base. Default: by this machine and how much data there is."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="That the trainings take here, at most. Default: 8 for tiny, no limit else."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a folder and write the config that trains on it, explained line by line.

    Captions are found wherever they are: manifests, texts and JSON beside the pictures or in another folder, tables of
    any shape, databases, names of folders and files. A few steps are timed on this machine, so that the trainings take
    the time that there is. The config runs as it is written; nothing that is there is written over.
    """
    from omniloom.pipelines.starting.init import init as start

    made = start(folder, out, size, minutes=minutes)
    if as_json:
        print(json.dumps(made.to_dict(), indent=2, ensure_ascii=False))
        return
    for source in made.corpus.sources:
        captions = ""
        if source.makes in ("image", "video"):
            captions = f", {source.captioned:,} with captions" + (f" from {source.how}" if source.how else "")
        print(f"{source.options['kind']}: about {source.records:,} {source.makes} records{captions}")
    for path in made.manifests:
        print(f"captions: {path}, which the config names; `init` again after new files come")
    print(f"config:   {made.file} (size {made.sizes.name}, for {made.sizes.machine})")
    print(made.takes)
    name = shlex.quote(str(made.file))
    if pictures := [source for source in made.corpus.sources if source.makes in ("image", "video")]:
        if not any(source.captioned for source in pictures):
            print("captions: none were found; a model of these pictures draws no prompt. docs/data.md: `captions`")
    print(f"next:     omniloom run {name}")
    if prompt := next((text for text in made.corpus.captions if text.strip()), None):
        print(f"then:     omniloom sample {name} --prompt {shlex.quote(' '.join(redact(prompt).split())[:80])}")
