"""A server's endpoints as one ASGI app. In: a `Service`, a token. Out: the app, which knows nothing of Ray.

POST /v1/images/generations, /v1/images/edits, /v1/chat/completions
GET  /v1/models, /v1/models/NAME, /health
/    the page (`stages.serving.page`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from omniloom.stages.serving import chat, edits, images
from omniloom.stages.serving.doors import Hosts, Policy, Sizes, Token
from omniloom.stages.serving.errors import ApiError, api_error, wrong
from omniloom.stages.serving.events import begun
from omniloom.stages.serving.fields import check_model
from omniloom.stages.serving.jobs import Unavailable
from omniloom.stages.serving.service import Service

_log = logging.getLogger("omniloom.serving")
Healthy = Callable[[], Awaitable[bool]]


def make_app(
    service: Service,
    healthy: Healthy,
    token: str | None = None,
    hosts: frozenset[str] = frozenset(),
    page: Callable[[FastAPI, Service], FastAPI] | None = None,
) -> Any:
    """`healthy` says whether the model answers. `hosts`: the names that requests may call this server by; any where
    there are none. `page` adds one to the app."""
    app = FastAPI(title="OmniLoom", docs_url=None, redoc_url=None)  # those pages come from elsewhere
    _answer_errors(app)
    _add_endpoints(app, service, healthy)
    app = page(app, service) if page else app
    return Policy(Hosts(Token(Sizes(app, service.limits.body_bytes), token), hosts))


def _add_endpoints(app: FastAPI, service: Service, healthy: Healthy) -> None:
    born = int(time.time())
    model = {"id": service.facts.name, "object": "model", "created": born, "owned_by": "omniloom"}

    @app.post("/v1/images/generations")
    async def generations(request: images.ImagesRequest) -> Response:
        return await _respond(images, request, service)

    @app.post("/v1/images/edits")
    async def edit(request: Request) -> Response:
        parsed, shown = await edits.read(request, service.limits)
        return await _respond(images, parsed, service, shown)

    @app.post("/v1/chat/completions")
    async def completions(request: chat.ChatRequest) -> Response:
        return await _respond(chat, request, service)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_model(name, service.facts)
        return model

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(path: str, request: Request) -> None:
        raise ApiError(404, f"there is no {request.method} /v1/{path}", code="not_found")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        if not await healthy():
            raise api_error(Unavailable("the model does not answer"))
        return {"status": "ok", "model": service.facts.name, "busy": service.busy, "capacity": service.capacity}


async def _respond(endpoint: Any, request: Any, service: Service, *more: Any) -> Response:
    try:
        return await _answer(endpoint, request, service, *more)
    except Exception as error:
        told = api_error(error)
        if told.status == 500:
            _log.exception("a request failed")
        raise told from error


async def _answer(endpoint: Any, request: Any, service: Service, *more: Any) -> Response:
    if not request.stream:
        return JSONResponse(await endpoint.answer(request, service, *more))
    events: AsyncIterator[bytes] = await begun(endpoint.stream(request, service, *more))
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _answer_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        told = _http_error(error) if isinstance(error, HTTPException) else api_error(error)
        return JSONResponse(told.body, told.status, told.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        told = _validation_error(error)
        return JSONResponse(told.body, told.status)

    app.add_exception_handler(ApiError, answer)
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, invalid)


def _http_error(error: HTTPException) -> ApiError:
    if isinstance(error.__cause__, ApiError):  # what a body was refused by while it was read
        return error.__cause__
    return ApiError(error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None)


def _validation_error(error: RequestValidationError) -> ApiError:
    """The first of what is wrong, by its field."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="bad_json")
    known = first["type"] == "extra_forbidden"
    return wrong(".".join(place) or None, "is no field of this endpoint" if known else _lower(first["msg"]))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
