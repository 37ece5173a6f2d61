"""The choices of sampling as options, from which the command line, files of requests and the parameters of a served
model are made. In: the fields of `TextSampling` and `VisualSampling`. Out: `OPTIONS`, one for each name, and back from
chosen values the two objects. A name that both have (temperature, top_k, top_p) is one option, which sets both.

Another field of one of the two is another option everywhere; nothing here names one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra.errors import InputError
from omniloom.models.docstrings import field_docstrings
from omniloom.models.unified.generation.sampling import Knob, TextSampling, VisualSampling, knobs

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom


@dataclass(frozen=True)
class Option:
    """One choice. `default` is None where nothing is chosen by it; `usual` says in words what counts then, where the
    description does not."""

    name: str
    knob: Knob
    default: Any
    description: str
    usual: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """On the command line, the one that errors name first."""
        return self.knob.flags or ("--" + self.name.replace("_", "-"),)

    @property
    def server_side(self) -> bool:
        """Whether a server may take it from a client: a file's name it may not."""
        return self.knob.kind is not Path

    def parse(self, value: Any, folder: Path = Path()) -> Any:
        """A value of JSON, or a text of the command line for sizes, as the field takes it; files are found from
        `folder`. ValueError naming the option."""
        if self.knob.kind is tuple:
            return _size(self.name, value)
        if self.knob.kind is Path:
            if not isinstance(value, str | Path):
                raise ValueError(f"{self.name}: expected a file, got {value!r}")
            return folder / value
        self.knob.check(self.name, value)
        return value


def _size(name: str, value: Any) -> tuple[int, int]:
    """ "HxW" or [height, width] -> (height, width)."""
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
        value = [int(side) for side in value.split("x")]
    whole = isinstance(value, list | tuple) and all(type(side) is int and side > 0 for side in value)
    if not whole or len(value) != 2:
        raise ValueError(f"{name}: expected height x width in pixels, such as 256x384, got {value!r}")
    return value[0], value[1]


def _options() -> Iterator[Option]:
    kinds = (TextSampling, VisualSampling)
    names = dict.fromkeys(name for cls in kinds for name in knobs(cls))
    for name in names:
        having = [cls for cls in kinds if name in knobs(cls)]
        defaults = [getattr(cls, name) for cls in having]
        docs = [field_docstrings(cls)[name] for cls in having]
        if len(having) == 1:
            yield Option(name, knobs(having[0])[name], defaults[0], docs[0])
        else:
            default = defaults[0] if len(set(defaults)) == 1 else None
            usual = "" if default == defaults[0] else f"{defaults[0]:g} of text, {defaults[1]:g} of codes"
            yield Option(name, knobs(having[0])[name], default, docs[0], usual)


OPTIONS = {option.name: option for option in _options()}


def text_sampling(chosen: Mapping[str, Any]) -> TextSampling:
    """Of chosen values, by option. ValueError naming the one that is wrong."""
    return TextSampling(**{name: chosen[name] for name in knobs(TextSampling) if name in chosen})


def visual_sampling(chosen: Mapping[str, Any], loom: OmniLoom | None = None) -> VisualSampling:
    """Of chosen values, by option; what they leave open is the model's own where one is given. ValueError naming the
    one that is wrong."""
    fields = {name: chosen[name] for name in knobs(VisualSampling) if name in chosen}
    return loom.sampling(fields) if loom else VisualSampling(**fields)


def option_error(error: ValueError) -> InputError:
    """A "name: message" of the two objects, or of a model that they do not fit, with the command line's option."""
    name, _, message = str(error).partition(": ")
    return InputError(message, field=OPTIONS[name].flags[0]) if name in OPTIONS else InputError(str(error))
