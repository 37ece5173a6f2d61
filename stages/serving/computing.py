"""A worker's side of batching: batches computed on a thread of their own, one after another. In: a batch's jobs on an
event loop. Out: their events there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from omniloom.stages.serving.jobs import Event, Job


class Abandoned(Exception):
    """Nobody waits for what is computed."""


class Ticket:
    """A job of a batch as the computing thread sees it. `gone`: nobody waits for it."""

    def __init__(self, job: Job, tell: Callable[[Event], object]):
        self.job, self.tell, self.gone = job, tell, False


class Computer:
    """`make` computes the jobs of some tickets, which go together, tells each its `Made`, and raises `Abandoned` where
    all have gone; `check` raises `Refused`. It is a `stages.serving.batching.Worker`."""

    def __init__(self, make: Callable[[Sequence[Ticket]], None], check: Callable[[Job], object]):
        self._make, self._check = make, check
        self._thread = ThreadPoolExecutor(1, "batches")
        self._batches: dict[int, list[Ticket]] = {}

    async def check(self, job: Job) -> None:
        self._check(job)

    async def events(self, number: int, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
        loop, told = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event] | None]()

        def tell(place: int, event: Event) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (place, event))

        tickets = [Ticket(job, partial(tell, place)) for place, job in enumerate(jobs)]
        self._batches[number] = tickets
        computing = loop.run_in_executor(self._thread, self._compute, tickets)
        computing.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while one := await told.get():
                yield one
            await computing
        finally:
            self._batches.pop(number, None)
            for ticket in tickets:
                ticket.gone = True

    def leave(self, number: int, place: int) -> None:
        if tickets := self._batches.get(number):
            tickets[place].gone = True

    async def recovered(self) -> None:
        """At once: a batch that failed leaves nothing behind."""

    def _compute(self, tickets: Sequence[Ticket]) -> None:
        try:
            if not all(ticket.gone for ticket in tickets):
                self._make(tickets)
        except Abandoned:
            pass
