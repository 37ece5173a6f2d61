"""Stages of other distributions: entry points of the group `omniloom.stages`, each a `stages.base.Stage`, and their
places among the stages that are built in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel

from omniloom.infra.plugins import Plugin, plugins
from omniloom.stages.base import Stage

GROUP = "omniloom.stages"


def with_plugins(built_in: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages that are built in and those that installed distributions add, in a topological order.

    An added stage stands behind the one that it names in `after`, or behind the last that makes something it reads;
    several in the order of their entry points. InputError for one that cannot be a stage or has no place.
    """
    stages, waiting = list(built_in), plugins(GROUP, Stage)
    for plugin in waiting:
        _check(plugin)
    while waiting:
        placed = [plugin for plugin in waiting if _place(plugin, stages)]
        if not placed:
            raise _homeless(waiting[0], stages)
        waiting = [plugin for plugin in waiting if plugin not in placed]
    return tuple(stages)


def _place(plugin: Plugin[Stage], stages: list[Stage]) -> bool:
    """Put the stage where it belongs; False where what it stands behind is not there yet."""
    stage = plugin.value
    names = [known.name for known in stages]
    if stage.name in names:
        raise plugin.wrong(f"there is a stage {stage.name!r} already")
    made, roles = {known.makes for known in stages}, {read.removesuffix("?") for read in stage.reads}
    before = [
        n for n, known in enumerate(stages) if (known.name == stage.after if stage.after else known.makes in roles)
    ]
    if any(read not in made for read in stage.reads if not read.endswith("?")):
        return False
    if before:
        stages.insert(before[-1] + 1, stage)
    elif not stage.after:  # it needs nothing, as ingest does
        stages.insert(0, stage)
    else:
        return False
    return True


def _homeless(plugin: Plugin[Stage], stages: list[Stage]) -> Exception:
    stage = plugin.value
    if stage.after and stage.after not in (known.name for known in stages):
        known = f"the stages are {', '.join(known.name for known in stages)}"
        return plugin.wrong(f"stands after {stage.after!r}, which is no stage; {known}")
    roles = ", ".join(dict.fromkeys(known.makes for known in stages))
    return plugin.wrong(f"reads {', '.join(stage.reads)}, which no stage makes; the roles are {roles}")


def _check(plugin: Plugin[Stage]) -> None:
    """InputError where a module lacks what a stage needs."""
    stage = plugin.value
    if not re.fullmatch("[a-z][a-z0-9_]*", stage.name) or hasattr(BaseModel, stage.name):
        raise plugin.wrong(
            f"{stage.name!r} cannot name a stage; expected small letters, digits and _, such as 'filter'"
        )
    try:
        module = stage.module
    except ImportError as error:
        raise plugin.wrong(f"its module cannot be imported: {error}") from error
    config = getattr(module, stage.config_name, None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise plugin.wrong(f"{stage.module_name} has no pydantic model {stage.config_name}")
    if not isinstance(getattr(module, "VERSION", None), int):
        raise plugin.wrong(f"{stage.module_name} has no VERSION, an int")
    if not callable(getattr(module, "run", None)):
        raise plugin.wrong(f"{stage.module_name} has no function run")
