"""Lease: of several runs that want the same artifact, one makes it and the others wait.

A lease is a file that only one process can create. Its owner renews it from a thread; one that was not renewed for
`EXPIRY_SECONDS` belongs to a dead owner and is taken over.
"""
from __future__ import annotations

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
    """`with Lease(uri) as lease:` waits until the lease is ours; renewed until the block ends."""

    def __init__(self, uri: str, on_wait=None, expiry: float = EXPIRY_SECONDS, renewal: float = RENEWAL_SECONDS):
        self.uri, self.on_wait, self.expiry, self.renewal = uri, on_wait, expiry, renewal
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()

    def _content(self) -> bytes:
        return json.dumps({"owner": self.owner, "renewed": time.time(), "expiry": self.expiry}).encode()

    def try_acquire(self) -> bool:
        if storage.create_exclusively(self.uri, self._content()):
            return True
        try:
            held = storage.read_json(self.uri)
        except json.JSONDecodeError:  # caught between creation and content; the next look tells
            return False
        if held is None or time.time() - held["renewed"] <= held["expiry"]:
            return False
        # Dead owner. Of several waiters the one that creates the claim on this very owner takes over.
        claim = f"{self.uri}.claim-{held['owner'].replace('/', '_')}"
        if not storage.create_exclusively(claim, self._content()):
            return False
        storage.write_bytes(self.uri, self._content())
        storage.remove(claim)
        return True

    def __enter__(self) -> Lease:
        waited = False
        while not self.try_acquire():
            if not waited and self.on_wait:
                self.on_wait(storage.read_json(self.uri))
            waited = True
            time.sleep(min(1.0, self.renewal / 2))
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()
        return self

    def _renew(self) -> None:
        while not self._stop.wait(self.renewal):
            storage.write_bytes(self.uri, self._content())

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        storage.remove(self.uri)
