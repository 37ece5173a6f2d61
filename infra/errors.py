"""Errors that are somebody's to fix: each knows the command's exit code and the field and file it is about.

Exit codes: 1 a stage failed, 2 the request is wrong (config, source, command line).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

# How a ValueError of a check begins that knows which field it is about: `data.sizes: expected ...`.
_FIELD = re.compile(r"([a-z_]\w*(?:\.\w+)*): (?=\S)")


class OmniLoomError(Exception):
    """A failure that is told in words, without a traceback."""

    exit_code = 1


class InputError(OmniLoomError):
    """The request is wrong: a field of the config, a source, an argument.

    `field` is a path from the config's root (`stages.ingest.sources.0.uri`), in a stage one from the root of its own
    config (`sources.0.uri`), or an option's name; `file` is the config file or the data file that holds the mistake.
    Both may be None; `str()` gives `file: field: message`. `line` is that of the field in the file, where it is known.
    """

    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None, file: str | None = None, line: int | None = None):
        super().__init__(message)
        self.message, self.field, self.file, self.line = message, field, file, line
        self._parts: tuple[InputError, ...] = ()

    def each(self) -> tuple[InputError, ...]:
        """The errors that it tells of, apart, where `together` made it of several; else itself."""
        return self._parts or (self,)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)

    def __reduce__(self):
        # Raised inside workers too: the default pickling would lose the keyword arguments.
        return _rebuild, (type(self), self.message, self.field, self.file, self.line, self._parts)


def _rebuild(
    kind: type[InputError],
    message: str,
    field: str | None,
    file: str | None,
    line: int | None,
    parts: tuple[InputError, ...],
) -> InputError:
    error = kind(message, field=field, file=file, line=line)
    error._parts = parts
    return error


def together(errors: Iterable[InputError]) -> InputError:
    """One error that tells all of them, each once, by their lines; what has none, as of an override, comes first."""
    found = {(error.field, error.message): error for one in errors for error in one.each()}
    first, *rest = parts = sorted(found.values(), key=lambda error: error.line or 0)
    lines = [": ".join(part for part in (error.field, error.message) if part) for error in rest]
    message = "\n  ".join([first.message, *lines])
    return _rebuild(type(first), message, first.field, first.file, first.line, tuple(parts)) if rest else first


@contextlib.contextmanager
def within(field: str = "") -> Iterator[None]:
    """What is raised inside is about the part of a config below `field`: an InputError gets it before its own field; a
    ValueError becomes an InputError, about the field that its text begins with if it does (`data.sizes: ...`)."""
    try:
        yield
    except InputError as error:
        for one in error.each():
            one.field = join_fields(field, one.field)
        if error in error.each():
            raise
        raise together(error.each()) from error.__cause__
    except ValueError as error:
        own, message = split_field(str(error))
        raise InputError(message, field=join_fields(field, own)) from None


def split_field(text: str) -> tuple[str | None, str]:
    """The field that a message begins with, or None, and the rest of the message."""
    match = _FIELD.match(text)
    return (match[1], text[match.end() :]) if match else (None, text)


def join_fields(*parts: str | None) -> str | None:
    return ".".join(part for part in parts if part) or None
