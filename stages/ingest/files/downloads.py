"""Downloads: files of the web, fetched politely and kept, so that no run asks for the same file twice.

In: URLs. Out: their content, or `MediaError` with the reason.

Polite. A machine opens at most `per_host` connections to a host, however many workers it has. A host that says
`Retry-After` is left alone by all of them for as long; one that is busy (429, 5xx) or lost is asked again after waits
that double, with some chance in them, a few times. What was received of a file is not asked for again where the server
knows ranges. The `User-Agent` says who asks.

Kept. What came lies in the cache by the URL's SHA-256, and so does a server's word that there is no such file; what
failed in a way that passes is tried again by the next run. A killed run goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omniloom.infra import storage
from omniloom.infra.secrets import redact_uris
from omniloom.stages.data.media.limits import MediaError, one_line

if TYPE_CHECKING:
    import requests

TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled from try to try
LONGEST_WAIT = 120.0  # that a host may ask for; a longer one is left to the next run
_BLOCK = 1 << 18
_GONE = {400, 401, 403, 404, 405, 406, 410, 414, 451}
_LOOK_AGAIN = 0.05  # seconds between looks for a free connection


@dataclass(frozen=True)
class Downloader:
    """`cache` is a folder or URI; `limit` the most bytes of a file, `timeout` the seconds that one try may take."""

    cache: str
    limit: int
    timeout: float
    per_host: int
    user_agent: str

    def get(self, url: str) -> bytes:
        """The content of a file, from the cache if it is there."""
        key = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        kept = storage.join(self.cache, key[:2], key)
        with contextlib.suppress(FileNotFoundError):
            return self._bounded(storage.read_bytes(kept))
        if failed := storage.read_json(f"{kept}.json"):
            raise MediaError(str(failed.get("code")), f"{failed.get('message')} (as an earlier run was told)")
        try:
            data = self._fetched(url)
        except _Gone as error:
            said = {"url": redact_uris(url), "code": "missing_file", "message": str(error)}
            storage.write_bytes(f"{kept}.json", json.dumps(said).encode())
            raise MediaError("missing_file", str(error)) from None
        storage.write_bytes(kept, data)
        return data

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self.limit:
            raise MediaError("too_large", f"more than {self.limit} bytes")
        return data

    def _fetched(self, url: str) -> bytes:
        host, part = _Host(_name(url), self.per_host), _Part()
        for tried in range(1, TRIES + 1):
            try:
                with host.connection():
                    try:
                        return self._once(url, part)
                    except _Busy as busy:  # told to the others before one of them can have this connection
                        host.leave_alone(busy.wait)
                        raise
            except _Busy as busy:
                wait = FIRST_WAIT * 2 ** (tried - 1) * random.uniform(0.5, 1.5) if busy.wait is None else busy.wait
                if tried == TRIES or wait > LONGEST_WAIT:
                    said = f"tried {tried} times" if wait <= LONGEST_WAIT else f"asks to wait for {wait:.0f} s"
                    raise MediaError("unreadable", f"{redact_uris(url)[:200]}: {busy} ({said})") from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _once(self, url: str, part: _Part) -> bytes:
        """One try. What came of the file stays in `part`."""
        import requests

        until = time.monotonic() + self.timeout
        headers = {"User-Agent": self.user_agent, "Accept-Encoding": "identity", **part.headers()}
        try:
            with _session().get(url, headers=headers, stream=True, timeout=self.timeout) as response:
                response.raw.enforce_content_length = False  # what came is kept; `check` tells whether it is all
                part.begin(response)
                for block in response.iter_content(_BLOCK):
                    part.data += block
                    if len(part.data) > self.limit:
                        raise MediaError("too_large", f"more than {self.limit} bytes")
                    if time.monotonic() > until:
                        raise _Busy(f"not done within {self.timeout:g} s")
                part.check(response)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError) as error:
            raise _Gone(f"is no URL: {one_line(error)}") from None
        except requests.exceptions.TooManyRedirects:
            raise _Gone("redirects without end") from None
        except requests.exceptions.RequestException as error:
            raise _Busy(f"{type(error).__name__}: {one_line(error)[:200]}") from None
        return bytes(part.data)


def _name(url: str) -> str:
    """The host and port of a URL, as locks are called after."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError as error:
        raise _Gone(f"is no URL: {error}") from None


class _Gone(Exception):
    """There is no such file, and asking again is of no use."""


class _Busy(Exception):
    """Another try may go well, after `wait` seconds where the host says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class _Part:
    """What has come of a file, and by what the server knows that it is still the same."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.version = ""

    def headers(self) -> dict[str, str]:
        return {"Range": f"bytes={len(self.data)}-", "If-Range": self.version} if self.data and self.version else {}

    def begin(self, response: requests.Response) -> None:
        """Look at the answer's head, before its body. Raises `_Gone` or `_Busy`."""
        status = response.status_code
        if status in _GONE:
            raise _Gone(f"HTTP {status} {response.reason}")
        if status == 416 and self.data:
            self.data.clear()
            raise _Busy("the file has changed meanwhile", 0.0)
        if status >= 400:
            raise _Busy(f"HTTP {status} {response.reason}", _retry_after(response.headers.get("Retry-After")))
        if status != 206 or not self.headers():
            self.data.clear()
        etag = response.headers.get("ETag", "")
        self.version = etag if etag and not etag.startswith("W/") else ""

    def check(self, response: requests.Response) -> None:
        """Whether all of the body came."""
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and response.raw.tell() < int(length):
            raise _Busy(f"ended after {len(self.data)} bytes")


def _retry_after(said: str | None) -> float | None:
    """Seconds, or a date, as RFC 9110 has it."""
    if not said:
        return None
    if said.strip().isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


_thread = threading.local()


def _session() -> requests.Session:
    """Each thread's own, which keeps connections open and no cookies."""
    import requests
    from requests.cookies import RequestsCookieJar

    if not hasattr(_thread, "session"):
        _thread.session = requests.Session()
        _thread.session.max_redirects = 10
        _thread.session.cookies = RequestsCookieJar(policy=_no_cookies())
    return _thread.session


def _no_cookies():
    from http.cookiejar import DefaultCookiePolicy

    return DefaultCookiePolicy(allowed_domains=[])


class _Host:
    """What this machine's processes know of a host: files in its cache folder. A lock that a dead process held is
    free."""

    def __init__(self, name: str, connections: int):
        self.name, self.connections = name, connections

    @cached_property
    def folder(self) -> Path:
        folder = storage.cache_folder() / "hosts" / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """One of the host's connections, once one is free and the host may be asked."""
        handle = self._free()
        try:
            while (left := self._left_alone()) > 0:
                time.sleep(min(left, LONGEST_WAIT))
            yield
        finally:
            os.close(handle)

    def _free(self) -> int:
        while True:
            for number in random.sample(range(self.connections), self.connections):
                handle = os.open(self.folder / str(number), os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return handle
                except OSError:
                    os.close(handle)
            time.sleep(_LOOK_AGAIN * random.uniform(0.5, 1.5))

    def _left_alone(self) -> float:
        """Seconds for which nobody is to ask."""
        try:
            return (self.folder / "until").stat().st_mtime - time.time()
        except FileNotFoundError:
            return 0.0

    def leave_alone(self, seconds: float | None) -> None:
        """Nobody is to ask for as long, or for longer if that was said before. What is too long to wait for, or not
        said, is the file's own matter."""
        if seconds is None or not self._left_alone() < seconds <= LONGEST_WAIT:
            return
        file, until = self.folder / "until", time.time() + seconds
        file.open("ab").close()  # `touch` would end the wait that is there, for a moment
        os.utime(file, (until, until))
