"""Fetching: one file from any URI that fsspec reaches, for kinds of sources whose rows name files by URI.

In: a URI, and what fetching it may cost. Out: the content, or `MediaError` with the reason. What fails in a way that
passes (a busy server, a lost connection, a timeout) is tried again, as below a root. Never more than the limit is held
in memory, whatever a server says of its file's size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

import fsspec
from fsspec.asyn import sync

from omniloom.infra import storage
from omniloom.infra.secrets import redact_uris
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files.retrying import patiently, unreadable

_BLOCK = 1 << 20


def fetch(uri: str, limit: int, timeout: float) -> bytes:
    """The content of the file at `uri`, of at most `limit` bytes. `timeout` are seconds that one try over HTTP may
    take; other filesystems have their own."""
    try:
        return patiently(lambda: _once(uri, limit, timeout))
    except Exception as error:
        raise unreadable(error, redact_uris(uri)) from error


def _once(uri: str, limit: int, timeout: float) -> bytes:
    fs, path = storage.filesystem(uri)
    if uri.startswith(("http://", "https://")):
        return sync(fs.loop, _over_http, fs, path, limit, timeout)
    if storage.is_local(uri) and not stat.S_ISREG(os.stat(path).st_mode):
        raise MediaError("not_a_file", "is no regular file")  # a FIFO would be waited for
    with fs.open(path, "rb") as file:
        return _joined(iter(lambda: file.read(_BLOCK), b""), limit)


def _joined(blocks: Iterable[bytes], limit: int) -> bytes:
    data = bytearray()
    for block in blocks:
        data += block
        _check(data, limit)
    return bytes(data)


def _check(data: bytearray, limit: int) -> None:
    if len(data) > limit:
        raise MediaError("too_large", f"more than {limit} bytes")


async def _over_http(fs: fsspec.AbstractFileSystem, url: str, limit: int, timeout: float) -> bytes:
    """By the filesystem's own session, so that its settings hold. Its `open` asks for the file's facts first, which
    makes a busy server look like a missing file, and its `cat_file` reads whatever comes."""
    import aiohttp

    session = await fs.set_session()
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=timeout), **fs.kwargs) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(url)
        response.raise_for_status()
        data = bytearray()
        async for block in response.content.iter_chunked(_BLOCK):
            data += block
            _check(data, limit)
        return bytes(data)
