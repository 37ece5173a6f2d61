"""The server as Ray Serve runs it: a `Front` that answers HTTP, and `Painter`s that hold the model, one a GPU.

In: a model's URI, a name, `Settings`. Runs until Ctrl-C or SIGTERM, and leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import importlib.util
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.stages.serving.jobs import Event, Facts, Job, Refused, Unavailable
from omniloom.stages.serving.limits import Limits

if TYPE_CHECKING:
    from omniloom.infra.cluster import Cluster

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LIBRARIES = ("fastapi", "starlette", "uvicorn", "gradio", "multipart")
_HEALTH_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Settings:
    """Where a server listens, and for whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        """The names that requests call it by; any where others than this machine are answered."""
        return frozenset(_LOOPBACK) if self.host in ("127.0.0.1", "localhost", "::1") else frozenset()


class Painter:
    """A deployment: a model that computes batches of jobs."""

    def __init__(self, model: str, name: str, threads: int):
        import torch

        from omniloom.stages.inference import marks
        from omniloom.stages.inference.sampling import load
        from omniloom.stages.serving.computing import Computer
        from omniloom.stages.serving.making import Maker

        torch.set_num_threads(threads)
        loom = load(model)
        maker = Maker(loom)
        self.computer = Computer(maker.make, maker.resolve)
        self._facts = Facts.of(name, marks.identity(model), loom)

    def facts(self) -> Facts:
        return self._facts

    async def check(self, job: Job) -> Refused | None:
        """What the model cannot do, returned: Serve would log an exception as its own failure."""
        try:
            await self.computer.check(job)
        except Refused as error:
            return error
        return None

    async def events(self, number: int, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
        async with contextlib.aclosing(self.computer.events(number, jobs)) as events:
            async for event in events:
                yield event

    async def answers(self, number: int, jobs: Sequence[Job]) -> list[tuple[int, Event]]:
        """The same at once: where nobody asks for events on the way, one answer costs Serve less than a stream."""
        async with contextlib.aclosing(self.computer.events(number, jobs)) as events:
            return [event async for event in events]

    async def leave(self, number: int, place: int) -> None:
        self.computer.leave(number, place)


class Front:
    """A deployment: HTTP, with the queue. `handles` are the painters', each its own: a batch is one call of one."""

    async def __init__(self, handles: Sequence[Any], settings: Settings):  # type: ignore[misc]  # Serve awaits it
        self.painters, self.settings = [_Remote(handle) for handle in handles], settings
        self.facts: Facts = await handles[0].facts.remote()

    def __serve_build_asgi_app__(self) -> Any:
        from omniloom.stages.serving.app import make_app
        from omniloom.stages.serving.batching import Batcher
        from omniloom.stages.serving.page import mount
        from omniloom.stages.serving.service import Service

        settings, painters = self.settings, self.painters
        batcher = Batcher(painters, settings.limits.max_batch)
        service = Service(batcher.run, self.facts, settings.limits, len(painters))
        return make_app(service, functools.partial(_healthy, painters), settings.token, settings.hosts, mount)


class _Remote:
    """A painter in its process, as a `stages.serving.batching.Worker`."""

    def __init__(self, handle: Any):
        self.handle, self.streaming = handle, handle.options(stream=True)

    async def check(self, job: Job) -> None:
        with _answering():
            if refused := await self.handle.check.remote(job):
                raise refused

    async def events(self, number: int, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
        in_parts = any(job.interim or job.stream for job in jobs)
        answer = (self.streaming.events if in_parts else self.handle.answers).remote(number, jobs)
        done = False
        try:
            with _answering():
                if in_parts:
                    async for event in answer:
                        yield event
                else:
                    for event in await answer:
                        yield event
            done = True
        finally:
            if not done:
                answer.cancel()

    def leave(self, number: int, place: int) -> None:
        self.handle.leave.remote(number, place)

    async def recovered(self) -> None:
        while not await self.healthy():
            await asyncio.sleep(_AGAIN_SECONDS)

    async def healthy(self) -> bool:
        try:
            await asyncio.wait_for(self.handle.facts.remote(), _HEALTH_SECONDS)
        except Exception:  # whatever it is, the model did not answer
            return False
        return True


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """In the block a painter that does not answer raises `Unavailable`."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (RayActorError, RayServeException) as error:
        raise Unavailable(f"the model does not answer: {type(error).__name__}") from error


async def _healthy(painters: Sequence[_Remote]) -> bool:
    """Whether any answers."""
    return any(await asyncio.gather(*(painter.healthy() for painter in painters)))


def serve_model(model: str, name: str, settings: Settings) -> None:
    """Serve until Ctrl-C. InputError for a missing extra, a port that cannot be had, a model that is none."""
    _require_extra()
    _require_port(settings)
    from omniloom.infra.cluster import connect, expect_deaths
    from omniloom.stages.inference.sampling import locate

    locate(model)
    with _interruptible():
        import ray

        try:
            cluster = connect("local", log_to_driver=False)
            _start(model, name, settings, cluster)
            print(f"{name} at {settings.address}, until Ctrl-C", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            for number in _SIGNALS:  # it is ending
                signal.signal(number, signal.SIG_IGN)
            expect_deaths()
            with contextlib.suppress(Exception):  # of a Ray that did not start there is nothing to shut down
                from ray import serve

                serve.shutdown()
            ray.shutdown()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """In the block a signal to end raises KeyboardInterrupt in the main thread."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(model: str, name: str, settings: Settings, cluster: Cluster) -> None:
    from ray import serve

    limits, gpus = settings.limits, int(sum(node.gpus for node in cluster.nodes))
    workers = max(1, gpus)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    listening = {"host": settings.host, "port": settings.port, "location": "HeadOnly"}
    serve.start(http_options=listening, logging_config=quiet)
    # More than the queue's limit lets in: the front alone refuses. Of the cores one is left to it.
    asked = 2 * (workers * limits.max_batch + limits.max_queue) + 100
    deployed: Any = serve.deployment(max_ongoing_requests=asked, logging_config=quiet)
    room = {"num_cpus": 0, "num_gpus": min(gpus, 1)}
    threads = max(1, int(cluster.num_cpus) // workers - 1)
    painter = deployed(Painter).options(ray_actor_options=room)
    painters = [painter.options(name=f"Painter{n}").bind(model, name, threads) for n in range(workers)]
    front = deployed(serve.ingress()(Front)).options(ray_actor_options={"num_cpus": 0})
    try:
        serve.run(front.bind(painters, settings), name="omniloom", route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise OmniLoomError(f"the server did not start: {error}") from error


def _require_extra() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: pip install 'omniloom[serve]'")


def _require_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except socket.gaierror as error:
            raise InputError(f"{settings.host} is no address of this machine: {error}", field="--host") from None
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise InputError(f"{settings.host} is no address of this machine", field="--host") from None
            message = f"port {settings.port} of {settings.host} cannot be had: {error}; take another"
            raise InputError(message, field="--port") from None
