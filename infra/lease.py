"""Lease: of several runs that want the same artifact, one makes it and the others wait.

A lease is a file that only one process can create. Its owner renews it from a thread; one that was not renewed for
its `expiry`, or whose process has ended on this machine, belongs to a dead owner and is taken over. Machines that
share a storage need clocks that agree within a fraction of that.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from infra import storage

EXPIRY_SECONDS = 60.0
RENEWAL_SECONDS = 10.0


class Lease:
    """`with Lease(uri) as lease:` waits until the lease is ours; renewed until the block ends.

    `on_wait` is called once, with the content of the lease that is waited for, or None where it is gone by then.
    """

    def __init__(self, uri: str, on_wait=None, expiry: float = EXPIRY_SECONDS, renewal: float = RENEWAL_SECONDS):
        self.uri, self.on_wait, self.expiry, self.renewal = uri, on_wait, expiry, renewal
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()

    def _content(self) -> bytes:
        return json.dumps({"owner": self.owner, "renewed": time.time(), "expiry": self.expiry}).encode()

    def try_acquire(self) -> bool:
        if storage.create_exclusively(self.uri, self._content()):
            return True
        if not _expired(storage.read_json(self.uri)):
            return False
        # Dead owner. Of several waiters the one that holds the lease's own lease takes over; that one can die too.
        claim = Lease(f"{self.uri}.claim", expiry=self.expiry)
        if not claim.try_acquire():
            return False
        try:
            if not _expired(storage.read_json(self.uri)):  # another waiter has taken it since we looked
                return False
            storage.write_bytes(self.uri, self._content())
            return True
        finally:
            claim._release()

    def __enter__(self) -> Lease:
        waited = False
        while not self.try_acquire():
            if not waited and self.on_wait:
                self.on_wait(storage.read_json(self.uri))
            waited = True
            time.sleep(min(1.0, self.renewal / 2))
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()
        return self

    def _renew(self) -> None:
        while not self._stop.wait(self.renewal):
            with contextlib.suppress(Exception):  # a storage that fails once must not end the renewals
                if self._is_ours():
                    storage.write_bytes(self.uri, self._content())

    def _is_ours(self) -> bool:
        """False where it was taken over, as from a machine that slept longer than the expiry."""
        return (storage.read_json(self.uri) or {}).get("owner") == self.owner

    def _release(self) -> None:
        if self._is_ours():
            storage.remove(self.uri)

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        self._release()


def _expired(held: dict | None) -> bool:
    if held is None:
        return False
    host, pid, _ = held["owner"].split(":")
    if host == socket.gethostname() and not _lives(int(pid)):
        return True  # killed on this machine: nobody has to wait for the expiry
    return time.time() - held["renewed"] > held["expiry"]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
