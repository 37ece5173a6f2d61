"""Write docs/api.md: the public names with their signatures and docstrings, as the code has them. `make docs` calls it.

A name is public where a module of `MODULES` lists it in `__all__`; of a class also its methods and properties without
a leading underscore that it defines itself.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = {
    "omniloom": "Trained models, released tokenizers, pipelines.",
    "omniloom.models.tokenizer": "The visual tokenizer, with torch alone.",
    "omniloom.models.unified": "The unified transformer, with torch alone.",
    "omniloom.stages.base": "What a stage of your own is made of.",
    "omniloom.stages.ingest.kinds": "What a kind of source of your own is made of.",
    "omniloom.infra.training": "DeepSpeed under Ray Train.",
    "omniloom.infra.tracking": "MLflow that can neither stop nor slow a run.",
}
TARGET = Path(__file__).with_name("api.md")


def page() -> str:
    parts = ["# Python API\n\nMade from the code by `make docs`; edits belong into the docstrings."]
    for name, about in MODULES.items():
        module = import_module(name)
        parts.append(f"## {name}\n\n{about}")
        for public in public_names(module):
            parts.extend(entry(public, getattr(module, public)))
    return "\n\n".join(parts) + "\n"


def public_names(module: Any) -> list[str]:
    """What `__all__` lists, or else the classes and functions that the module itself defines."""
    listed = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    return sorted(listed)


def entry(name: str, value: Any, level: int = 3) -> Iterator[str]:
    """The heading, signature and docstring of one name; of a class then its members."""
    if not (inspect.isclass(value) or callable(value) or isinstance(value, property)):
        yield f"{'#' * level} {name}\n\n    {name} = {value!r}"
        return
    yield f"{'#' * level} {name}" + ("" if isinstance(value, property) else f"\n\n    {signature(name, value)}")
    if text := inspect.getdoc(value):
        yield plain(text)
    if inspect.isclass(value):
        for member, part in sorted(vars(value).items()):
            part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
            if not member.startswith("_") and (inspect.isfunction(part) or isinstance(part, property)):
                if part.__doc__:
                    yield from entry(f"{name.rpartition('.')[2]}.{member}", part, level + 1)


def signature(name: str, value: Any) -> str:
    """The call as it is written, a parameter a line where one line would be long."""
    try:
        call = inspect.signature(value)
    except (ValueError, TypeError):
        return f"{name}(...)"
    annotations = {
        key: text for part in reversed(getattr(value, "__mro__", [value])) for key, text in own(part).items()
    }
    parts: list[str] = []
    for parameter in call.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        parts.append(written(parameter, annotations.get(parameter.name, parameter.annotation)))
    parts = parts[1:] if parts[:1] == ["self"] or parts[:1] == ["cls"] else parts
    gives = "" if inspect.isclass(value) or call.return_annotation is call.empty else f" -> {call.return_annotation}"
    line = f"{'class ' if inspect.isclass(value) else ''}{name}({', '.join(parts)}){gives}"
    if len(line) <= 110:
        return line
    lines = "".join(f"        {part},\n" for part in parts)
    return f"{line.partition('(')[0]}(\n{lines}    ){gives}"


def own(part: Any) -> dict[str, Any]:
    return {name: text for name, text in getattr(part, "__annotations__", {}).items() if isinstance(text, str)}


def written(parameter: inspect.Parameter, annotation: Any) -> str:
    """`name: annotation = default`; of a default that has no literal, as a factory's, only that there is one."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if annotation is not parameter.empty:
        said = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        text += ": " + re.sub(r"^Derived\[(.+)\]$", r"\1 | None", said)  # what a caller may give
    if parameter.default is not parameter.empty:
        default = repr(parameter.default)
        text += f" = {'...' if default.startswith('<') else default}"
    return text


def plain(text: str) -> str:
    """Paragraphs as they are, and those with lines set in, which are tables of words, as blocks of text."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        table = any(line.startswith("  ") for line in paragraph.splitlines())
        paragraphs.append(f"```text\n{paragraph}\n```" if table else paragraph.replace("<", "&lt;"))
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}", file=sys.stderr)
