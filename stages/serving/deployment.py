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
from collections.abc import AsyncGenerator, Iterator
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

    def __init__(self, model: str, name: str, most: int, threads: int):
        import torch

        from omniloom.stages.inference import marks
        from omniloom.stages.inference.sampling import load
        from omniloom.stages.serving.batching import Batcher
        from omniloom.stages.serving.making import Maker

        torch.set_num_threads(threads)
        loom = load(model)
        self.maker = Maker(loom)
        self.batcher = Batcher(self.maker.make, most)
        self._facts = Facts.of(name, marks.identity(model), loom)

    def facts(self) -> Facts:
        return self._facts

    async def run(self, job: Job) -> AsyncGenerator[Event | Refused, None]:
        """The job's events, or the one that the model cannot do it: Serve would log an exception as its own failure."""
        try:
            self.maker.resolve(job)
        except Refused as error:
            yield error
            return
        async with contextlib.aclosing(self.batcher.run(job)) as events:
            async for event in events:
                yield event

    async def answer(self, job: Job) -> Event | Refused:
        """The last of the job's events: where nobody asks for the others, one call costs Serve less than a stream."""
        async with contextlib.aclosing(self.run(job)) as events:
            return [event async for event in events][-1]


class Front:
    """A deployment: HTTP, with the queue's limit. `handle` is the painters'."""

    async def __init__(self, handle: Any, settings: Settings, workers: int):  # type: ignore[misc]  # Serve awaits it
        self.handle, self.settings, self.workers = handle, settings, workers
        self.facts: Facts = await handle.facts.remote()

    def __serve_build_asgi_app__(self) -> Any:
        from omniloom.stages.serving.app import make_app
        from omniloom.stages.serving.page import mount
        from omniloom.stages.serving.service import Service

        settings = self.settings
        ask = functools.partial(_ask, self.handle, self.handle.options(stream=True))
        service = Service(ask, self.facts, settings.limits, self.workers)
        return make_app(service, functools.partial(_healthy, self.handle), settings.token, settings.hosts, mount)


async def _ask(handle: Any, streaming: Any, job: Job) -> AsyncGenerator[Event, None]:
    """A job's events from a painter. `streaming`: the same handle, of methods that give several answers."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    in_parts = bool(job.interim or job.stream)
    answer = streaming.run.remote(job) if in_parts else handle.answer.remote(job)
    done = False
    try:
        if in_parts:
            async for event in answer:
                yield _unless_refused(event)
        else:
            yield _unless_refused(await answer)
        done = True
    except (RayActorError, RayServeException) as error:
        raise Unavailable(f"the model does not answer: {type(error).__name__}") from error
    finally:
        if not done:
            answer.cancel()


def _unless_refused(event: Event | Refused) -> Event:
    if isinstance(event, Refused):
        raise event
    return event


async def _healthy(handle: Any) -> bool:
    try:
        await asyncio.wait_for(handle.facts.remote(), _HEALTH_SECONDS)
    except Exception:  # whatever it is, the model did not answer
        return False
    return True


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
    painters = deployed(Painter).options(num_replicas=workers, ray_actor_options=room)
    painters = painters.bind(model, name, limits.max_batch, threads)
    front = deployed(serve.ingress()(Front)).options(ray_actor_options={"num_cpus": 0})
    try:
        serve.run(front.bind(painters, settings, workers), name="omniloom", route_prefix="/")
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
