"""`replay`: a step of a training once more, document by document or clip by clip."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omniloom.infra.secrets import redact
from omniloom.pipelines.commands.arguments import AsJson, ConfigPath, Overrides


def replay(
    config: ConfigPath,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option("--step", metavar="N", min=0, help="The step, counted from 0.")] = ...,  # type: ignore[assignment]
    stage: Annotated[str, typer.Option(metavar="STAGE", help="The stage that trained it.")] = "train",
    documents: Annotated[int, typer.Option(metavar="K", min=1, help="How many documents, or clips, are listed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Train one step again, and say which document is to blame; of a tokenizer's or a scorer's stage, which picture or
    video.

    It goes on from the nearest checkpoint before the step, and gives loss and gradient norm of each of its documents,
    with the file. Nothing of the run is changed.
    """
    from omniloom.pipelines.commands.arguments import planned
    from omniloom.pipelines.replaying import replay_step

    found = replay_step(planned(config, overrides), stage, step)
    found["documents"] = found["documents"][:documents]
    if as_json:
        print(json.dumps(redact(found), indent=2))
        return
    from omniloom.pipelines.tables import replay_table, show

    print(told(found))
    show(replay_table(found["documents"]))


def told(found: dict) -> str:
    """What was trained again, and whether it gave the same."""
    text = f"step {found['step']}, trained again from step {found['from']} on {found['ranks']} rank"
    text += "s" if found["ranks"] > 1 else ""
    if found["equal"] is None:
        return text + "; no row of the curves can be compared with it"
    row = f"the row of step {found['row']['step']}"
    if found["equal"]:
        return text + f"; its loss is that of {row}, {found['loss']:.6g}, bit for bit"
    return text + f"; {row} has the loss {found['row']['loss']:.6g}, and here it is {found['loss']:.6g}"
