"""Stages of other distributions: entry points of the group `omniloom.stages`, and their places among those built in.

An entry point's name is the stage's name, its value a `stages.base.Stage`:

    [project.entry-points."omniloom.stages"]
    filter_records = "filter_stage:STAGE"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from omniloom.models import extensions
from omniloom.stages.base import Stage

GROUP = "omniloom.stages"


def with_extensions(built_in: Sequence[Stage]) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """The stages that are built in and those that installed distributions add, in a topological order; and by name why
    others cannot be used.

    An added stage stands behind the one that it names in `after`, or behind the last that makes something it reads;
    several by their names.
    """
    added, unusable = extensions.load(GROUP, [stage.name for stage in built_in], _problem)
    stages, waiting = list(built_in), sorted(added.values(), key=lambda stage: stage.name)
    while placed := [stage for stage in waiting if _place(stage, stages)]:
        waiting = [stage for stage in waiting if stage not in placed]
    return tuple(stages), {**unusable, **{stage.name: _why_nowhere(stage, stages) for stage in waiting}}


def _place(stage: Stage, stages: list[Stage]) -> bool:
    """Put the stage where it belongs; False where what it stands behind is not there yet."""
    made, roles = {known.makes for known in stages}, {read.removesuffix("?") for read in stage.reads}
    if any(read not in made for read in stage.reads if not read.endswith("?")):
        return False
    behind = [known for known in stages if (known.name == stage.after if stage.after else known.makes in roles)]
    if stage.after and not behind:
        return False
    stages.insert(stages.index(behind[-1]) + 1 if behind else 0, stage)  # one that needs nothing comes first
    return True


def _why_nowhere(stage: Stage, stages: list[Stage]) -> str:
    names, roles = [known.name for known in stages], list(dict.fromkeys(known.makes for known in stages))
    if stage.after and stage.after not in names:
        return (
            f"{stage.module_name} puts it after {stage.after!r}, which is no stage; the stages are {', '.join(names)}"
        )
    missing = [read for read in stage.reads if not read.endswith("?") and read not in roles]
    return f"{stage.module_name} reads {', '.join(missing)}, which no stage makes; the roles are {', '.join(roles)}"


def _problem(name: str, stage: Any) -> str | None:
    """The reason why an entry point cannot be a stage."""
    if not isinstance(stage, Stage):
        return f"is no omniloom.stages.base.Stage but a {type(stage).__name__}"
    if stage.name != name:
        return f"is the stage {stage.name!r}, expected the name of its entry point"
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or hasattr(BaseModel, name) or name == "configured":
        return "cannot have that name; expected small letters, digits and _, such as 'filter_records'"
    try:
        module = stage.module
    except Exception as error:  # whatever a module of somebody else's raises when it is imported
        return f"has a module {stage.module_name} that cannot be imported: {type(error).__name__}: {error}"
    config = getattr(module, stage.config_name, None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return f"lacks {stage.module_name}.{stage.config_name}, a pydantic model"
    if not isinstance(getattr(module, "VERSION", None), int):
        return f"lacks {stage.module_name}.VERSION, an int"
    return None if callable(getattr(module, "run", None)) else f"lacks {stage.module_name}.run, a function"
