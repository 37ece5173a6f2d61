"""Dynamic batching: jobs of many callers, computed together where they can be. In: jobs on an event loop, and workers,
of which each computes a batch at once. Out: for each job its events, as they are made.

While batches are computed, jobs queue up; a worker that is free takes the oldest of them with all that go together
with it, up to `most`. Callers of a batch that ask again at once would come just too late for the next one, which the
few that waited would have to themselves: where several asked for what goes together, the next batch of it waits until
as many are there as there were, as long as they keep coming. From one to the next it waits a quarter of the time that
the last batch took, and in all that time at most, neither more than 0.25 s. A caller alone never waits.

A job whose caller has gone is not computed. Of one that is being computed the worker is told, and the batch is given up
where nobody of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from omniloom.stages.serving.jobs import Event, Job, Made

_PATIENCE = 0.25  # of the time that the last batch took, for the next caller
_LONGEST = 0.25  # seconds
_MOST_CHECKED = 4096  # choices that are remembered as possible


class Worker(Protocol):
    """What computes batches: `stages.serving.computing` here, `stages.serving.deployment` in another process."""

    async def check(self, job: Job) -> None:
        """`Refused` where the model cannot do such a job."""

    def events(self, number: int, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
        """Of a batch, by its number: events with the place of their job in it, of each job's `Made` is the last. Given
        up where it is closed before its end."""

    def leave(self, number: int, place: int) -> None:
        """Nobody waits for the job at this place any more."""

    async def recovered(self) -> None:
        """Returns once the worker, after a batch that failed, can do another."""


class _Ticket:
    """A job in the queue, and the way of its events to its caller."""

    def __init__(self, job: Job):
        self.job, self.gone = job, False
        self.batch: _Batch | None = None  # that it is computed in
        self._events = asyncio.Queue[Event | BaseException]()

    def tell(self, event: Event | BaseException) -> None:
        """An exception or `Made` is the last."""
        self._events.put_nowait(event)

    async def next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def leave(self) -> None:
        self.gone = True
        if self.batch:
            self.batch.left(self)


class _Batch:
    """Tickets at a worker."""

    def __init__(self, worker: Worker, number: int, tickets: Sequence[_Ticket]):
        self.worker, self.number, self.tickets = worker, number, tickets
        self._open = list(tickets)  # that are waited for and have no answer
        for ticket in tickets:
            ticket.batch = self
        self._computing = asyncio.ensure_future(self._compute())

    def left(self, ticket: _Ticket) -> None:
        """The caller of a ticket has gone."""
        if ticket in self._open:
            self._open.remove(ticket)
            if self._open:
                self.worker.leave(self.number, self.tickets.index(ticket))
            else:
                self._computing.cancel()

    async def end(self) -> bool:
        """Once all is told or given up: whether nothing failed."""
        await asyncio.wait([self._computing])
        if self._computing.cancelled():
            return True
        error = self._computing.exception()
        if error is None:
            return True
        for ticket in self._open:
            ticket.tell(error)
        return False

    async def _compute(self) -> None:
        async with contextlib.aclosing(self.worker.events(self.number, [t.job for t in self.tickets])) as events:
            async for place, event in events:
                ticket = self.tickets[place]
                ticket.tell(event)
                if isinstance(event, Made) and ticket in self._open:
                    self._open.remove(ticket)
        if self._open:
            raise RuntimeError("a batch ended without all of its answers")


class Batcher:
    """One queue of all workers'. All of it belongs to the event loop that `run` is first called on."""

    def __init__(self, workers: Sequence[Worker], most: int):
        self.workers, self.most = workers, most
        self._queue: list[_Ticket] = []
        self._together: tuple = ()  # of the last batch
        self._callers = 0  # that may ask for more of it
        self._patience, self._until, self._end = 0.0, 0.0, 0.0  # for the next of them; until when, and for all of them
        self._changed = asyncio.Event()
        self._numbers = itertools.count()
        self._possible: set[tuple] = set()
        self._working: list[asyncio.Task] = []

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The job's events, of which `Made` is the last. `Refused`, and what the worker raises."""
        if not self._working:
            self._working = [asyncio.ensure_future(self._work(worker)) for worker in self.workers]
        await self._check(job)
        ticket = _Ticket(job)
        self._queue.append(ticket)
        if job.together == self._together and self._left():
            self._until = min(self._end, time.monotonic() + self._patience)
        self._changed.set()
        try:
            while True:
                event = await ticket.next()
                yield event
                if isinstance(event, Made):
                    return
        finally:
            ticket.leave()

    async def _check(self, job: Job) -> None:
        """Before it waits for its turn; a worker is asked once for what many ask for."""
        if (asked := (job.together, job.interim > 0)) in self._possible:
            return
        await self.workers[0].check(job)
        if len(self._possible) == _MOST_CHECKED:
            self._possible.clear()
        self._possible.add(asked)

    async def _work(self, worker: Worker) -> None:
        while True:
            tickets = await self._next()
            began = time.monotonic()
            well = await _Batch(worker, next(self._numbers), tickets).end()
            self._expect(tickets, time.monotonic() - began)
            if not well:
                await worker.recovered()

    def _expect(self, tickets: Sequence[_Ticket], seconds: float) -> None:
        """Those who asked for a batch, which took so long, and for more of it, to ask again."""
        self._together, now = tickets[0].job.together, time.monotonic()
        there = len(tickets) + sum(ticket.job.together == self._together for ticket in self._waiting())
        self._callers = min(self.most, there) if there > 1 else 0
        self._patience = min(_LONGEST, _PATIENCE * seconds)
        self._until, self._end = now + self._patience, now + min(_LONGEST, seconds)
        self._changed.set()

    async def _next(self) -> list[_Ticket]:
        """The next batch."""
        while not self._ready():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._left() if self._waiting() else None)
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

    def _waiting(self) -> list[_Ticket]:
        return [ticket for ticket in self._queue if not ticket.gone]
