"""Extensions: parts that other installed distributions offer by entry points.

In: the name of a group, such as `omniloom.sources`, and the names that are taken. Out: the parts by name, and for each
that cannot be used the reason, for whoever asks for it: a broken extension stops nobody else. Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def resolve(reference: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def load(
    group: str, taken: Collection[str], problem: Callable[[str, Any], str | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(name -> part, name -> why it cannot be used). `problem(name, part)` says what is wrong with a part, if anything
    is; a name that is `taken` or that two distributions offer is of no use."""
    offered: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=group), key=_distribution):
        offered.setdefault(point.name, []).append(point)
    parts: dict[str, Any] = {}
    unusable: dict[str, str] = {}
    for name, points in offered.items():
        origin = f"offered by {' and '.join(map(_distribution, points))}"
        if len(points) > 1 or name in taken:
            unusable[name] = f"{origin}{' and by omniloom itself' if name in taken else ''}; uninstall all but one"
            continue
        try:
            part = points[0].load()
        except Exception as error:  # whatever a module of somebody else's raises when it is imported
            unusable[name] = f"{origin}, {points[0].value} cannot be loaded: {type(error).__name__}: {error}"
            continue
        if wrong := problem(name, part):
            unusable[name] = f"{origin}, {points[0].value} {wrong}"
        else:
            parts[name] = part
    return parts, unusable


def offered_by(group: str, name: str) -> str | None:
    """The distribution, with its version, that adds a part of this name; None of the parts of this tree."""
    return next((_distribution(point) for point in entry_points(group=group, name=name)), None)


def modules_of(groups: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """The modules that the parts of these names come from, each with the distribution that offers it."""
    points = [point for group in groups for point in entry_points(group=group) if point.name in names]
    return {point.module: _distribution(point) for point in points}


def located(modules: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By module where this process finds it, in words, and the sha256 of its file; empty where there is no code."""
    return {name: _located(name) for name in modules}


def _located(module: str) -> tuple[str, str]:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # of the package that it lies in; of a module without a spec
        spec = None
    if spec is None:
        return "not found", ""
    if spec.origin and Path(spec.origin).is_file():
        return spec.origin, hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    return f"a folder without code, {', '.join(spec.submodule_search_locations or ())}", ""


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
