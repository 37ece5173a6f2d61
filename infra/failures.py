"""Failures: what a worker died of, out of all that Ray put around it, in one line; and whether another try may do.

Ray, Ray Data and Ray Train wrap what a worker raised, each in its own way, and carry it between processes; what
cannot be carried is left as text. `carried` is called where the stage's body ran, with the exceptions still at hand.
"""

from __future__ import annotations

import errno
import re

from omniloom.infra.errors import InputError, OmniLoomError, split_field

_LONGEST = 500
# An exception's line in the text of a traceback: not indented, its type first. The first one was raised first.
_RAISED = re.compile(
    r"^(?:(?P<kind>(?:(?:[A-Za-z_]\w*|<locals>)\.)*[A-Z_]\w*): (?P<message>.*)"
    r"|(?P<bare>[\w.<>]*(?:Error|Exception|Exit|Interrupt)))$",
    re.MULTILINE,
)
# Wrappings that hold what was raised as text alone.
_LOSSY = ("UserCodeException", "RayDataUserCodeException", "UnserializableException", "RaySystemError", "RayTaskError")
# A rank whose only trouble is another rank's end.
_COLLATERAL = re.compile(r"[Cc]onnection (closed|reset)|NCCL|ncclRemoteError")
# Types, of the standard library and of the clients of object stores, for a server that is away.
_PASSING = re.compile(
    r"\b(\w*Connect(ion)?\w*(Error|Timeout)|\w*TimeoutError|ServerDisconnectedError|IncompleteRead(Error)?|"
    r"ResponseStreamingError|ClientPayloadError)\b"
)
_TYPED = re.compile(r"[A-Z]\w*(: |$)")
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_PASSING_NUMBERS = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EREMOTEIO,
}
# What Ray says of its own failures, by the name of the class; subclasses come before what they derive from.
_WORDS = {
    "OutOfMemoryError": "Ray ended a process of it, as this machine's memory was nearly full; fewer or smaller "
    "workers need less",
    "OutOfDiskError": "the disk of Ray's object store is full",
    "ObjectStoreFullError": "Ray's object store is full (cluster.object_store_bytes)",
    "WorkerCrashedError": "a process of it was killed; where memory runs out, the system does that",
    "LocalRayletDiedError": "Ray's own process on this machine (raylet) died",
    "NodeDiedError": "the machine that it ran on is gone, or Ray's own process there",
    "ActorDiedError": "a worker process died; where memory runs out, the system kills it",
    "ActorUnavailableError": "a worker process does not answer",
    "RayActorError": "a worker process died",
    "TaskCancelledError": "it was cancelled",
    "OwnerDiedError": "the process that held its data died",
    "ObjectLostError": "data between its workers were lost, with a process or a machine",
    "WorkerGroupStartupFailedError": "a worker process died while the workers started",
    "WorkerHealthCheckTimeoutError": "a worker process did not answer for long",
    "PreemptionError": "a machine of it was taken away",
}
# Ray Train's own failures, which are no RayError.
_OF_RAY_TRAIN = ("WorkerGroupStartupFailedError", "WorkerHealthCheckTimeoutError", "PreemptionError")


class BodyFailed(Exception):
    """What a stage's body raised, in one line; picklable whatever it was."""


def carried(error: Exception) -> Exception:
    """The exception to send to the driver in place of `error`: an InputError, or a BodyFailed with one line."""
    root = root_cause(error)
    return root if isinstance(root, InputError) else BodyFailed(line(root))


def is_system_failure(error: BaseException) -> bool:
    """Whether Ray, a process or a machine failed, and not what the stage's body did."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayError):
        return not isinstance(error, RayTaskError)
    return type(error).__name__ in _OF_RAY_TRAIN


def of_passing_kind(error: BaseException) -> bool:
    """Whether what the worker raised may not come again: a connection that broke, or a time that ran out. A wrong
    file, a full disk or a loss that is not finite does."""
    if isinstance(error, OmniLoomError) or (isinstance(error, BodyFailed) and not _TYPED.match(str(error))):
        return False  # our own words are about what stays
    # What could not be carried between processes says its type, and its number, in its text.
    if number := _NUMBER.search(str(error)):
        return int(number[1]) in _PASSING_NUMBERS
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    text = str(error).removeprefix("RuntimeError: ")
    return bool(_PASSING.search(names) or _COLLATERAL.search(text) or _PASSING.match(text))


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised, out of all that was put around it; where it could not be carried, from the text of it."""
    chain = [error]
    while (inner := _inner(chain[-1])) is not None and inner not in chain:
        chain.append(inner)
    if type(chain[-1]).__name__ in _LOSSY:
        for outer in chain:
            if (found := _from_text(str(outer))) is not None:
                return found
    return chain[-1]


def _inner(error: BaseException) -> BaseException | None:
    fields = vars(error) if hasattr(error, "__dict__") else {}
    if failures := fields.get("worker_failures"):  # Ray Train: by rank
        return _first_failure([failures[rank] for rank in sorted(failures)])
    # RayTaskError; of Ray Train ControllerError, WorkerHealthCheckFailedError and UserExceptionWithTraceback.
    for name in ("cause", "controller_failure", "health_check_failure", "_base_exc"):
        if isinstance(fields.get(name), BaseException):
            return fields[name]
    if type(error).__name__ in ("UserCodeException", "RayDataUserCodeException"):
        return error.__cause__
    return None


def _first_failure(errors: list[BaseException]) -> BaseException:
    """The error of several ranks that is the cause: the others lost their connection to that rank."""
    roots = [root_cause(error) for error in errors]
    wrong = [root for root in roots if isinstance(root, InputError)]
    own = [root for root in roots if not _COLLATERAL.search(str(root))]
    return (wrong or own or roots)[0]


def _from_text(text: str) -> Exception | None:
    """The exception that the text of a traceback says was raised first."""
    for found in _RAISED.finditer(_plain(text)):
        kind, message = (found["kind"] or found["bare"]).rpartition(".")[2], found["message"] or ""
        if kind in _LOSSY:
            continue
        if kind == "InputError":
            field, message = split_field(message)
            return InputError(message, field=field)
        own = kind in ("BodyFailed", "OmniLoomError")
        return BodyFailed(message if own else f"{kind}: {message}" if message else kind)
    return None


def line(error: BaseException) -> str:
    """One line about an exception: its type and its first line, or our own words for one of Ray's."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("ray.") and kind.__name__ in _WORDS:
            return _WORDS[kind.__name__]
    if isinstance(error, BodyFailed | OmniLoomError):
        return str(error)
    lines = [part.strip() for part in _plain(str(error)).splitlines() if part.strip()]
    text = lines[0] if lines else ""
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
