"""Options of commands, made from the choices of sampling: one for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from omniloom.stages.inference.options import OPTIONS, Option, option_error

_METAVAR = {tuple: "HxW", Path: "FILE"}


def sampling_options(
    names: Iterable[str] = tuple(OPTIONS), required: Iterable[str] = (), usual: Mapping[str, str] | None = None
) -> Callable[[Callable], Callable]:
    """For a command with a parameter `sampling`: gives it options by these names instead, and `sampling` what was
    chosen, by name. `usual` says what counts where an option is not given, if the command has a way of its own."""

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        parameters = [parameter for name, parameter in signature.parameters.items() if name != "sampling"]
        parameters += [_parameter(OPTIONS[name], name in required, (usual or {}).get(name)) for name in names]

        def call(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in names}
            command(**values, sampling=_parsed({name: v for name, v in chosen.items() if v is not None}))

        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        order = sorted(parameters, key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        call.__signature__ = signature.replace(parameters=order)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in order}
        return call

    return decorate


def _parameter(option: Option, required: bool, usual: str | None) -> inspect.Parameter:
    knob = option.knob
    kind = {tuple: str}.get(knob.kind, knob.kind)
    words = option.description + (f" One of {', '.join(knob.names)}." if knob.names else "")
    default = usual or option.usual or ("" if option.default is None else str(option.default))
    words += f" Default: {default}." if default and not required else ""
    settings = typer.Option(*option.flags, metavar=_METAVAR.get(knob.kind), help=words)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, settings],
    )


def _parsed(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`InputError` naming the option whose value is wrong by itself."""
    try:
        return {name: OPTIONS[name].parse(value) for name, value in chosen.items()}
    except ValueError as error:
        raise option_error(error) from None
