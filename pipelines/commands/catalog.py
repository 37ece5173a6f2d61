"""`list`, `show`, `lineage`, `diff`, `gc`, `copy`: what storages hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.pipelines.commands.arguments import AsJson

Place = Annotated[str, typer.Argument(metavar="PLACE", help="A pipeline's config or preset, or a storage.")]
_FORMS = "its folder, PLACE:STAGE, PLACE:DIGITS of its fingerprint, or models:/NAME@ALIAS"
ArtifactName = Annotated[str, typer.Argument(metavar="ARTIFACT", help=f"An artifact: {_FORMS}.")]
ItemName = Annotated[str, typer.Argument(metavar="ARTIFACT", help=f"An artifact: {_FORMS}. Or a run, PLACE:RUN.")]


class What(StrEnum):
    """What is listed."""

    artifacts = "artifacts"
    runs = "runs"
    models = "models"


def list_(
    place: Place,
    what: Annotated[What | None, typer.Argument(metavar="[artifacts|runs|models]", help="One of them alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the artifacts, runs and registered models of a storage."""
    from omniloom.pipelines.catalog import listing, places, printed

    where = places.place(place)
    kinds = [what] if what else list(What)
    found = {kind.value: getattr(listing, kind.value)(where) for kind in kinds}
    if as_json:
        _print_json(found[what.value] if what else {"storage": where.root, **found})
        return
    from omniloom.pipelines.tables import show as show_table

    print(redact(where.root))
    for kind, rows in found.items():
        if rows:
            show_table(printed.table(kind, rows))
        else:
            print(f"no {kind}")


def show(name: ItemName, as_json: AsJson = False) -> None:
    """Show one artifact or run: what made it, its config, inputs, files and figures."""
    from omniloom.infra.artifacts import Artifact
    from omniloom.pipelines.catalog import listing, places, printed

    found = places.item(name)
    told = listing.show(found) if isinstance(found, Artifact) else redact(found)
    _tell(told, printed.artifact(told) if isinstance(found, Artifact) else printed.run(told), as_json)


def lineage(name: ArtifactName, as_json: AsJson = False) -> None:
    """Show what an artifact came from and what was made from it, from files to models.

    Which records and steps one file went into, `who-saw` tells.
    """
    from omniloom.pipelines.catalog import places, printed
    from omniloom.pipelines.catalog.lineage import lineage as graph_of
    from omniloom.pipelines.catalog.lineage import registered_of

    found = places.artifact(name)
    graph = graph_of(found, registered_of(found, name))
    _tell(graph, printed.graph(graph), as_json)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="An artifact, a run, or a config for its last run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with, of the same sort.")],
    as_json: AsJson = False,
) -> None:
    """Compare two artifacts, runs or pipelines: config, data, code, versions, figures."""
    from omniloom.pipelines.catalog import comparison, printed

    found = comparison.diff(a, b)
    _tell(found, printed.differences(found), as_json)


def gc(
    place: Place,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go. This is the default.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it.")] = False,
    grace: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="What came later than so many days ago stays.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Delete what no pipeline's last run, run under way, registered model or pin reaches.

    Without --yes nothing is deleted. Runs may go on meanwhile.
    """
    from omniloom.pipelines.catalog import collecting, places, printed

    if dry_run and yes:
        raise InputError("excludes --dry-run", field="--yes")
    found = collecting.collect(places.place(place), grace, delete=yes)
    if as_json:
        _print_json(found)
        return
    for line in printed.garbage(found, yes):
        print(line)


def copy(
    name: ArtifactName,
    storage: Annotated[str, typer.Argument(metavar="STORAGE", help="A folder or URI, or the config that names it.")],
    ancestors: Annotated[bool, typer.Option("--ancestors", help="With all that it was made from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy an artifact into another storage, where plans find it.

    Every file is hashed there before the artifact counts as there.
    """
    from omniloom.pipelines.catalog import copies, places, printed

    rows = copies.copy(places.artifact(name), storage, ancestors)
    if as_json:
        _print_json(rows)
        return
    for line in printed.copied(rows):
        print(line)


def _tell(found: Any, lines: Iterable[str], as_json: bool) -> None:
    """What was found, as JSON or in lines for people."""
    if as_json:
        _print_json(found)
    else:
        print(*lines, sep="\n")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
