"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). In: JSON objects. Out: bytes."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from omniloom.stages.serving.errors import api_error

_log = logging.getLogger("omniloom.serving")
DONE = b"data: [DONE]\n\n"


def server_sent(value: dict[str, Any], named: bool = False) -> bytes:
    """One event; `named` by the object's `type`."""
    name = f"event: {value['type']}\n" if named else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


async def begun(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, the first of them waited for: what is raised before it can still be answered with a status. What is
    raised later is the last event."""
    try:
        first = await anext(events)
    except BaseException:
        await _close(events)
        raise
    return _from(first, events)


async def _from(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for event in events:
            yield event
    except Exception as error:
        _log.exception("a stream ended early")
        yield server_sent(api_error(error).body)
    finally:
        await _close(events)


async def _close(events: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(RuntimeError):  # it is running, and being cancelled
        await events.aclose()  # type: ignore[attr-defined]
