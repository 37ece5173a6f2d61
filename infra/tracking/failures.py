"""What a store's answers mean. In: an exception of MLflow, its HTTP client, its database or an artifact store. Out:
whether the store is away, refuses the request itself, or neither can be told."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

from omniloom.infra.secrets import logger, redact

log = logger(__name__)

# What a store answers when it is there and the request itself is wrong: sending it again cannot help.
_FINAL = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
}
# ... and when the same request may be answered otherwise later.
_LATER = {
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "CANCELLED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
}
# A disk's own refusals, which no time changes.
_NO_SUCH_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}

_REASON = re.compile(r"\[Errno -?\d+\] [\w ]+|[Rr]ead timed out|timed out|too many \d+ error responses")

_said: set[tuple[str, str]] = set()


class Unreachable(Exception):
    """The tracking store did not answer; the same events may be sent again later."""


class NotCreated(Unreachable):
    """The store answers, but the run that the events belong to (or its parent) is not there yet."""


class TryAgain(Unreachable):
    """The store answers, and does not take an event for a reason that may pass."""


class Refused(Exception):
    """The store answers, and the event itself is at fault; sending it again cannot help."""


def told_apart(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args)`, whose failure is raised as Unreachable, as Refused, or, where it is neither, as it is."""
    try:
        return function(*args, **kwargs)
    except (Unreachable, Refused):
        raise
    except Exception as error:
        if is_away(error):
            raise Unreachable(short(error)) from error
        if is_final(error):
            raise Refused(short(error)) from error
        raise


def is_away(error: BaseException) -> bool:
    """Whether the store could not be asked: no connection, no answer in time, not now, not with these credentials."""
    if getattr(error, "error_code", None) in _LATER:
        return True
    if getattr(error, "error_code", None) in _FINAL:
        return False
    return any(isinstance(found, _connectivity()) for found in chain(error))


def is_final(error: BaseException) -> bool:
    """Whether the same request can never be taken."""
    if getattr(error, "error_code", None) in _FINAL:
        from sqlalchemy import exc

        database = [found for found in chain(error) if isinstance(found, exc.SQLAlchemyError)]
        return all(isinstance(found, exc.IntegrityError | exc.DataError) for found in database)
    return isinstance(error, UnicodeError | OverflowError)


def is_no_place(error: BaseException) -> bool:
    """Whether an artifact store is a disk that has no place for the file: nothing to wait for."""
    return any(isinstance(found, OSError) and found.errno in _NO_SUCH_PLACE for found in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _connectivity() -> tuple[type[BaseException], ...]:
    import requests
    import urllib3
    from sqlalchemy import exc

    return (
        ConnectionError,
        TimeoutError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        exc.OperationalError,
        exc.InterfaceError,
        exc.TimeoutError,
    )


def short(error: BaseException) -> str:
    """The first line of an error's text, without secrets."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    line = lines[0][:500] if lines else type(error).__name__
    reason = _REASON.search(line) if "Max retries exceeded" in line else None  # three exceptions in one line
    return reason[0] if reason else line


def say_once(subject: str, message: str, *args: Any) -> None:
    """A warning, once in this process for the subject and the message; repeated ones are for debugging."""
    first = (subject, message) not in _said
    _said.add((subject, message))
    log.log(30 if first else 10, message, *args)
