"""Writing and drawing against transfusion-pytorch (`transfusion_peer`) and `transformers`, for `unified.py generate`.

All are fp32, in one process, and take turns. Every way writes exactly as many tokens, the likeliest ones, from a
key-value cache, and nothing ends it early; prompts are of one length, as the peer's way of writing takes no others.
`transformers` is its Llama of our two shapes, through `generate`. Pictures are guided: every one of the steps, Euler's,
evaluates the network behind the caption and behind the empty one, from caches that are read once. The peer is called as
its documentation says, its time solver set to Euler, so that its evaluations are as many as ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import transfusion_peer

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.generate import generate_text, generate_visual
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.layouts import prefix_for_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.parameters import num_parameters

PROMPT, CAPTION, REQUESTS, GUIDANCE = 32, 256, 16, 3.0
REPEATS = 3
PEER, LLAMA = "transfusion-pytorch", "transformers"
Way = Callable[[int], object]  # of the number of tokens, or of steps


def built(config: UnifiedConfig) -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(config).eval()
    torch.nn.init.normal_(model.visual_out.weight, std=0.02)  # at 0 it would draw nothing
    return model


def llama(config: UnifiedConfig) -> torch.nn.Module:
    """`transformers`' model of our shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.hidden,
            max_position_embeddings=4096,
            pad_token_id=config.specials.pad,
            bos_token_id=config.specials.bos,
            eos_token_id=None,
        )
    ).eval()


def our_text(model: UnifiedModel, prompts: np.ndarray) -> Way:
    prefixes = [prefix_for_text(prompt, model.config.specials) for prompt in prompts]
    return lambda count: generate_text(model, prefixes, TextSampling(max_new_tokens=count), stop_ids=[])


def llama_text(model: torch.nn.Module, prompts: np.ndarray) -> Way:
    from transformers import GenerationConfig

    ids = torch.from_numpy(prompts)

    def way(count: int) -> object:
        config = GenerationConfig(max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert written.shape[1] == ids.shape[1] + count
        return written

    return way


def our_pictures(model: UnifiedModel, captions: np.ndarray, side: int) -> Way:
    prefixes = [prefix_for_text(caption, model.config.specials) for caption in captions]

    def way(steps: int) -> object:
        visual = VisualSampling(
            objective="latent_diffusion", diffusion=DiffusionConfig(), num_steps=steps, guidance_scale=GUIDANCE
        )
        return generate_visual(model, prefixes, (1, side, side), visual)

    return way


def timed(ways: Mapping[str, Way], count: int) -> dict[str, tuple[float, float]]:
    """(median seconds, least CPU seconds) of each way, which take turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way(2)
    for _ in range(REPEATS):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way(count)
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (statistics.median(w for w, _ in pairs), min(c for _, c in pairs)) for name, pairs in taken.items()}


def told(what: str, ways: Mapping[str, Way], count: int, sizes: Mapping[str, int]) -> None:
    """Measure and print; the ratios are the others' time over a way's, `transformers`' that of the same shape."""
    measured = timed(ways, count)
    print(f"{what}:")
    for name, (wall, cpu) in measured.items():
        ratios = []
        for other in (PEER, f"{LLAMA}, {name.partition(', ')[2]}"):
            if name.startswith("ours") and other in measured:
                its_wall, its_cpu = measured[other]
                ratios.append(f"{its_wall / wall:.2f} x {other.partition(',')[0]} (CPU {its_cpu / cpu:.2f} x)")
        line = f"  {name:44} {sizes[name] / 1e6:5.1f} M {1000 * wall:7.0f} ms, CPU {1000 * cpu:7.0f} ms"
        print("  ".join((line, *ratios)), flush=True)


def three_ways(o: argparse.Namespace, configs: Mapping[str, UnifiedConfig]) -> None:
    """configs: our shapes by what they are equal to the peer in."""
    peer = transfusion_peer.build(o.vocab, o.latent_dim, o.side, 256, 4, 4) if transfusion_peer.installed() else None
    if peer is None:
        print(f"{PEER} is not installed here (transfusion_peer.py says how)")
    rng = np.random.default_rng(0)
    prompts = rng.integers(6, o.vocab, (REQUESTS, PROMPT))
    captions = rng.integers(6, o.vocab, (REQUESTS, CAPTION))
    ours = {f"ours, {name}": built(config) for name, config in configs.items()}
    same = {}
    if importlib.util.find_spec("transformers") is None:
        print(f"{LLAMA} is not installed here")
    else:
        same = {f"{LLAMA}, {name}": llama(config) for name, config in configs.items() if name != "equal shape"}
    sizes = {f"ours, {name}": num_parameters(config) for name, config in configs.items()}
    models = {**same, PEER: peer} if peer else same
    sizes |= {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    for number in (1, REQUESTS):
        given = prompts[:number]
        ways = {name: our_text(model, given) for name, model in ours.items()}
        if peer:
            ways[PEER] = transfusion_peer.text(peer, given)
        ways |= {name: llama_text(model, given) for name, model in same.items()}
        requests = "1 request" if number == 1 else f"{number} requests"
        told(f"{o.tokens} text tokens behind {PROMPT}, {requests}, greedy, with the cache", ways, o.tokens, sizes)
    ways = {name: our_pictures(model, captions, o.side) for name, model in ours.items()}
    if peer:
        ways[PEER] = transfusion_peer.pictures(peer, captions, o.side, GUIDANCE)
    what = f"{REQUESTS} pictures of {o.side} x {o.side} positions behind {CAPTION} tokens, {o.steps} steps of Euler"
    told(f"{what}, guidance {GUIDANCE:g}", ways, o.steps, sizes)
