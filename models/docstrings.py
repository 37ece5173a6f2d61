"""Docstrings of a dataclass's fields: the string that stands under each, which Python drops. In: a class. Out: the
strings by field. Standard library only.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache


@cache
def field_docstrings(cls: type) -> dict[str, str]:
    """By field, its own and its bases', each on one line; a field without one is left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, below in zip(body, body[1:]):
            documented = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if documented and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs
