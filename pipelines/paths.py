"""Paths in a config: relative ones are made absolute once, where the config is read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from omniloom.infra import storage
from omniloom.infra.fields import from_source, map_texts, marked_paths
from omniloom.infra.tracking.address import absolute_store


def make_absolute(config: BaseModel) -> None:
    """With absolute paths: a pipeline's config, or a stage's."""
    paths = list(marked_paths(config))
    for marked in paths:
        if marked.mark["kind"] != "source":
            absolute = absolute_store if marked.mark["kind"] == "store" else storage.absolute
            marked.replace(map_texts(absolute, marked.value))
    for marked in paths:
        if marked.mark["kind"] == "source":
            uri = next(config.uri for config in reversed(marked.around) if hasattr(config, "uri"))
            marked.replace(from_source(marked.value, uri, storage.absolute))


def with_absolute_paths(values: dict, config: BaseModel) -> dict:
    """The literals `values` with those paths that the `config` made of them has made absolute."""
    for path in marked_paths(config):
        inside: Any = values
        *outer, last = path.keys
        for key in outer:
            inside = inside[int(key)] if isinstance(inside, list) else inside.get(key) or {}
        if last in inside:
            inside[last] = path.value
    return values
