"""Dynamic batching: jobs of many callers, computed together where they can be. In: jobs on an event loop, and a
function that computes a batch on a thread. Out: for each job its events, as they are made.

While a batch is computed, jobs queue up; the next batch is the oldest of them with all that go together with it, up to
`most`. Callers of a batch that ask again at once would come just too late for the next one, which the few that waited
would have to themselves: behind a batch of several, the next one waits until as many are there as there were callers,
for a quarter of the time that the batch took at most. A caller alone never waits.

A job whose caller has gone is not computed; one that is being computed ends with its batch, or at the next step where
nobody of its batch is left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from omniloom.stages.serving.jobs import Event, Job, Made, Unavailable

_PATIENCE = 0.25  # of the time that the last batch took
_LONGEST = 0.25  # seconds


class Abandoned(Exception):
    """Nobody waits for what is computed."""


class Ticket:
    """A job in the queue, and the way of its events back to the caller's loop."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop):
        self.job, self.gone = job, False
        self._loop, self._events = loop, asyncio.Queue[Event | BaseException]()

    def tell(self, event: Event | BaseException) -> None:
        """From the computing thread; an exception or `Made` is the last."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event


class Batcher:
    """`make` computes the jobs of some tickets, which go together, and tells each ticket its `Made`."""

    def __init__(self, make: Callable[[Sequence[Ticket]], None], most: int):
        self.make, self.most = make, most
        self._queue: list[Ticket] = []
        self._callers, self._until = 0, 0.0  # how many may be there, and the time until which they are waited for
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The job's events, of which `Made` is the last. What `make` raises is raised here."""
        ticket = Ticket(job, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise Unavailable("the model is being shut down")
            self._queue.append(ticket)
            self._changed.notify()
        try:
            while True:
                event = await ticket.next()
                yield event
                if isinstance(event, Made):
                    return
        finally:
            ticket.gone = True

    def close(self) -> None:
        """End the thread, behind the batch that it is computing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            try:
                self.make(batch)
            except Abandoned:
                pass
            except BaseException as error:
                for ticket in batch:
                    ticket.tell(error)
            now = time.monotonic()
            self._callers = min(self.most, len(batch) + len(self._queue)) if len(batch) > 1 else 0
            self._until = now + min(_LONGEST, _PATIENCE * (now - began))

    def _next(self) -> list[Ticket] | None:
        """The next batch; None when closed."""
        with self._changed:
            while not (self._closed or self._ready()):
                self._changed.wait(self._left() if self._waiting() else None)
            if self._closed:
                for ticket in self._queue:
                    ticket.tell(Unavailable("the model is being shut down"))
                return None
            waiting = self._waiting()
            first = waiting[0].job.together
            batch = [ticket for ticket in waiting if ticket.job.together == first][: self.most]
            self._queue = [ticket for ticket in waiting if ticket not in batch]
            return batch

    def _ready(self) -> bool:
        waiting = len(self._waiting())
        return waiting > 0 and (waiting >= self._callers or not self._left())

    def _left(self) -> float:
        """Seconds that the callers of the last batch are still waited for."""
        return max(0.0, self._until - time.monotonic())

    def _waiting(self) -> list[Ticket]:
        return [ticket for ticket in self._queue if not ticket.gone]
