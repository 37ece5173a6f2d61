"""`who-saw`: what a file was used for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer

from omniloom.infra.secrets import redact
from omniloom.pipelines.commands.arguments import AsJson, Overrides


def who_saw(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A file of a source, by its path or URI; or SOURCE:PATH, as rejects name it.",
        ),
    ],
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="The pipeline's YAML file or preset, whose sources say which file is meant; or a storage, where the "
            "end of the path says it.",
        ),
    ],
    overrides: Overrides = None,
    uses: Annotated[int, typer.Option(metavar="K", min=0, help="How many uses of each training are listed.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Say which records, steps and models saw a file.

    All artifacts of the storage are asked, and trainings that are under way as far as their last checkpoint. Nothing is
    trained or written.
    """
    from omniloom.pipelines.seen import Where, who_saw

    found = redact(who_saw(file, Where.of(config, overrides or [])))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(found["answer"])
    for line in lines(found, uses):
        print(f"  {line}")


def lines(found: dict[str, Any], most: int) -> list[str]:
    """The answer's parts, a line each; of records and of each training's uses so many."""
    told = [
        f"record {row['id'][:12]} ({row['kind']}, {row['split']}): {_name(row)}, of {_artifacts(row)}"
        for row in found["records"]
    ]
    told += [f"copy of record {row['id'][:12]}: {_name(row)}, of {_artifacts(row)}" for row in found["copies"]]
    told += [f"reject {row['code']}: {_name(row)}: {row['message']}, of {_artifacts(row)}" for row in found["rejects"]]
    told = _shortened(told, most)
    for training in found["trainings"]:
        told += _training(training, most)
    for model in found["models"]:
        versions = [
            f"{v['name']} version {v['version']}" + (f" ({', '.join(v['aliases'])})" if v["aliases"] else "")
            for v in model["registered"]
        ]
        told.append(
            f"model of {model['training'][:12]}: digest {model['digest'][:12]}, {model['artifact']}"
            + (f"; registered as {', '.join(versions)}" if versions else "; not registered")
        )
    if why := found.get("registry"):
        told.append(f"the model registry {why}")
    for learner in found["learnt_from"]:
        steps = f", {learner['steps']:,} steps" if learner["steps"] else ""
        who = f"{learner['stage']} {learner['fingerprint'][:12]}"
        told.append(f"{who}: {learner['what']} learnt from a corpus that holds it{steps}")
    return told


def _shortened(told: list[str], most: int) -> list[str]:
    return [*told[:most], f"and {len(told) - most:,} more (--uses, --json)"] if len(told) > most else told


def _training(training: dict[str, Any], most: int) -> list[str]:
    who = f"{training['stage']} {training['training'][:12]} of {training['pipeline']}"
    if why := training.get("unknown"):
        return [f"{who}: not known: {why}"]
    state = "finished" if training["finished"] else "under way"
    times = f"{len(training['uses']):,} uses" if len(training["uses"]) != 1 else "1 use"
    several = len({use["id"] for use in training["uses"]}) > 1
    told = [f"{who}, {state}, {training['steps']:,} steps: {times}"]
    told += [
        f"  {line}" for line in _shortened([_use(use, training["training"], several) for use in training["uses"]], most)
    ]
    reasons = Counter(row["why"] for row in training["unused"])
    told += [f"  {count:,} record{'s' * (count > 1)}: {why}" for why, count in reasons.items()]
    told += [f"  record {name[:12]}: left out from step {step} on" for name, step in training["left_out"].items()]
    return told


def _use(use: dict[str, Any], training: str, named: bool) -> str:
    shown = ", ".join(str(use[name]) for name in ("task", "objective") if name in use)
    piece = f" {use['start']} to {use['stop']}" if "start" in use else ""
    other = "" if use["training"] == training else f", in {use['training'][:12]}"
    applied = "" if use["applied"] else ", a step that changed nothing"
    whose = f"record {use['id'][:12]}, " if named else ""
    return f"{whose}step {use['step']:,}, row {use['row']}: {shown}, {use['tokens']} tokens{piece}{other}{applied}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['source']}: {row['path']}" + (f", part {row['part']}" if row["part"] else "")


def _artifacts(row: dict[str, Any]) -> str:
    return " and ".join(f"{made['stage']} {made['fingerprint'][:12]}" for made in row["artifacts"])
