"""The table of quantizers: what a kind is, and the kinds that there are. Standard library only.

In: a config as plain values. Out: the frozen dataclass of its kind; by `build`, the module that computes it.
A kind is one row, `QuantizerKind`. Another distribution adds rows by the entry points of the group
`omniloom.quantizers`; from then on they are read from YAML, listed in the schema and in errors, and built like ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, cast, get_args, get_type_hints

from omniloom.models import extensions
from omniloom.models.checks import STRICT_AND_DESCRIBED

GROUP = "omniloom.quantizers"
DEFAULT = "vq"
_OURS = "omniloom.models.tokenizer.quantizers.config:KINDS"  # by name: that module imports this one
# The names of the one form that all kinds shared before each had its own: a saved config of that time has them all.
_ONE_FORM = {"codebook_size", "fsq_levels", "kl_weight"}


class QuantizerConfig:
    """What the configs of all kinds have; each is a frozen dataclass with a field `kind`, a constant, and says `dim`
    and `size`. Where a config has a field of this type, pydantic reads any kind there, by `kind`.

    FORMER: field -> the name that it had before the kinds had classes of their own, which is read still.
    """

    FORMER: ClassVar[Mapping[str, str]] = {}
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT_AND_DESCRIBED

    kind: str

    @property
    def dim(self) -> int:
        """Channels of the latents that the quantizer hands to the decoder."""
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """Number of codes; None where the latents are continuous."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """A union of all kinds where the type is this class; of a kind's own class, that class."""
        if cls is not QuantizerConfig:
            return handler(source)
        choices = {name: handler.generate_schema(row.config) for name, row in kinds().items()}
        union = {"type": "tagged-union", "choices": choices, "discriminator": _kind_of}
        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": with_names_of_today},
            "schema": union,
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: dict[str, Any], handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        if "oneOf" in schema:  # what leaves `kind` out fits several in JSON Schema's terms
            schema["anyOf"] = schema.pop("oneOf")
        return schema


@dataclass(frozen=True)
class QuantizerKind:
    """A row of the table.

    name: what `kind` says.
    config: the frozen dataclass, a `QuantizerConfig`; its module must not import torch, as plans read configs.
    build: "module:name" of what makes a fresh `quantizers.base.Quantizer` of that config; imported when it is built.
    """

    name: str
    config: type[QuantizerConfig]
    build: str


def kinds() -> dict[str, QuantizerKind]:
    """All kinds by name: ours, and then those of other distributions."""
    return _tables()[0]


@cache
def _tables() -> tuple[dict[str, QuantizerKind], dict[str, str]]:
    """The kinds, and why others that are offered cannot be used, by name."""
    ours = {row.name: row for row in extensions.resolve(_OURS)}
    others, unusable = extensions.load(GROUP, ours, _problem)
    return {**ours, **others}, unusable


def _problem(name: str, row: Any) -> str | None:
    """The reason why an entry point cannot be a kind of quantizer."""
    if not isinstance(row, QuantizerKind):
        return f"is no omniloom.models.tokenizer.quantizers.kinds.QuantizerKind but a {type(row).__name__}"
    if row.name != name:
        return f"is the quantizer {row.name!r}, expected the name of its entry point"
    config: Any = row.config
    fits = isinstance(config, type) and issubclass(config, QuantizerConfig) and is_dataclass(config)
    if not fits:
        return "has a config that is no dataclass and QuantizerConfig"
    if get_args(get_type_hints(config)["kind"]) != (name,) or getattr(config, "kind", None) != name:
        return f'has a config without the line `kind: Literal["{name}"] = "{name}"`'
    return None


def read_quantizer(values: Mapping[str, Any], where: str) -> QuantizerConfig:
    """The config that saved plain values stand for; `where` opens the errors, which are ValueErrors."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    values = with_names_of_today(values)
    name = _named_kind(values)
    if name not in kinds():
        raise ValueError(f"{where}.kind: expected one of {', '.join(kinds())}, got {name!r}")
    config = kinds()[name].config
    known = [field.name for field in fields(cast(Any, config))]
    for field in values:
        if field not in known:
            raise ValueError(f"{where}.{field}: unknown field; {name} takes {', '.join(known[1:])}")
    try:
        return config(**values)
    except TypeError as error:  # a value that cannot be compared with a number
        raise ValueError(f"{where}: {config.__name__}: {error}") from error


def with_names_of_today(values: Any) -> Any:
    """Plain values in the form before each kind had its own fields, in that of today; anything else as it is."""
    if not isinstance(values, Mapping):
        return values
    values = dict(values)
    if values.get("kind", DEFAULT) == "vq" and values.get("codebook") in ("ema", "gradient"):
        values["kind"] = "vq_gradient" if values.pop("codebook") == "gradient" else "vq"
    name = _named_kind(values)
    _check_usable(name)
    row = kinds().get(name)
    if row is None:
        return values
    former = row.config.FORMER
    if _ONE_FORM <= values.keys():
        names = {field.name: former.get(field.name, field.name) for field in fields(cast(Any, row.config))}
        return {field: values[old] for field, old in names.items() if old in values}
    for field, old in former.items():
        if old in values and field not in values:
            values[field] = values.pop(old)
    return values


def _check_usable(kind: str) -> None:
    if kind in _tables()[1]:
        raise ValueError(f"kind: {kind} cannot be used; it is {_tables()[1][kind]}")


def _named_kind(values: Mapping[str, Any]) -> str:
    return str(values.get("kind", DEFAULT))


def _kind_of(value: Any) -> str | None:
    """The kind that plain values, or a config, are of; None of anything else."""
    if isinstance(value, Mapping):
        return _named_kind(value)
    return getattr(value, "kind", None)
