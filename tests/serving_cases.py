"""A small untrained model behind a server's endpoints, without Ray: what tests of serving share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import small_models
from starlette.testclient import TestClient

from omniloom.models.model import OmniLoom
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.serving.app import make_app
from omniloom.stages.serving.batching import Batcher
from omniloom.stages.serving.computing import Computer
from omniloom.stages.serving.jobs import Facts
from omniloom.stages.serving.limits import Limits
from omniloom.stages.serving.making import Maker
from omniloom.stages.serving.service import Service

needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gradio", "multipart", "grpc_reflection")), reason="needs omniloom[serve]"
)
OBJECTIVES = ("latent_diffusion", "masked_code", "next_code", "next_latent")


def small_model(objectives: tuple[str, ...] = OBJECTIVES) -> OmniLoom:
    return small_models.scattered(objectives)


class Engine:
    """A model in this process, on whatever event loop asks. `batches`: how many jobs each had."""

    def __init__(self, loom: OmniLoom, most: int = 16):
        self.maker, self.batches, self.most = Maker(loom), [], most
        self._computer = Computer(self._make, self.maker.resolve)
        self._batchers: dict[Any, Batcher] = {}

    def _make(self, tickets) -> None:
        self.batches.append(len(tickets))
        self.maker.make(tickets)

    async def __call__(self, job):
        loop = asyncio.get_running_loop()
        batcher = self._batchers.setdefault(loop, Batcher([self._computer], self.most))
        async with aclosing(batcher.run(job)) as events:
            async for event in events:
                yield event


@contextmanager
def client(engine: Any, limits: Limits = Limits(), healthy: bool = True, **more: Any) -> Iterator[TestClient]:
    async def answers() -> bool:
        return healthy

    facts = Facts(
        "small", {"weights": "0" * 64}, {name: VisualSampling(objective=name) for name in OBJECTIVES}, (16, 16)
    )
    app = make_app(Service(engine, facts, limits), answers, **more)
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found
