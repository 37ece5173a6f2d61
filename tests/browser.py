"""A headless Chromium for tests: opens a page, says what stands on it, takes pictures of it.

It is driven by Chromium's own protocol over a websocket (https://chromedevtools.github.io/devtools-protocol/), so that
nothing has to be installed beside it. It reaches 127.0.0.1 and files alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-color-profile=srgb --remote-debugging-port=0"
).split()


class Page:
    """One tab of `width` x `height` CSS pixels. Methods wait for the browser's answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse):
        self._loop, self._socket, self._ids = loop, socket, itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict:
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict) -> dict:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self._socket.receive(), 60)).data)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:2000])
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str, ready: str = "document.readyState === 'complete'", seconds: float = 60) -> None:
        """Go to an address, and wait until the expression `ready` holds."""
        self.call("Page.navigate", url=address)
        self.wait(ready, seconds)

    def wait(self, ready: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"!!({ready})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{ready} does not hold after {seconds} s; the page says: {self.text[:2000]}")
            time.sleep(0.1)

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, a promise's awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    @property
    def text(self) -> str:
        return self.run("document.body ? document.body.innerText : ''")

    def click(self, words: str) -> None:
        """Click the innermost visible element whose text is `words`."""
        self.run(
            "(() => { const all = [...document.querySelectorAll('*')].filter("
            f"e => e.innerText && e.innerText.trim() === {json.dumps(words)} && e.offsetParent);"
            "all[all.length - 1].click(); })()"
        )

    def shoot(self, path: Path, whole: bool = False) -> Path:
        """A PNG of what is to be seen, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def overflowing(self) -> list[str]:
        """What reaches beyond the window's right edge: the element's tag, class and text."""
        return self.run(
            "[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 "
            "&& e.getBoundingClientRect().width > 0)"
            ".map(e => `${e.tagName}.${e.getAttribute('class')}: ${(e.textContent || '').slice(0, 60)}`)"
        )


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A tab of a Chromium of its own."""
    folder = Path(tempfile.mkdtemp(prefix="browser-"))
    process = subprocess.Popen(
        [PROGRAM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(folder / "DevToolsActivePort")
        session, socket = loop.run_until_complete(_connect(port))
        page = Page(loop, socket)
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        yield page
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _port(path: Path) -> int:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().strip()):
        if time.monotonic() > end:
            raise TimeoutError("Chromium does not start")
        time.sleep(0.05)
    return int(path.read_text().split()[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession(trust_env=False)
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        targets = await answer.json()
    address = next(target for target in targets if target["type"] == "page")["webSocketDebuggerUrl"]
    return session, await session.ws_connect(address, max_msg_size=0)
