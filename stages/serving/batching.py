"""Dynamic batching: jobs of many callers, computed together where they can be. In: jobs on an event loop, and a
function that computes a batch on a thread. Out: for each job its events, as they are made.

While a batch is computed, jobs queue up; the next batch is the oldest of them with all that go together with it, up to
`most`. Callers of a batch that ask again at once would come just too late for the next one, which the few that waited
would have to themselves: where several asked for what goes together, the next batch of it waits until as many are there
as there were, as long as they keep coming. From one to the next it waits a quarter of the time that the last batch
took, and in all that time at most, neither more than 0.25 s. A caller alone never waits.

A job whose caller has gone is not computed; one that is being computed ends with its batch, or at the next step where
nobody of its batch is left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from omniloom.stages.serving.jobs import Event, Job, Made, Unavailable

_PATIENCE = 0.25  # of the time that the last batch took, for the next caller
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
        self._together: tuple = ()  # of the last batch
        self._callers = 0  # that may ask for more of it
        self._patience, self._until, self._end = 0.0, 0.0, 0.0  # for the next of them; until when, and for all of them
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
            if job.together == self._together and self._left():
                self._until = min(self._end, time.monotonic() + self._patience)
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
            with self._changed:
                self._expect(batch, time.monotonic() - began)

    def _expect(self, batch: Sequence[Ticket], seconds: float) -> None:
        """Those who asked for a batch, which took so long, and for more of it, to ask again."""
        self._together, now = batch[0].job.together, time.monotonic()
        there = len(batch) + sum(ticket.job.together == self._together for ticket in self._waiting())
        self._callers = min(self.most, there) if there > 1 else 0
        self._patience = min(_LONGEST, _PATIENCE * seconds)
        self._until, self._end = now + self._patience, now + min(_LONGEST, seconds)

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
        waiting = [ticket.job.together for ticket in self._waiting()]
        if not waiting or waiting[0] != self._together:  # what does not go with the last batch waits for nobody
            return bool(waiting)
        return waiting.count(self._together) >= self._callers or not self._left()

    def _left(self) -> float:
        """Seconds that the next of the last batch's callers is still waited for."""
        return max(0.0, self._until - time.monotonic())

    def _waiting(self) -> list[Ticket]:
        return [ticket for ticket in self._queue if not ticket.gone]
