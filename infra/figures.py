"""Figures as JSON has them. In: literals with numbers. Out: the same, with null for what is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def finite(value: Any) -> Any:
    """`value` with None in place of every NaN and infinity, however deep in mappings, lists and tuples.

    JSON has no NaN (`storage.write_json` refuses one): a figure that is none must not take the work behind it along.
    """
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value) if math.isfinite(value) else None
    return value
