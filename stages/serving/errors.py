"""Errors as OpenAI's API tells them. In: what went wrong. Out: a status and
{"error": {"message", "type", "param": the field that is wrong or null, "code"}}.
"""

from __future__ import annotations

from typing import Any

from omniloom.stages.inference.options import OPTIONS
from omniloom.stages.serving.jobs import Overloaded, Refused, Unavailable

_RETRY_SECONDS = 5  # until a model may be back
# Fields of requests that an option or a field of a job has another name in.
_FIELDS = {"max_new_tokens": "max_tokens", "interim": "partial_images", "predictor": "sampler"}


def field_of(name: str) -> str:
    """The field of a request that an option stands in: its name on the command line."""
    option = OPTIONS.get(name)
    usual = option.flags[0].lstrip("-").replace("-", "_") if option else name
    return _FIELDS.get(name, usual)


class ApiError(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, after: int = 0):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.after = status, message, param, code, after

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.after)} if self.after else {}


def wrong(field: str | None, message: str, status: int = 400) -> ApiError:
    return ApiError(status, f"{field}: {message}" if field else message, field, "invalid_value")


def api_error(error: BaseException) -> ApiError:
    """What a request is answered with for anything that was raised."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return wrong(field_of(error.field) if error.field else None, error.message)
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="queue_full", after=error.after)
    if isinstance(error, Unavailable):
        return ApiError(503, str(error), code="unavailable", after=_RETRY_SECONDS)
    if isinstance(error, TimeoutError):
        return ApiError(504, str(error) or "the request took too long", code="timeout")
    return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error")
