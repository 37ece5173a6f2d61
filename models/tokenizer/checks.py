"""The one check of all configs here."""

from __future__ import annotations


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """ValueError naming the field `name` of the config `owner`, what was given and what was expected."""
    if not condition:
        given = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name}: expected {expected}, got {given!r}")
