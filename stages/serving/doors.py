"""What stands before a server's endpoints, as ASGI middleware: whose requests are answered, and how large they may be.

Written against ASGI itself, not Starlette's base class, which would read streams ahead and hide that a client has gone.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse

from omniloom.stages.serving.errors import ApiError, api_error

App = Callable[[Any, Any, Any], Awaitable[None]]
_OPEN = ("/health",)  # to everybody: a load balancer has no token
# Scripts and styles of the page's library stand in its HTML; pictures are shown from memory. Nothing comes from others.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


def _header(scope: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def _refuse(error: ApiError, scope: Any, receive: Any, send: Any, **headers: str) -> None:
    await JSONResponse(error.body, error.status, {**error.headers, **headers})(scope, receive, send)


class Hosts:
    """Answers requests that name this server's own host alone: a page of others, whose name was made to point here,
    would otherwise speak for the person who looks at it."""

    def __init__(self, app: App, names: frozenset[str]):
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            host = _header(scope, b"host")
            name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
            if self.names and name not in self.names:
                await _refuse(ApiError(421, f"host: this server is not {name!r}", "host"), scope, receive, send)
                return
        await self.app(scope, receive, send)


class Token:
    """Answers requests with the token alone: `Authorization: Bearer TOKEN`, or, as browsers ask a person for it,
    the password of Basic with any name."""

    def __init__(self, app: App, token: str | None):
        self.app, self.token = app, token and token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self.token and scope["path"] not in _OPEN and not self._right(scope):
            message = "expected the server's token: Authorization: Bearer TOKEN"
            scheme = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="name: any, password: the token"'
            error = ApiError(401, message, code="invalid_api_key")
            await _refuse(error, scope, receive, send, **{"WWW-Authenticate": scheme})
            return
        await self.app(scope, receive, send)

    def _right(self, scope: Any) -> bool:
        scheme, _, given = _header(scope, b"authorization").partition(" ")
        told = given.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                told = base64.b64decode(told, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        return scheme.lower() in ("bearer", "basic") and hmac.compare_digest(told, self.token or b"")


class Sizes:
    """Refuses bodies of more than `most` bytes, announced or not."""

    def __init__(self, app: App, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        error = ApiError(413, f"the request has more than {self.most} bytes", code="too_large")
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self.most:
            await _refuse(error, scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise error
            return message

        try:
            await self.app(scope, counted, send)
        except ApiError as raised:
            await _refuse(api_error(raised), scope, receive, send)


class Policy:
    """Tells browsers to load nothing from elsewhere."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self.app(scope, receive, told)
