"""What is wrong with a config, in the words of who wrote the YAML. In: pydantic's errors, the file, the overrides.
Out: one `InputError` that names the first field, its line and what was expected, and the other fields below it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from omniloom.infra import secrets
from omniloom.infra.errors import InputError, split_field, together
from omniloom.models.unified.representations import UNUSABLE as UNUSABLE_OBJECTIVES
from omniloom.pipelines import schema
from omniloom.pipelines.graph import UNUSABLE
from omniloom.pipelines.origin import Origin

_LISTS = ("tuple_type", "list_type", "set_type")
_MAPPINGS = (
    "dict_type",
    "model_type",
    "model_attributes_type",
    "dataclass_type",
    "dataclass_exact_type",
    "mapping_type",
)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# How alike a name is to one beside it, to one of another place, and to one beside it for want of a better.
_NEAR, _ELSEWHERE, _FAR = 0.8, 0.85, 0.5


def explain(error: ValidationError, model: type[BaseModel], origin: Origin) -> InputError:
    """The errors of a config of `model` that comes from `origin`, one for each field, together."""
    problems: dict[tuple[str, ...], list[str]] = {}
    for path, message in located(error, model):
        if message not in problems.setdefault(tuple(path), []):
            problems[tuple(path)].append(message)
    # A field of several types has one problem a type.
    return together(
        origin.placed(InputError(", or ".join(messages), field=".".join(path))) for path, messages in problems.items()
    )


def located(error: ValidationError, model: type[BaseModel]) -> list[tuple[list[str], str]]:
    """The path of keys and the message of each of pydantic's errors about values for `model`."""
    document = model.model_json_schema()
    return [_problem(document, item) for item in error.errors()]


def _problem(document: dict, item: Mapping[str, Any]) -> tuple[list[str], str]:
    """The path of keys and the message of one of pydantic's errors."""
    place = schema.place(document, [str(part) for part in item["loc"]])
    kind, value = item["type"], item["input"]
    if kind in _UNKNOWN and place.path[:-1] == ["stages"] and place.path[-1] in UNUSABLE:
        return place.path, f"cannot be used: {UNUSABLE[place.path[-1]]}"
    if kind in _UNKNOWN:
        return place.path, "unknown key" + _instead(document, place, value)
    if kind == "literal_error" and isinstance(value, str) and value in UNUSABLE_OBJECTIVES:
        return place.path, f"{value} cannot be used; it is {UNUSABLE_OBJECTIVES[value]}"
    if kind == "union_tag_invalid":
        tags = item["ctx"]["expected_tags"]
        near = difflib.get_close_matches(str(item["ctx"]["tag"]), tags.replace("'", "").split(", "), n=1)
        message = f"expected one of {tags} (got {item['ctx']['tag']!r})"
        return [*place.path, place.own.selector or "kind"], message + (f"; did you mean {near[0]!r}?" if near else "")
    if kind == "missing":
        return place.path, "is missing"
    if kind in ("value_error", "assertion_error"):
        cause = item.get("ctx", {}).get("error")
        if field := getattr(cause, "field", None):  # a `models.checks.FieldError`: of a field below this one
            return [*place.path, *field.split(".")], cause.reason
        return _narrowed(document, place.path, item["msg"].removeprefix("Value error, "))
    message = item["msg"][0].lower() + item["msg"][1:]
    if kind in _LISTS:
        message = f"expected a list, such as [{_example(schema.kinds(document, '.'.join([*place.path, '0'])), value)}]"
    elif kind in _MAPPINGS or kind == "union_tag_not_found":
        message = "expected a mapping, such as {key: value}"
    else:
        message = message.replace("tuple", "list").replace("dictionary", "mapping")
    if not isinstance(value, dict | list) and not secrets.names_secret(".".join(place.path)):
        message += f" (got {json.dumps(value) if value is None or isinstance(value, bool) else repr(value)})"
    return place.path, message


def _narrowed(document: dict, path: list[str], message: str) -> tuple[list[str], str]:
    """The place and the message of a check of several fields, whose message begins with the one that is wrong."""
    field, rest = split_field(message)
    own = field.split(".") if field else []
    if not own or not schema.kinds(document, ".".join([*path, own[0]])):
        return path, message
    return [*path, *own], rest


def _example(kinds: set[str], value: Any) -> str:
    """What may stand in a list of such `kinds` that should have been written in place of `value`."""
    if "string" in kinds:
        return value if isinstance(value, str) and value else "text"
    if kinds & {"integer", "number"}:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else "32"
    return "{key: value}"


def _instead(document: dict, place: schema.Place, value: Any) -> str:
    """What an unknown key may have been meant for: another of this place, one of another kind, one of elsewhere."""
    name, here = place.path[-1], place.known
    if place.kind:
        selector, others = place.around.selector, place.others_with(name)
        elsewhere = f" ({name} is of {selector} {', '.join(others)})" if others else ""
        if near := _nearest(name, here, _FAR):
            return f"; did you mean {near!r}?{elsewhere}"
        return f"; {selector} {place.kind} takes {', '.join(key for key in here if key != selector)}{elsewhere}"
    if near := _nearest(name, here, _NEAR):
        return f"; did you mean {near!r}?"
    inside = _chain(value)
    paths = schema.paths(document)
    for wanted in ([name, *inside], [name]):
        if same := [path for path in paths if path[-len(wanted) :] == wanted]:
            return _meant(same, place.path)
    if near := _nearest(name, here, _FAR):
        return f"; did you mean {near!r}?"
    if near := _nearest(name, sorted({path[-1] for path in paths}), _ELSEWHERE):
        return _meant([path for path in paths if path[-1] == near], place.path)
    return f"; known keys: {', '.join(here)}" if here else ""


def _meant(paths: list[list[str]], place: list[str]) -> str:
    """Of the paths those that leave the least of the way to `place`, the shortest of them, six at most."""

    def distance(path: list[str]) -> tuple[int, int]:
        shared = next((i for i, (a, b) in enumerate(zip(path, place)) if a != b), min(len(path), len(place)))
        return -shared, len(path)

    least = min(distance(path) for path in paths)
    names = [repr(".".join(path)) for path in paths if distance(path) == least]
    return f"; did you mean {' or '.join(names[:6])}?"


def _nearest(name: str, names: list[str], cutoff: float) -> str | None:
    """The likest of the names; one that begins with `name` counts as near."""
    if begun := [known for known in names if len(name) > 2 and known.startswith(name)]:
        return min(begun, key=len)
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return close[0] if close else None


def _chain(value: Any) -> list[str]:
    """The keys of a mapping in a mapping, as long as each holds one, as an override writes them."""
    keys = []
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        keys.append(str(key))
    return keys
