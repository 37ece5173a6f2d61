"""What all configs here share: the check of a field, and options that apply only beside a certain value of another one.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Optional, TypeVar, cast

# For pydantic, which a pipeline's YAML is read by: unknown keys are refused, and the docstring under a field is its
# description in the schema.
STRICT_AND_DESCRIBED: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}

T = TypeVar("T")

if TYPE_CHECKING:

    class Derived(Generic[T]):
        """A field of a dataclass that may be left at None and has a value once the dataclass is made: `__post_init__`
        derives it from the others by `derive`. Written `name: Derived[int] = derived()`; pydantic sees `int | None`."""

        def __get__(self, owner: object, cls: type) -> T: ...

        def __set__(self, owner: object, value: T | None) -> None: ...
else:
    Derived = Optional


def derived() -> Any:
    """The default of a `Derived` field: left open."""
    return None


def left_open(owner: object, name: str) -> bool:
    """Whether the `Derived` field `name` has no value yet."""
    return getattr(owner, name) is None


def derive(owner: object, name: str, value: object) -> None:
    """Give the `Derived` field `name` of a dataclass, frozen or not, its value where it was left open."""
    if left_open(owner, name):
        object.__setattr__(owner, name, value)


class FieldError(ValueError):
    """A wrong value of a config. `field`: its name, relative to the config; `reason`: what is wrong with it."""

    def __init__(self, owner: type, field: str, reason: str) -> None:
        super().__init__(f"{owner.__name__}.{field}: {reason}")
        self.owner, self.field, self.reason = owner, field, reason

    def below(self, field: str) -> FieldError:
        """The error as it is of a config that holds this one in `field`."""
        return FieldError(self.owner, f"{field}.{self.field}", self.reason)


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """FieldError naming the field `name` of the config `owner`, its value and what was expected."""
    if not condition:
        raise FieldError(type(owner), name, f"expected {expected}, got {as_written(getattr(owner, name))}")


def as_written(value: Any) -> str:
    """A value as YAML has it: lists in brackets, and no None, True or False."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_written(item) for item in value)}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


class Use(NamedTuple):
    """When an option has an effect: `applies` tells by the config that holds it, `where` says it in words."""

    applies: Callable[[Any], bool]
    where: str


class Conditional:
    """A config (a dataclass) some options of which have an effect only beside a certain value of another option.

    `USES` names those options. One that is written in YAML where it has no effect is refused, but not in a dump of a
    config, which has them all, and not in Python, where a dump is read.
    """

    USES: ClassVar[Mapping[str, Use]] = {}
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT_AND_DESCRIBED

    @classmethod
    def dumped(cls) -> frozenset[str]:
        """The fields that every dump has: of those that came later one from before has none."""
        return frozenset(f.name for f in fields(cast(Any, cls)) if not f.metadata.get("later"))

    def check_uses(self, written: Iterable[str]) -> None:
        """FieldError for the first of the `written` options that has no effect."""
        for name in written:
            if name in self.USES and not self.USES[name].applies(self):
                raise FieldError(type(self), name, f"has no effect here; it is an option of {self.USES[name].where}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """The dataclass as pydantic reads it, and then the check of what was written."""

        def read(values: Any, inner: Callable[[Any], Any]) -> Any:
            config = inner(values)
            if isinstance(values, Mapping) and not values.keys() >= cls.dumped():
                config.check_uses(values)
            return config

        schema = handler(source)
        # Whatever refers to the class means the check as well.
        named = {"ref": schema.pop("ref")} if "ref" in schema else {}
        return {"type": "function-wrap", "function": {"type": "no-info", "function": read}, "schema": schema, **named}
