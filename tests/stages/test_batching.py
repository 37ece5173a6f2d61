"""Batching over requests: who is computed with whom, and that nobody gets another answer by it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from serving_cases import OBJECTIVES, Engine, small_model

from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.serving.batching import Batcher
from omniloom.stages.serving.computing import Computer
from omniloom.stages.serving.jobs import Interim, Job, Made, Refused, Unavailable, Written


@pytest.fixture(scope="module")
def loom():
    return small_model()


async def last(engine, job: Job) -> Made:
    *_, made = [event async for event in engine(job)]
    return made


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_gets_what_it_would_get_alone(loom, objective):
    engine = Engine(loom)
    prompts = ["seven", "a handwritten two moving left", "", "a handwritten seven " * 4]
    shared = {"objective": objective, "num_steps": 5, "guidance_scale": 1.7}
    asked = [Job("draw", prompts[at % 4] or "x", seed=at, sampling=shared) for at in range(10)]
    asked.append(Job("draw", "other", seed=3, sampling={**shared, "num_steps": 2}))
    asked.append(Job("text", "a handwritten", seed=3, sampling={"temperature": 0.9}))

    async def all_at_once():
        return await asyncio.gather(*(last(engine, job) for job in asked))

    made = asyncio.run(all_at_once())
    assert max(engine.batches) >= 9 and sum(engine.batches) == 12 and len(engine.batches) <= 4
    for job, one in zip(asked[:11], made):
        visual = VisualSampling(**job.sampling)
        assert np.array_equal(one.parts[0], loom.text_to_image([job.prompt], visual, seeds=[job.seed])[0])
    alone = Engine(loom)
    assert asyncio.run(last(alone, asked[11])).parts == made[11].parts


def test_interim_pictures_are_for_those_who_ask(loom):
    engine = Engine(loom)
    asked = [Job("draw", "two", seed=at, sampling={"num_steps": 6}, interim=at) for at in (0, 2, 5)]

    async def all_at_once():
        async def events(job):
            return [event async for event in engine(job)]

        return await asyncio.gather(*(events(job) for job in asked))

    told = asyncio.run(all_at_once())
    assert [[event.step for event in events if isinstance(event, Interim)] for events in told] == [
        [],
        [2, 4],
        [1, 2, 3, 4, 5],
    ]


def test_what_a_model_cannot_do_is_refused_by_name(loom):
    engine = Engine(loom)
    with pytest.raises(Refused) as refused:
        asyncio.run(last(engine, Job("draw", "x", sampling={"size": (15, 16)})))
    assert refused.value.field == "size"


def nothing_wrong(job: Job) -> None:
    pass


class Recorder:
    """Computes nothing, for a while."""

    def __init__(self, seconds: float = 0.0, most: int = 4, workers: int = 1):
        self.batches: list[list[str]] = []
        self.seconds, self.gate = seconds, threading.Event()
        self.gate.set()
        self.checked: list[str] = []
        self.workers = [Computer(self.make, lambda job: self.checked.append(job.prompt)) for _ in range(workers)]
        self.batcher = Batcher(self.workers, most)

    def make(self, tickets):
        self.batches.append([ticket.job.prompt for ticket in tickets])
        self.gate.wait(10)
        time.sleep(self.seconds)
        for ticket in tickets:
            ticket.tell(Made((ticket.job.prompt,), 1, 1))


async def one(batcher: Batcher, prompt: str, **sampling) -> Made:
    *_, made = [event async for event in batcher.run(Job("draw", prompt, sampling=sampling))]
    return made


def test_those_who_wait_are_computed_together_and_no_more_than_fit():
    recorder = Recorder()

    async def run():
        recorder.gate.clear()
        first = asyncio.create_task(one(recorder.batcher, "first"))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(one(recorder.batcher, f"{at}", steps=at % 2)) for at in range(12)]
        await asyncio.sleep(0.05)
        recorder.gate.set()
        return await asyncio.gather(first, *others)

    made = asyncio.run(run())
    assert [one.parts[0] for one in made] == ["first", *map(str, range(12))]
    assert recorder.batches == [["first"], ["0", "2", "4", "6"], ["1", "3", "5", "7"], ["8", "10"], ["9", "11"]]


def test_callers_who_ask_again_are_waited_for():
    """Ten callers, each of whom asks again as soon as it is answered: no batches of one between those of nine."""
    recorder = Recorder(seconds=0.1, most=16)

    async def caller(name: str):
        for _ in range(5):
            await one(recorder.batcher, name)
            await asyncio.sleep(0.001 * int(name))

    async def run():
        await asyncio.gather(*(caller(str(at)) for at in range(10)))

    asyncio.run(run())
    sizes = [len(batch) for batch in recorder.batches]
    assert sum(sizes) == 50 and sizes[1:].count(10) >= 4 and len(sizes) <= 7, sizes


def test_callers_who_come_back_one_by_one_are_waited_for_as_long_as_they_keep_coming():
    """The last is there 0.18 s behind the batch, which took 0.4 s: more than is waited for any one of them."""
    recorder = Recorder(seconds=0.4, most=16)

    async def caller(at: int):
        for _ in range(4):
            await one(recorder.batcher, str(at))
            await asyncio.sleep(0.02 * at)

    async def run():
        await asyncio.gather(*(caller(at) for at in range(10)))

    asyncio.run(run())
    sizes = [len(batch) for batch in recorder.batches]
    assert sizes[-3:] == [10, 10, 10] and sum(sizes) == 40, sizes


def test_what_does_not_go_with_the_last_batch_waits_for_nobody():
    """Two callers whose jobs do not go together: neither's next job would join the other's."""

    async def run():
        recorder = Recorder(seconds=0.2)

        async def caller(steps: int):
            for _ in range(3):
                await one(recorder.batcher, f"{steps}", steps=steps)
                await asyncio.sleep(0.04)

        began = time.monotonic()
        await asyncio.gather(caller(1), caller(2))
        return time.monotonic() - began

    assert min(asyncio.run(run()) for _ in range(3)) < 6 * 0.2 + 0.12  # also beside what else the machine does


def test_a_caller_alone_is_not_kept_waiting():
    recorder = Recorder(seconds=0.2)

    async def run():
        began = time.monotonic()
        for _ in range(3):
            await one(recorder.batcher, "alone")
        return time.monotonic() - began

    assert asyncio.run(run()) < 0.75


def test_those_who_have_gone_are_not_computed():
    recorder = Recorder()

    async def run():
        recorder.gate.clear()
        first = asyncio.create_task(one(recorder.batcher, "first"))
        await asyncio.sleep(0.05)
        gone, stays = (asyncio.create_task(one(recorder.batcher, name)) for name in ("gone", "stays"))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        recorder.gate.set()
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert recorder.batches == [["first"], ["stays"]]


@pytest.mark.parametrize("task", ["draw", "text"])
def test_a_batch_that_nobody_waits_for_ends_at_the_next_step(loom, task):
    engine = Engine(loom)
    sampling = {"num_steps": 100_000} if task == "draw" else {"max_new_tokens": 100_000, "temperature": 5.0}

    async def run():
        task_ = asyncio.create_task(last(engine, Job(task, "two", sampling=sampling)))
        await asyncio.sleep(0.3)
        task_.cancel()
        began = time.monotonic()
        await last(engine, Job("draw", "two", sampling={"num_steps": 1}))
        return time.monotonic() - began

    assert asyncio.run(run()) < 5


def test_a_failure_is_told_to_its_batch_alone():
    def make(tickets):
        if tickets[0].job.prompt == "bad":
            raise RuntimeError("no")
        for ticket in tickets:
            ticket.tell(Made((), 1, 1))

    batcher = Batcher([Computer(make, nothing_wrong)], 4)

    async def run():
        with pytest.raises(RuntimeError, match="no"):
            await one(batcher, "bad")
        await one(batcher, "good")

    asyncio.run(run())


def test_what_goes_together_is_of_one_task_with_the_same_choices_and_pictures_or_none():
    """Interim pictures and streams are each job's own."""
    picture = np.zeros((2, 2, 3), np.uint8)
    job = Job("draw", "a", sampling={"num_steps": 3, "seed": 1})
    alike = [Job("draw", "b", seed=9, sampling={"seed": 1, "num_steps": 3}, interim=2), replace(job, stream=True)]
    others = [
        replace(job, task="interleave"), replace(job, images=(picture,)), replace(job, sampling={"num_steps": 3}),
        replace(job, sampling={"num_steps": 4, "seed": 1}),
    ]  # fmt: skip
    assert [one.together == job.together for one in (*alike, *others)] == [True] * 2 + [False] * 4


def test_workers_share_one_queue():
    """Four of eight are computed at once by each of two, and as soon as one is free it takes who waits."""
    recorder = Recorder(seconds=0.3, workers=2)

    async def run():
        began = time.monotonic()
        await asyncio.gather(*(one(recorder.batcher, f"{at}") for at in range(12)))
        return time.monotonic() - began

    assert asyncio.run(run()) < 0.88  # one worker takes 0.9
    assert sorted(map(len, recorder.batches)) == [4, 4, 4]


def test_what_cannot_be_done_is_told_while_others_are_computed_and_the_same_choices_are_checked_once():
    recorder = Recorder()

    def check(job):
        recorder.checked.append(job.prompt)
        if job.sampling.get("steps") == 2:
            raise Refused("no", "steps")

    recorder.workers[0]._check = check

    async def run():
        recorder.gate.clear()
        first = asyncio.create_task(one(recorder.batcher, "first", steps=1))
        await asyncio.sleep(0.05)
        with pytest.raises(Refused):
            await asyncio.wait_for(one(recorder.batcher, "bad", steps=2), 1)
        second = asyncio.create_task(one(recorder.batcher, "second", steps=1))
        await asyncio.sleep(0.05)
        recorder.gate.set()
        await asyncio.gather(first, second)

    asyncio.run(run())
    assert recorder.checked == ["first", "bad"] and recorder.batches == [["first"], ["second"]]


def test_a_worker_knows_which_of_a_batch_has_gone_and_the_others_get_their_answers():
    seen, gate = [], threading.Event()

    def make(tickets):
        for ticket in tickets:
            ticket.tell(Written("so far"))
        gate.wait(10)
        seen.extend((ticket.job.prompt, ticket.gone) for ticket in tickets)
        for ticket in tickets:
            ticket.tell(Made((ticket.job.prompt,), 1, 1))

    batcher = Batcher([Computer(make, nothing_wrong)], 4)

    async def run():
        batcher._callers, batcher._until, batcher._together = 3, time.monotonic() + 5, Job("draw", "").together
        asked = [asyncio.create_task(one(batcher, name)) for name in ("stays", "goes", "stays too")]
        await asyncio.sleep(0.1)
        asked[1].cancel()
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    made = asyncio.run(run())
    assert seen == [("stays", False), ("goes", True), ("stays too", False)]
    assert [one.parts for one in (made[0], made[2])] == [("stays",), ("stays too",)]
    assert isinstance(made[1], asyncio.CancelledError)


class Failing:
    """Fails in its first batch, and is well again when it is told so."""

    def __init__(self):
        self.asked, self.well = [], asyncio.Event()

    async def check(self, job):
        pass

    async def events(self, number, jobs):
        self.asked.append([job.prompt for job in jobs])
        if number == 0:
            yield 0, Made(("told before",), 1, 1)
            raise Unavailable("died")
        for place, job in enumerate(jobs):
            yield place, Made((job.prompt,), 1, 1)

    async def recovered(self):
        await self.well.wait()


def test_a_worker_that_failed_gets_no_more_before_it_has_recovered():
    async def run():
        worker = Failing()
        batcher = Batcher([worker], 4)
        made = await asyncio.gather(*(one(batcher, name) for name in "ab"), return_exceptions=True)
        later = asyncio.create_task(one(batcher, "c"))
        await asyncio.sleep(0.05)
        before = list(worker.asked)
        worker.well.set()
        return made, before, await asyncio.wait_for(later, 5), worker.asked

    made, before, later, asked = asyncio.run(run())
    assert made[0].parts == ("told before",) and isinstance(made[1], Unavailable)
    assert before == [["a", "b"]] and asked == [["a", "b"], ["c"]] and later.parts == ("c",)
