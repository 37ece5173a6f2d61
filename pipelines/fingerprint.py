"""Fingerprints: sha256 over what determines a stage's output, in a canonical form.

Identity and placement are apart: config fields marked with `infra.fields.PLACEMENT` never enter. What has no
canonical form (a NaN, an arbitrary object) is an error, never a guess. Passwords and signatures in URIs never enter.

A config's class may have constants that enter beside its fields, `CANONICAL = {"name": value}`: the fields, at
their defaults, of a former class that was split into several, so that what was made with it stays valid; the version of
a part that another distribution brings. A field of the same name takes precedence. One whose fields have other names
than in that class gives its `canonical_form()` itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel

from omniloom.infra.fields import known_from_source, marks
from omniloom.infra.secrets import redact_uris

BY_CONTENT = "(by content)"  # in place of an outside path


def canonical(value: Any, where: str = "value", paths: bool = False) -> Any:
    """`value` as JSON-able literals; raises TypeError or ValueError that name the place for anything else.

    Outside paths are left out, `BY_CONTENT` in their place, unless `paths` are asked for.
    """
    if hasattr(value, "canonical_form") and not isinstance(value, type):
        return canonical(value.canonical_form(), where, paths)
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            name: _outside(item, mark["path"])
            if "path" in mark and (item := getattr(value, name)) not in (None, "") and not paths
            else canonical(getattr(value, name), f"{where}.{name}", paths)
            for name, mark in marks(value).items()
            if not mark.get("placement") and not (mark.get("later") and getattr(value, name) is None)
        }
        extra = getattr(value, "model_extra", None) or {}
        return canonical(getattr(value, "CANONICAL", {}), where) | fields | canonical(extra, where)
    if isinstance(value, Enum):
        return canonical(value.value, where, paths)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form")
        return value
    if isinstance(value, str):
        return redact_uris(value)  # the same file by another password or a new signature is the same file
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}.{i}", paths) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
        return {key: canonical(value[key], f"{where}.{key}", paths) for key in sorted(value)}
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form")


def _outside(value: Any, mark: Mapping[str, Any]) -> Any:
    return redact_uris(known_from_source(value)) if mark["kind"] == "source" else BY_CONTENT


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical form of `value`."""
    return hashlib.sha256(_text(canonical(value)).encode()).hexdigest()


def digest_of_rows(rows: Iterable[Any]) -> str:
    """The `digest` of a list, of which one row is held at a time."""
    found = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        found.update(("," * bool(number) + _text(canonical(row, f"value.{number}"))).encode())
    found.update(b"]")
    return found.hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def fingerprint(
    stage: str,
    version: int,
    config: Any,
    inputs: dict[str, str],
    sources: str | None = None,
    outside: dict[str, str] | None = None,
) -> str:
    """The fingerprint of a stage's output. `sources` is the digest of a listing of outside sources; `outside` has by
    field the digests of what the outside paths in the config hold."""
    parts = {
        "stage": stage,
        "version": version,
        "config": canonical(config, stage),
        "inputs": inputs,
        "sources": sources,
    }
    return digest(parts | ({"outside": outside} if outside else {}))


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(path, old, new) for every leaf that differs between two canonical forms; `ABSENT` where a side has none."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            d
            for key in keys
            for d in differences(old.get(key, ABSENT), new.get(key, ABSENT), f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{prefix}.{i}")]
    # 1 and 1.0 or True are different literals in the canonical form too
    return [] if old == new and type(old) is type(new) else [(prefix, old, new)]
