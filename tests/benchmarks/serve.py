"""Ten users at once against one after the other, at a server that `omniloom serve` started: pictures a second of both,
and whether they are the same pictures.

    python tests/benchmarks/serve.py [MODEL] [--users 10] [--each 6] [--steps 20]

Without MODEL an untrained one of the demo's shape is served. Each user asks for a picture, waits for it, and asks for
the next; the one user asks for the same pictures in turn. Both ways take turns, and the best of the rounds counts. The
pictures are also compared with those that the model draws alone in this process, as `omniloom sample` does.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import torch

from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.build import config_from_dict
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.stages.data.media.decode import decode_image
from omniloom.stages.inference.sampling import load

sys.path.insert(0, str(Path(__file__).parents[1]))
from served import served  # noqa: E402

WORDS = "zero one two three four five six seven eight nine".split()


def demo_shaped(folder: Path) -> str:
    """An untrained model of the demo's shape."""
    torch.manual_seed(0)
    text = TextTokenizer.train([f"a handwritten {word}" for word in WORDS] * 20, 280)
    quantizer = {"kind": "vq", "codebook_size": 512, "latent_dim": 8}
    shape = {"patch_size": 8, "temporal_patch": 4, "width": 128, "heads": 4, "head_dim": 32, "spatial_layers": "tt"}
    more = {"temporal_layers": 1, "decoder_spatial_layers": "tt", "quantizer": quantizer}
    tokenizer = config_from_dict({**shape, **more}, "tokenizer")
    unified = UnifiedConfig(
        vocab_size=text.vocab_size, latent_dim=8, codebook_size=512, width=128, layers=4, heads=4, time_dim=128
    )
    config = BundleConfig(
        unified, DiffusionConfig(predict="v"), tokenizer, (0.0,) * 8, (1.0,) * 8, (32, 32), snap_latents=True
    )
    OmniLoom(config, UnifiedModel(unified), OmniTokenizer(tokenizer), text).save(folder)
    return str(folder)


async def picture(session: aiohttp.ClientSession, address: str, seed: int, steps: int) -> np.ndarray:
    asked = {"prompt": f"a handwritten {WORDS[seed % 10]}", "seed": seed, "steps": steps}
    async with session.post(f"{address}/v1/images/generations", json=asked) as answer:
        assert answer.status == 200, await answer.text()
        return decode_image(base64.b64decode((await answer.json())["data"][0]["b64_json"]))


async def drawn(address: str, users: int, seeds: list[int], steps: int) -> tuple[float, np.ndarray]:
    """Seconds for pictures of all seeds by so many users, and the pictures."""
    made: dict[int, np.ndarray] = {}
    async with aiohttp.ClientSession() as session:

        async def user(own: list[int]) -> None:
            for seed in own:
                made[seed] = await picture(session, address, seed, steps)

        began = time.perf_counter()
        await asyncio.gather(*(user(seeds[at::users]) for at in range(users)))
        seconds = time.perf_counter() - began
    return seconds, np.stack([made[seed] for seed in seeds])


def compare(address: str, users: int, each: int, steps: int, rounds: int = 3) -> dict:
    """{"alone", "together": pictures a second, "ratio", "pictures", "other": pixels that differ between the two}."""
    seeds = list(range(users * each))
    asyncio.run(drawn(address, users, seeds[: 2 * users], steps))  # warm
    best, shown = {}, {}
    for _ in range(rounds):
        for name, at_once in (("alone", 1), ("together", users)):
            seconds, shown[name] = asyncio.run(drawn(address, at_once, seeds, steps))
            best[name] = max(best.get(name, 0.0), len(seeds) / seconds)
    other = int(np.count_nonzero(shown["alone"] != shown["together"]))
    return {**best, "ratio": best["together"] / best["alone"], "pictures": shown["together"], "other": other}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--each", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or demo_shaped(Path(folder) / "model")
        with served(model, Path(folder) / "log") as server:
            found = compare(server.address, options.users, options.each, options.steps)
        print(f"one after the other: {found['alone']:.1f} pictures/s")
        print(f"{options.users} users at once: {found['together']:.1f} pictures/s, {found['ratio']:.2f} times")
        print(f"pixels that differ between the two: {found['other']} of {found['pictures'].size}")
        loom, visual = load(model), VisualSampling(num_steps=options.steps)
        alone = [
            loom.text_to_image([f"a handwritten {WORDS[seed % 10]}"], visual, seeds=[seed])[0]
            for seed in range(len(found["pictures"]))
        ]
        print(f"from those of `omniloom sample`: {np.count_nonzero(np.stack(alone) != found['pictures'])}")


if __name__ == "__main__":
    main()
