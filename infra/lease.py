"""Lease: of several runs that want the same artifact, one makes it and the others wait.

A lease is a file that only one process can create. Its owner renews it from a thread: the content changes. It belongs
to a dead owner, and is taken over, where its process has ended on this machine, or where a waiter has watched it for
its `expiry` by the waiter's own clock and seen no change: no two clocks are ever compared.

An owner that slept for longer than the expiry has lost its lease when it wakes. The next renewal tells it (`on_lost`),
and `require` is to be called before anything is published or cleared.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from omniloom.infra import owner, storage
from omniloom.infra.errors import OmniLoomError

EXPIRY_SECONDS = 60.0
RENEWAL_SECONDS = 10.0


class LeaseLost(OmniLoomError):
    """The lease belongs to another process now, which makes the same artifact."""


class WaitEnded(OmniLoomError):
    """Nobody wants the lease that was waited for any more."""


class Lease:
    """`with Lease(uri) as lease:` waits until the lease is ours; renewed until the block ends.

    `on_wait` is called once, with the content of the lease that is waited for, or None where it is gone by then.
    Waiting ends in `WaitEnded` where the event `give_up` is set.
    `on_lost` is called once, from the renewing thread, where a renewal finds that the lease is no longer ours.
    """

    def __init__(
        self,
        uri: str,
        on_wait: Callable | None = None,
        on_lost: Callable[[], None] | None = None,
        expiry: float = EXPIRY_SECONDS,
        renewal: float = RENEWAL_SECONDS,
        give_up: threading.Event | None = None,
    ):
        self.give_up = give_up or threading.Event()
        self.uri, self.on_wait, self.on_lost, self.expiry, self.renewal = uri, on_wait, on_lost, expiry, renewal
        self.owner = f"{owner.this_process()}:{uuid.uuid4().hex[:8]}"
        self._renewals = 0
        self.lost = threading.Event()  # set by the renewal that finds another owner
        self._stop = threading.Event()
        self._watch = _Watch()
        self._claim: Lease | None = None

    def _content(self) -> bytes:
        self._renewals += 1  # what a waiter sees change, whatever the clock does; the time is for people
        return json.dumps(
            {"owner": self.owner, "renewed": time.time(), "renewals": self._renewals, "expiry": self.expiry}
        ).encode()

    def _read(self) -> dict | None:
        """The lease as it is, None where there is none; a damaged one has an unknown owner, who may well renew it."""
        try:
            data = storage.read_bytes(self.uri)
        except FileNotFoundError:
            return None
        try:
            return {"owner": "", "expiry": self.expiry, **json.loads(data)}
        except (ValueError, TypeError):
            return {"owner": "", "expiry": self.expiry, "damaged": data}

    def try_acquire(self) -> bool:
        """One look, to be repeated: a dead owner of another machine is known by what does not change between looks."""
        if storage.create_exclusively(self.uri, self._content()):
            return True
        if not self._watch.is_dead(self._read()):
            return False
        # Dead owner. Of several waiters the one that holds the lease's own lease takes over; that one can die too.
        self._claim = self._claim or Lease(f"{self.uri}.claim", expiry=self.expiry)
        if not self._claim.try_acquire():
            return False
        try:
            if not self._watch.is_dead(self._read()):  # another waiter took it since we looked
                return False
            storage.write_bytes(self.uri, self._content())
            return True
        finally:
            self._claim._release()

    def __enter__(self) -> Lease:
        waited = False
        while not self.try_acquire():
            if not waited and self.on_wait:
                self.on_wait(self._read())
            waited = True
            if self.give_up.wait(min(1.0, self.renewal / 2)):
                raise WaitEnded(f"{self.uri} was waited for")
        self._keep()
        return self

    @contextlib.contextmanager
    def at_once(self) -> Iterator[bool]:
        """Without waiting: whether the lease is ours, and then until the block ends."""
        if not self.try_acquire():
            yield False
            return
        self._keep()
        try:
            yield True
        finally:
            self.__exit__()

    def _keep(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(self.renewal):
            with contextlib.suppress(Exception):  # a storage that fails once must not end the renewals
                asked = time.monotonic()
                if not self._is_ours():
                    break
                if time.monotonic() - asked < self.expiry / 4:  # else stopped in between: the answer is old, ask again
                    storage.write_bytes(self.uri, self._content())
        else:
            return
        self.lost.set()
        if self.on_lost:
            self.on_lost()

    def _is_ours(self) -> bool:
        """False where it was taken over, as from a machine that slept longer than the expiry."""
        return (self._read() or {}).get("owner") == self.owner

    def require(self) -> None:
        """Raise `LeaseLost` where the lease is no longer ours."""
        if not self._is_ours():
            raise LeaseLost(
                "another run has taken over what this one was making, as this one was not heard of for "
                f"{self.expiry:g} s; it was stopped, and the other goes on from where it had come to"
            )

    def _release(self) -> None:
        if self._is_ours():
            storage.remove(self.uri)

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        self._release()


class Holder:
    """Whose work a work folder's `state` is: asked by a worker that the owner's end may have left behind.

    Made when the worker starts, from what `Holder.write` and `Holder.new_attempt` noted; without a note nothing is
    asked.
    """

    def __init__(self, state: str):
        self.uri = _holder_uri(state)
        self._held = storage.read_json(self.uri)

    @staticmethod
    def write(state: str, owner: str) -> None:
        storage.write_json(_holder_uri(state), {"owner": owner})

    @staticmethod
    def new_attempt(state: str) -> None:
        """Workers that start from here on work in the folder, and those of an attempt before no longer."""
        held = storage.read_json(_holder_uri(state)) or {}
        storage.write_json(_holder_uri(state), {**held, "attempt": uuid.uuid4().hex})

    def require(self) -> None:
        """Raise `LeaseLost` where another run or attempt works in the folder now, or the owner's process has ended."""
        if self._held is None:
            return
        if storage.read_json(self.uri) != self._held or _process_ended(self._held.get("owner", "")):
            raise LeaseLost("the run that this worker belongs to is gone, or another goes on with its work")


def _holder_uri(state: str) -> str:
    return storage.join(state, "holder.json")


class _Watch:
    """What a waiter has seen of a lease, and for how long it has not changed."""

    def __init__(self):
        self._seen: dict | None = None
        self._looked = self._unchanged = 0.0

    def is_dead(self, held: dict | None) -> bool:
        """Whether the owner of the content just read is dead. None (no lease) belongs to nobody."""
        now, before = time.monotonic(), self._looked
        self._looked = now
        if held is None or held != self._seen:
            self._seen, self._unchanged = held, 0.0
        else:
            # A waiter that slept itself, perhaps with the owner, has not watched: no gap counts for more than a part.
            self._unchanged += min(now - before, held["expiry"] / 4)
        if held is None:
            return False
        return _process_ended(held["owner"]) or self._unchanged > held["expiry"]


def _process_ended(name: str) -> bool:
    return owner.lives(name.rpartition(":")[0]) is False
