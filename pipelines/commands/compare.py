"""`compare`: which of two models is better, and how surely."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import typer

from omniloom.pipelines.commands.arguments import AsJson

_WHAT = "An evaluation or model: its folder, a run's record, a config or preset, runs:/ID or models:/NAME@ALIAS."


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_WHAT)],
    second: Annotated[str, typer.Argument(metavar="B", help="The other, which is said to be better or worse.")],
    figure: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare this figure; may be given more than once.")
    ] = None,
    require: Annotated[
        Literal["better", "no-worse"] | None,
        typer.Option(help="Exit with code 1 unless B is better (by one figure and worse by none), or no worse."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations, paired by the items that both measured.

    Of each figure B is better, worse or undecided.
    """
    from omniloom.infra.errors import InputError
    from omniloom.infra.figures import finite
    from omniloom.pipelines.compared import find_items
    from omniloom.pipelines.tables import comparison_table, show
    from omniloom.stages.evaluate import comparing
    from omniloom.stages.evaluate.measures import near

    one, other = find_items(first), find_items(second)
    for name in figure or ():
        if name not in one or name not in other:
            raise InputError(f"{name}: not measured of both{near(name, set(one) & set(other))}", field="--figure")
    found = comparing.compare(one, other, figure)
    if as_json:
        print(json.dumps(finite({"decision": found.decision, **dataclasses.asdict(found)}), indent=2))
    else:
        show(comparison_table(found))
        print(f"B is {found.decision}" if found.decision in ("better", "worse") else found.decision)
        if found.apart:
            print(f"not of both, or without an item in common: {', '.join(found.apart)}")
    passed = {"better": ("better",), "no-worse": ("better", "undecided"), None: (found.decision,)}[require]
    if found.decision not in passed:
        raise typer.Exit(1)
