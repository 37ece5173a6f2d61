"""Options that commands share: the choices of sampling, one option for each, and the stages that a run takes in. A
decorator gives a command the options in place of the one parameter that it has for what they say together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from omniloom.pipelines.selection import Selection
from omniloom.stages.inference.options import OPTIONS, Option, option_error

_METAVAR = {tuple: "HxW", Path: "FILE", int: "N", float: "X", str: "NAME"}


_SELECTION = {
    "only": Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone, again if it is cached.")],
    "from_": Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all after it again.")
    ],
    "until": Annotated[
        str | None, typer.Option(metavar="STAGE", help="Bring this stage and what it needs up to date.")
    ],
    "force": Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Run a stage again from its beginning; may be given more than once."),
    ],
}


def selection_options(command: Callable) -> Callable:
    """For a command with a parameter `selection`: gives it --only, --from, --until and --force instead."""
    options = [_optional(name, annotation) for name, annotation in _SELECTION.items()]
    return _with(command, "selection", options, _selection)


def _selection(chosen: dict[str, Any]) -> Selection:
    return Selection(chosen["only"], chosen["from_"], chosen["until"], tuple(chosen["force"] or ()))


def sampling_options(
    names: Iterable[str] = tuple(OPTIONS), required: Iterable[str] = (), usual: Mapping[str, str] | None = None
) -> Callable[[Callable], Callable]:
    """For a command with a parameter `sampling`: gives it options by these names instead, and `sampling` what was
    chosen, by name. `usual` says what counts where an option is not given, if the command has a way of its own."""
    options = [_parameter(OPTIONS[name], name in required, (usual or {}).get(name)) for name in names]
    return lambda command: _with(command, "sampling", options, _parsed)


def _with(
    command: Callable, into: str, options: list[inspect.Parameter], gather: Callable[[dict[str, Any]], Any]
) -> Callable:
    """The command with `options` in place of its parameter `into`, which gets what `gather` makes of their values."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != into] + options

    def call(**values: Any) -> None:
        chosen = {option.name: values.pop(option.name) for option in options}
        command(**values, **{into: gather(chosen)})

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    order = sorted(parameters, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    setattr(call, "__signature__", signature.replace(parameters=order))  # noqa: B010
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in order}
    return call


def _optional(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def _parameter(option: Option, required: bool, usual: str | None) -> inspect.Parameter:
    knob = option.knob
    kind: Any = str if knob.kind is tuple else knob.kind
    words = option.description + (f" One of {', '.join(knob.names)}." if knob.names else "")
    default = usual or option.usual or ("" if option.default is None else str(option.default))
    words += f" Default: {default}." if default and not required else ""
    settings = typer.Option(*option.flags, metavar=_METAVAR.get(cast(Any, knob.kind)), help=words)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, settings],
    )


def _parsed(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen, by name. `InputError` naming the option whose value is wrong by itself."""
    try:
        return {name: OPTIONS[name].parse(value) for name, value in chosen.items() if value is not None}
    except ValueError as error:
        raise option_error(error) from None
