"""MLflow's server as this process. In: the settings of a database and a socket that listens. Out: MLflow's pages and
API on it, until Ctrl-C.

`mlflow server` is three processes one after the other that each import MLflow, and job queues for judges of language
models beside them; here it is imported once, and the store's URI, which may hold a password, is on no command line.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.failures import short

_App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable]
# MLflow's assistant, which asks for a language model, opens by itself in a browser that has not seen it. A card of
# pictures begins with all of its run's parameters, which leave the pictures no room, and centres them in a frame that
# is higher than the card.
_MARK = (
    b'<script>localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")</script>'
    b"<style>div[tooltip-data-state] > div:has(> label) + div "
    b"{display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 1; overflow: hidden} "
    b"div:has(> .rc-image) {align-items: flex-start !important}</style>"
)


def run(settings: TrackingSettings, listening: socket.socket) -> None:
    """Become the server, until the process is told to end."""
    os.environ |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": settings.uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": settings.artifact_root or "",
    }
    listening.set_inheritable(True)
    where = ["--fd", str(listening.fileno()), "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", *where, "--factory", f"{__name__}:application"]
    os.execv(sys.executable, command)


def application() -> _App:
    """MLflow's, of the store that the environment names. Ends the process where that does not answer."""
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR

    uri, root = os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"] or None
    os.environ |= {BACKEND_STORE_URI_ENV_VAR: uri, SERVE_ARTIFACTS_ENV_VAR: "true"}
    if root:
        os.environ[ARTIFACT_ROOT_ENV_VAR] = root
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow to itself
        from mlflow.server.fastapi_app import app
        from mlflow.server.handlers import initialize_backend_stores

    try:
        initialize_backend_stores(uri, uri, root)
    except Exception as error:  # a driver, a schema, a disk: each has a class of its own
        failure = InputError(f"{redact(uri)} does not answer: {short(error)}", field="tracking.uri")
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
    return with_mark(app)


def with_mark(app: _App) -> _App:
    """The application, whose page leaves the assistant closed until it is asked for, and pictures their room."""

    async def answer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> Any:
        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":  # its length is another one now
                message = {**message, "headers": [h for h in message["headers"] if h[0].lower() != b"content-length"]}
            elif message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"").replace(b"<head>", b"<head>" + _MARK, 1)}
            await send(message)

        if scope["type"] != "http" or scope["path"] != "/":
            return await app(scope, receive, send)
        # A browser may know the page as it was without the mark.
        asked = [header for header in scope["headers"] if not header[0].lower().startswith(b"if-")]
        return await app({**scope, "headers": asked}, receive, marked)

    return answer
