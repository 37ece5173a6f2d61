"""`compare`: which of two models is better, and how surely."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import typer

from omniloom.pipelines.commands.arguments import AsJson

_WHAT = (
    "An evaluation or model: its folder, a run's record, a config or preset, runs:/ID or models:/NAME@ALIAS; or "
    "several trainings of one recipe by other seeds, with commas between."
)

_ONE_EACH = (
    "These are two models as they are: another seed of the same recipe may differ by as much. Recipes take several "
    "trainings of each: A1,A2,A3 B1,B2,B3."
)


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

    Of each figure B is better, worse or undecided. Two models are compared as they are; to say which recipe is better,
    name several trainings of each: A1,A2,A3 B1,B2,B3.
    """
    from omniloom.infra.errors import InputError
    from omniloom.infra.figures import finite
    from omniloom.pipelines.compared import find_all
    from omniloom.pipelines.tables import comparison_table, show
    from omniloom.stages.evaluate import comparing, over_seeds
    from omniloom.stages.evaluate.measures import near

    one, other = find_all(first), find_all(second)
    both = set.intersection(*(set(held) for held in (*one, *other)))
    for name in figure or ():
        if name not in both:
            raise InputError(f"{name}: not measured of both{near(name, both)}", field="--figure")
    if len(one) == len(other) == 1:
        found = comparing.compare(one[0], other[0], figure)
    elif min(len(one), len(other)) < over_seeds.LEAST:
        alone = "A" if len(one) < over_seeds.LEAST else "B"
        raise InputError(
            f"is one training, against {max(len(one), len(other))} of the other; how far a figure moves from seed to "
            f"seed takes at least {over_seeds.LEAST} of each recipe to tell",
            field=alone,
        )
    else:
        found = over_seeds.compare(one, other, figure)
    if as_json:
        print(json.dumps(finite({"decision": found.decision, **dataclasses.asdict(found)}), indent=2))
    else:
        show(comparison_table(found))
        print(f"B is {found.decision}" if found.decision in ("better", "worse") else found.decision)
        if found.apart:
            print(f"not of both, or without an item in common: {', '.join(found.apart)}")
        if len(one) == 1 and found.decision != "undecided":
            print(_ONE_EACH)
    passed = {"better": ("better",), "no-worse": ("better", "undecided"), None: (found.decision,)}[require]
    if found.decision not in passed:
        raise typer.Exit(1)
