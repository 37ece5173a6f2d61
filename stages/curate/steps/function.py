"""Step `function`: a function of the user's, by its import path.

It is called as `function(record, **options)` with the record, a dictionary as `stages.data.records` has it, and returns
whether it stays (True or None), why it goes (a text, or False), or what is other in it: a dictionary with any of
captions, label, text, license and meta.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from omniloom.infra.errors import InputError
from omniloom.stages.curate.steps.base import Filter, StepConfig

_CHANGES = {"captions": list, "label": str, "text": str, "license": str, "meta": dict}


class FunctionConfig(StepConfig):
    """What a function of yours says of each record."""

    kind: Literal["function"]
    """What a function of yours says of each record."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """The function as module:name. The module is one that is installed, or lies in the folder in which the command
    runs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the function is given beside the record, by name."""
    of: list[Literal["image", "video", "text", "document"]] = Field(
        default=["image", "video", "text", "document"], min_length=1
    )
    """The kinds of records that it is asked about."""


class Function(Filter):
    Config = FunctionConfig
    kinds = ("image", "video", "text", "document")
    makes_content = True
    changes = True

    @classmethod
    def check(cls, config):
        _load(config.function)

    @classmethod
    def outside(cls, config):
        """The module's file: an edited function is another one."""
        file = sys.modules[_load(config.function).__module__].__file__ or ""
        return {"function": config.function, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}

    @cached_property
    def _function(self) -> Callable:
        return _load(self.config.function)

    def apply(self, item):
        if item.kind not in self.config.of:
            return None
        try:
            said = self._function(dict(item.row), **self.config.options)
        except Exception as error:  # whatever a function of somebody else's raises
            self._refuse(f"raised {type(error).__name__}: {error}", item, error)
        if said is None or said is True:
            return None
        if said is False or isinstance(said, str):
            return said or self.config.function
        return [item.changed(**self._checked(said, item))]

    def _checked(self, said: Any, item: Any) -> dict:
        wrong = None
        if not isinstance(said, dict):
            wrong = f"returned a {type(said).__name__}; expected True, False, a text or a dictionary"
        elif unknown := sorted(map(str, set(said) - set(_CHANGES))):
            wrong = f"returned {', '.join(unknown)}; what may be changed is {', '.join(_CHANGES)}"
        elif "text" in said and item.kind != "text" or "captions" in said and item.kind not in ("image", "video"):
            wrong = f"changes the {'text' if 'text' in said else 'captions'} of a record of kind {item.kind}"
        else:
            for name, value in said.items():
                if not isinstance(value, _CHANGES[name]) and not (value is None and name in ("label", "license")):
                    wrong = f"returned a {name} that is a {type(value).__name__}, expected {_CHANGES[name].__name__}"
        if wrong:
            self._refuse(wrong, item)
        return said

    def _refuse(self, wrong: str, item: Any, cause: Exception | None = None) -> NoReturn:
        where = f"{item.row['source']}: {item.row['path']}, part {item.row['part']}"
        raise InputError(f"{self.config.function} {wrong} ({where})", field="function") from cause


def _load(reference: str) -> Callable:
    module, _, name = reference.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] or os.getcwd() in sys.path:
            raise _unusable(module, error) from error
        sys.path.append(os.getcwd())
        return _load(reference)
    except Exception as error:  # whatever a module of somebody else's raises when it is imported
        raise _unusable(module, error) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise InputError(f"{module} ({found.__file__}) has no function {name}", field="function")
    return function


def _unusable(module: str, error: Exception) -> InputError:
    return InputError(f"{module} cannot be imported: {type(error).__name__}: {error}", field="function")
