"""What is not there of the outside files that a config names: sources that are missing or empty, weights, manifests.

In: a stage and its config; or a config as plain literals, of which some are wrong. Out: an InputError for each, with
the field from the config's root.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from omniloom.infra.errors import InputError, join_fields
from omniloom.pipelines.explain import located
from omniloom.pipelines.graph import KNOWN
from omniloom.pipelines.outside import outside_contents, unreadable
from omniloom.pipelines.paths import make_absolute
from omniloom.stages.base import Stage

Removed = list[tuple[list[str], int]]  # items of lists: the list's path, and the number that the item had in it


def of_stage(stage: Stage, config: Any) -> Iterator[InputError]:
    """Missing outside files of one stage whose config is right, its paths absolute."""
    errors = unreadable(outside_contents(config, {}))
    try:
        if listing := getattr(stage.module, "listing", None):
            listing(config)
    except InputError as error:
        errors += error.each()
    for one in errors:
        yield InputError(one.message, field=join_fields("stages", stage.name, one.field), file=one.file)


def of_literals(values: dict) -> Iterator[InputError]:
    """Of the stages in `values`, with what is wrong in them left out: a wrong key, or the item of a list that does not
    do without it. A stage that is not to be read even so tells nothing."""
    stages = values.get("stages")
    for stage in KNOWN:
        own = stages.get(stage.name) if isinstance(stages, dict) else None
        removed: Removed = []
        config = _readable(stage, copy.deepcopy(own), removed) if isinstance(own, dict) else None
        for error in of_stage(stage, config) if config else ():
            error.field = _with_numbers_of_before(error.field or "", removed)
            yield error


def _readable(stage: Stage, values: dict, removed: Removed) -> BaseModel | None:
    while True:
        try:
            config = stage.config_type.model_validate(values)
        except ValidationError as error:
            path, _ = located(error, stage.config_type)[0]
            if not _leave_out(values, path, ["stages", stage.name], removed):
                return None
        else:
            make_absolute(config)
            return config


def _leave_out(values: Any, path: list[str], above: list[str], removed: Removed) -> bool:
    """Take the key at `path` away or, where there is none, the item of a list around it; False where neither is."""
    around = [values]
    for part in path[:-1]:
        inside = around[-1]
        below = inside[int(part)] if isinstance(inside, list) and part.isdigit() and int(part) < len(inside) else None
        below = inside.get(part) if isinstance(inside, dict) else below
        if not isinstance(below, dict | list):
            break
        around.append(below)
    if len(around) == len(path) and isinstance(around[-1], dict) and path[-1] in around[-1]:
        del around[-1][path[-1]]
        return True
    for depth in range(len(around) - 1, -1, -1):
        number = path[depth] if depth < len(path) else ""
        if isinstance(around[depth], list) and number.isdigit() and int(number) < len(around[depth]):
            del around[depth][int(number)]
            removed.append(([*above, *path[:depth]], int(number)))
            return True
    return False


def _with_numbers_of_before(field: str, removed: Removed) -> str:
    """The field as it was called before items were taken out of lists."""
    parts = field.split(".")
    for path, number in reversed(removed):
        at = len(path)
        if parts[:at] == path and len(parts) > at and int(parts[at]) >= number:
            parts[at] = str(int(parts[at]) + 1)
    return ".".join(parts)
