"""Filesystems' errors: those that pass (a throttled store, a lost connection, EIO) are tried again a few times, and of
the others a reject says what is wrong."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from omniloom.stages.data.media.limits import MediaError, one_line

WAITS = (0.1, 0.5, 2.0)  # seconds before each further try
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO",
        "EAGAIN",
        "EINTR",
        "EBUSY",
        "ETIMEDOUT",
        "ECONNRESET",
        "ECONNREFUSED",
        "ECONNABORTED",
        "EPIPE",
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ESTALE",
        "ENOBUFS",
        "EMFILE",
        "ENFILE",
    )
}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Parts of the names that clients give to errors of theirs that are no OSError.
_PASSING_NAMES = (
    "timeout",
    "throttl",
    "slowdown",
    "connection",
    "disconnected",
    "incomplete",
    "payload",
    "unavailable",
)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


def passes(error: BaseException) -> bool:
    """Whether another try may go well: a timeout, a lost connection, a store that is busy or throttles."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if isinstance(current, _FINAL):
            return False
        if isinstance(current, ConnectionError | TimeoutError) or getattr(current, "errno", None) in _PASSING:
            return True
        words = [type(current).__name__, *(str(w) for w in _response(current).get("Error", {}).values())]
        if _status(current) in _PASSING_STATUS or any(
            name in word.lower().replace(" ", "") for word in words for name in _PASSING_NAMES
        ):
            return True
        seen.append(current)
        current = current.__cause__ or current.__context__
    return False


def _response(error: BaseException) -> dict:
    """What botocore's errors keep of the answer: {"Error": {"Code"}, "ResponseMetadata": {"HTTPStatusCode"}}."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    found = [
        _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode"),
        *(
            getattr(holder, name, None)
            for holder in (error, response)
            for name in ("status", "status_code", "http_status", "code")
        ),
    ]
    return next((int(value) for value in found if str(value).isdigit()), None)


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives; where it fails in a way that passes, it is called again after each of `WAITS`."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(wait)
    return call()


def unreadable(error: Exception, path: str) -> MediaError:
    """The reject that says why a file or folder could not be read."""
    shown = path if len(path) <= 80 else f"{path[:60]}... ({len(path)} characters)"
    code = getattr(error, "errno", None)
    if isinstance(error, MediaError):
        return error
    if isinstance(error, FileNotFoundError):
        return MediaError("missing_file", f"{shown} is not there")
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return MediaError("not_a_file", f"{shown} is no file")
    if code == errno.ENAMETOOLONG or isinstance(error, UnicodeError) or "null byte" in str(error):
        return MediaError("bad_name", f"{shown} can be no file's name: {one_line(error)}")
    tries = f" (tried {len(WAITS) + 1} times)" if passes(error) else ""
    return MediaError("unreadable", f"{shown}: {type(error).__name__}: {one_line(error)}{tries}")
