"""Errors that are somebody's to fix: each knows the command's exit code and the field and file it is about.

Exit codes: 1 a stage failed, 2 the request is wrong (config, source, command line).
"""

from __future__ import annotations


class OmniLoomError(Exception):
    """A failure that is told in words, without a traceback."""

    exit_code = 1


class InputError(OmniLoomError):
    """The request is wrong: a field of the config, a source, an argument.

    `field` is a path from the config's root (`stages.ingest.sources.0.uri`) or an option's name; `file` is
    the config file or the data file that holds the mistake. Both may be None; `str()` gives `file: field:
    message`.
    """

    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None, file: str | None = None):
        super().__init__(message)
        self.message, self.field, self.file = message, field, file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)

    def __reduce__(self):
        # Raised inside workers too: the default pickling would lose the keyword arguments.
        return _rebuild, (type(self), self.message, self.field, self.file)


def _rebuild(kind: type[InputError], message: str, field: str | None, file: str | None) -> InputError:
    return kind(message, field=field, file=file)
