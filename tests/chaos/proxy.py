"""A TCP proxy on 127.0.0.1 in front of a server, which can be made to refuse, to break connections, to answer 503 and
to be slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SLOW_SECONDS = 1.5


class Proxy:
    """`mode` is `well`, `refuses`, `breaks` (within an answer), `busy` or `slow`."""

    def __init__(self, port: int):
        self.target, self.mode, self.port = port, "well", 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, daemon=True).start()
        self._ready.wait()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self.mode == "busy":
                await reader.read(65536)
                writer.write(_BUSY)
                await writer.drain()
            elif self.mode != "refuses":
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
                await asyncio.gather(self._copy(reader, to_writer), self._copy(to_reader, writer, True))
                to_writer.close()
        writer.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool = False) -> None:
        try:
            while data := await source.read(65536):
                if self.mode in ("refuses", "busy"):
                    break
                if self.mode == "slow" and answers:
                    await asyncio.sleep(_SLOW_SECONDS)
                if self.mode == "breaks" and answers:
                    target.write(data[: len(data) // 2])
                    break
                target.write(data)
                await target.drain()
        finally:
            target.close()
