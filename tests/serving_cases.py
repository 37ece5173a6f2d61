"""A small untrained model behind a server's endpoints, without Ray: what tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import corpora
import pytest
import torch
from starlette.testclient import TestClient

from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import MixtureConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.model import UnifiedModel
from omniloom.stages.serving.app import make_app
from omniloom.stages.serving.batching import Batcher
from omniloom.stages.serving.jobs import Facts
from omniloom.stages.serving.limits import Limits
from omniloom.stages.serving.making import Maker
from omniloom.stages.serving.service import Service

needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gradio", "multipart", "grpc_reflection")), reason="needs omniloom[serve]"
)
OBJECTIVES = ("latent_diffusion", "masked_code", "next_code", "next_latent")


def small_model(objectives: tuple[str, ...] = OBJECTIVES) -> OmniLoom:
    torch.manual_seed(0)
    text = TextTokenizer.train(["a handwritten seven", "a handwritten two moving left"] * 20, 280)
    sizes: dict[str, Any] = {"latent_dim": 4, "codebook_size": 32} if objectives else {}
    if "next_latent" in objectives:
        sizes["density"] = MixtureConfig(components=3)
    config = BundleConfig(
        unified=UnifiedConfig(vocab_size=text.vocab_size, **sizes, width=48, layers=2, heads=4),
        diffusion=DiffusionConfig(),
        tokenizer=corpora.small_tokenizer("tw"),
        latent_mean=(0.0,) * 4,
        latent_std=(1.0,) * 4,
        image_size=(16, 16),
        objectives=objectives,
    )
    tokenizer = OmniTokenizer(config.tokenizer)
    tokenizer.train().encode(torch.rand(16, 3, 16, 16) - 0.5, update_codebook=True)
    model = UnifiedModel(config.unified)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return OmniLoom(config, model, tokenizer, text)


class Engine:
    """A model in this process. `batches`: how many jobs each had."""

    def __init__(self, loom: OmniLoom, most: int = 16):
        self.maker, self.batches = Maker(loom), []
        self.batcher = Batcher(self._make, most)

    def _make(self, tickets) -> None:
        self.batches.append(len(tickets))
        self.maker.make(tickets)

    async def __call__(self, job):
        self.maker.resolve(job)
        async for event in self.batcher.run(job):
            yield event


@contextmanager
def client(engine: Any, limits: Limits = Limits(), healthy: bool = True, **more: Any) -> Iterator[TestClient]:
    async def answers() -> bool:
        return healthy

    facts = Facts("small", {"weights": "0" * 64}, OBJECTIVES, (16, 16))
    app = make_app(Service(engine, facts, limits), answers, **more)
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found
