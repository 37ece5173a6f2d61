"""The way to the model that a server's endpoints and its page share: the queue's limit and the time limit. In: jobs.
Out: their events.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from omniloom.stages.serving.jobs import Event, Facts, Job, Made, Overloaded
from omniloom.stages.serving.limits import Limits

Engine = Callable[[Job], AsyncGenerator[Event, None]]
_RECENT = 0.2  # weight of the last request in the mean


class Service:
    """`engine` gives a job's events and drops the job where it is closed before the last. `workers`: how many models
    answer, each a batch at once."""

    def __init__(self, engine: Engine, facts: Facts, limits: Limits, workers: int = 1):
        self.engine, self.facts, self.limits = engine, facts, limits
        self.capacity = workers * limits.max_batch + limits.max_queue
        self.busy = 0  # jobs that wait or are computed
        self._seconds = 1.0  # that a request takes, about

    @contextlib.contextmanager
    def _room(self, count: int) -> Iterator[None]:
        if self.busy + count > self.capacity:
            raise Overloaded(math.ceil(self._seconds))
        began = time.monotonic()
        self.busy += count
        try:
            yield
        finally:
            self.busy -= count
            self._seconds += _RECENT * (time.monotonic() - began - self._seconds)

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The job's events, `Made` the last. Overloaded, TimeoutError, and what the engine raises."""
        with self._room(1):
            async for event in self._timed(job):
                yield event

    async def run_all(self, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of all of them as they come, each with the number of its job; where one fails, it ends."""
        with self._room(len(jobs)):
            told: asyncio.Queue[Any] = asyncio.Queue()
            tasks = [asyncio.ensure_future(self._forward(number, job, told)) for number, job in enumerate(jobs)]
            try:
                for _ in jobs:
                    while (told_by := await told.get())[1] is not None:
                        yield told_by
                    await tasks[told_by[0]]  # raises what it failed by
            finally:
                for task in tasks:
                    task.cancel()

    async def _forward(self, number: int, job: Job, told: asyncio.Queue) -> None:
        try:
            async with contextlib.aclosing(self._timed(job)) as events:
                async for event in events:
                    told.put_nowait((number, event))
        finally:
            told.put_nowait((number, None))

    async def make(self, jobs: Sequence[Job]) -> list[Made]:
        """All of them, or what the first raises that fails; the others are then given up."""
        with self._room(len(jobs)):
            tasks = [asyncio.ensure_future(self._made(job)) for job in jobs]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def _made(self, job: Job) -> Made:
        async with contextlib.aclosing(self._timed(job)) as events:
            async for event in events:
                if isinstance(event, Made):
                    return event
        raise RuntimeError("a job ended without an answer")

    async def _timed(self, job: Job) -> AsyncGenerator[Event, None]:
        end = time.monotonic() + self.limits.timeout
        async with contextlib.aclosing(self.engine(job)) as events:
            while True:
                try:
                    event = await asyncio.wait_for(anext(events), end - time.monotonic())
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise TimeoutError(f"the request took more than {self.limits.timeout:g} s") from None
                yield event
