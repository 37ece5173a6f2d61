"""What the engine costs: a training step of each of the demo's stages under DeepSpeed, against the bare step.

    python tests/benchmarks/engine.py                      two ranks with gloo, a thread each, ZeRO as the demo's preset
    python tests/benchmarks/engine.py train --ranks 1

Bare is the same module on the same batches with fused AdamW and clipping, and neither DeepSpeed, nor ranks, nor an
average of the weights; the demo's Muon is left out on both sides. Both are trained side by side in each rank and take
turns, a step each. A figure is the CPU time that a step takes of the process of rank 0: what gloo's threads compute is
in it, waiting for the other rank is not. It is the median of the steps, and the ratio that of each two turns, so that
what else the machine does tells little.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

ROOT = str(Path(__file__).resolve().parents[2])
sys.path[:0] = [ROOT]

from omniloom.infra.training.config import EngineConfig, OptimizerConfig  # noqa: E402
from omniloom.infra.training.engine import Engine  # noqa: E402
from omniloom.models.tokenizer.adversarial import DiscriminatorObjective  # noqa: E402
from omniloom.models.tokenizer.losses import TokenizerObjective  # noqa: E402
from omniloom.models.unified.batch import collate, document_length  # noqa: E402
from omniloom.models.unified.layouts import text_to_visual  # noqa: E402
from omniloom.models.unified.model import UnifiedModel  # noqa: E402
from omniloom.models.unified.objectives.objective import UnifiedObjective, part_of  # noqa: E402
from omniloom.pipelines.config import load  # noqa: E402
from omniloom.stages.train.config import unified_config  # noqa: E402

STAGES = ("tokenizer_image", "tokenizer_joint", "train")
BATCHES = 8  # different ones
LATE = 10**6  # a step at which the adversarial losses have their whole weight


class Bare:
    """A module trained as plain torch does it, with `Engine`'s interface."""

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, config: EngineConfig):
        self.module, self.clip, self.bf16 = module, optimizer.grad_clip, config.precision == "bf16"
        self.adam = torch.optim.AdamW(
            module.parameters(), optimizer.lr, optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )

    def __call__(self, *args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, step: int) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def wrapped(bare: bool, module: nn.Module, optimizer: OptimizerConfig, config: EngineConfig, micro: int, **fields):
    return Bare(module, optimizer, config) if bare else Engine(module, optimizer, config, LATE, micro, **fields)


def tokenizer(config, architecture, rank: int, ranks: int, bare: bool) -> Callable[[int], None]:
    """A step of the generator and of the discriminator."""
    torch.manual_seed(0)
    data, micro = config.data, max(config.data.image_batch, config.data.video_batch) // ranks
    generator = wrapped(
        bare, TokenizerObjective(architecture, config.loss), config.optimizer.by_elements, config.engine, micro
    )
    settings = config.engine.model_copy(update={"zero_stage": 1, "ema_decay": 0.0})
    critic = wrapped(
        bare, DiscriminatorObjective(config.discriminator), config.discriminator_optimizer, settings, micro
    )
    random = torch.Generator().manual_seed(rank)
    batches = []
    for number in range(BATCHES):
        size = data.sizes[number % len(data.sizes)]
        image = "video" not in data.kinds or number % 5 < round(5 * data.image_ratio)
        shape = (data.image_batch // ranks, 3) if image else (data.video_batch // ranks, 3, data.frames)
        batches.append(torch.rand((*shape, size, size), generator=random) - 0.5)

    def run(step: int) -> None:
        pixels = batches[step % BATCHES]
        loss, logs, recon = generator(pixels, critic.module, 1.0)
        generator.backward(loss)
        generator.step(step)
        loss, logs = critic(pixels, recon.detach(), step)
        critic.backward(loss)
        critic.step(step)

    return run


def unified(config, latent_dim: int, rank: int, ranks: int, bare: bool) -> Callable[[int], None]:
    torch.manual_seed(0)
    model_config = unified_config(
        config, 1024, {"latent_dim": latent_dim, "pixel_dim": None, "codebook_size": None}, None
    )
    objective = UnifiedObjective(UnifiedModel(model_config), config.diffusion)
    fields = {} if bare else {"part_of": part_of}
    engine = wrapped(bare, objective, config.optimizer.by_elements, config.engine, config.batch_rows // ranks, **fields)
    rng, length = np.random.default_rng(rank), config.packing.length
    batches = []
    for _ in range(BATCHES):
        rows: list[list] = [[] for _ in range(config.batch_rows // ranks)]
        for row in rows:
            while length - sum(map(document_length, row)) >= 40:
                values = rng.standard_normal((16, latent_dim)).astype(np.float32)
                row.append(
                    text_to_visual(rng.integers(6, 1024, rng.integers(4, 16)), values, (1, 4, 4), model_config.specials)
                )
        batches.append(collate(rows, length, model_config))

    def run(step: int) -> None:
        batch = batches[step % BATCHES]
        loss, logs = engine(batch, [step * 100 + row for row in range(len(batch.ids))])
        engine.backward(loss)
        engine.step(step)

    return run


def measure(rank: int, ranks: int, port: int, stages: list[str], steps: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    config = load(f"{ROOT}/pipelines/presets/demo.yaml", ["storage=/tmp", "data=digits:/"]).stages
    architecture = config.tokenizer_image.model
    for stage in stages:
        if stage == "train":
            ways = [unified(config.train, architecture.latent_dim, rank, ranks, bare) for bare in (True, False)]
        else:
            ways = [tokenizer(getattr(config, stage), architecture, rank, ranks, bare) for bare in (True, False)]
        seconds: list[list[float]] = [[], []]
        for step in range(-2 * BATCHES, steps):
            for way, run in enumerate(ways):
                dist.barrier()  # what the other rank is late by would be spun away inside
                began = time.process_time()
                run(step % LATE)
                if step >= 0:
                    seconds[way].append(time.process_time() - began)
        bare, engine = (1000 * statistics.median(values) for values in seconds)
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        if rank == 0:
            print(f"{stage:16} bare {bare:6.1f} ms, engine {engine:6.1f} ms: {ratio - 1:+.1%}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48)
    o = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(measure, (o.ranks, port, o.stages, o.steps), nprocs=o.ranks)


if __name__ == "__main__":
    main()
