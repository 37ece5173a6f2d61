"""What is missing on this machine, and what a pipeline needs: parameters, memory per GPU, tokens per step.

Sizing builds nothing and needs no GPU: parameters are counted on torch's meta device or in closed form, and memory
follows from them. The estimate leaves out what the allocator wastes: plan for a tenth more.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError, within
from omniloom.infra.secrets import redact
from omniloom.infra.training.config import EngineConfig
from omniloom.pipelines.checks import check_stages
from omniloom.pipelines.config import PipelineConfig, load, naming
from omniloom.stages.pretokenize.config import Config as PretokenizeConfig
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.tokenizer.stage import architecture
from omniloom.stages.train.config import Config as TrainConfig

_NEEDED = (
    "torch",
    "ray",
    "deepspeed",
    "mlflow",
    "pyarrow",
    "fsspec",
    "pydantic",
    "av",
    "pillow",
    "tokenizers",
    "torchmetrics",
    "safetensors",
    "scikit-learn",
)
# Bytes a trained parameter takes in fp32: itself, its gradient, Adam's two moments, its moving average.
_WEIGHT, _GRADIENT, _MOMENTS = 4, 4, 8


def examine(config: str | None, overrides: list[str]) -> dict:
    """{"checks": [{"name", "ok", "needed", "says"}], "sizes": {...} or None}; InputError for a wrong config."""
    loaded = load(config, overrides) if config else None
    checks = [_python(), *(_package(name) for name in _NEEDED), _compiler(), _memory(), _accelerators()]
    if loaded:
        check_stages(loaded)
        checks.append(_storage(loaded.storage))
        checks.append(_tracking(loaded))
    return redact({"checks": checks, "sizes": sizes(loaded) if loaded else None})


def render(report: dict) -> str:
    lines = [
        f"{'ok  ' if c['ok'] else 'MISS' if c['needed'] else 'note'}  {c['name']}: {c['says']}"
        for c in report["checks"]
    ]
    for stage, size in (report["sizes"] or {}).items():
        lines.append(f"\n{stage}")
        lines += [f"  {name}: {_readable(name, value)}" for name, value in size.items()]
    return "\n".join(lines)


def _readable(name: str, value) -> str:
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _check(name: str, ok: bool, says: str, needed: bool = True) -> dict:
    return {"name": name, "ok": ok, "needed": needed, "says": says}


def _python() -> dict:
    return _check("python", sys.version_info >= (3, 11), sys.version.split()[0])


def _package(name: str) -> dict:
    try:
        return _check(name, True, version(name))
    except PackageNotFoundError:
        return _check(name, False, f"not installed; pip install {name}")


def _compiler() -> dict:
    found = shutil.which("g++")
    return _check("g++", bool(found), found or "not found; DeepSpeed builds its CPU collective with it", needed=False)


def _memory() -> dict:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _check("memory", size >= 4 * 2**30, f"{size / 2**30:.0f} GiB, {os.cpu_count()} CPUs", needed=False)


def _accelerators() -> dict:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _check("GPUs", bool(names), ", ".join(names) or "none; training runs on CPU with gloo", needed=False)


def _storage(uri: str) -> dict:
    try:
        fs, path = storage.filesystem(uri)
        fs.exists(path)
        return _check("storage", True, f"{uri} ({type(fs).__name__})")
    except Exception as error:  # each filesystem raises classes of its own for what is missing or refused
        return _check("storage", False, f"{uri}: {type(error).__name__}: {error}")


def _tracking(config: PipelineConfig) -> dict:
    """A store that is away stops no run, so it is only noted; one that no run may name is refused by `run` too."""
    from omniloom.infra.tracking import probe, resolve_tracking

    try:
        settings = resolve_tracking(config.tracking, config.storage)
    except InputError as error:
        return _check("tracking", False, str(error))
    usable, answer = probe(settings)
    lost = settings.database and not storage.is_local(config.storage)
    says = f"{settings.shown}: {answer}" + ("; a cluster's jobs lose it: set tracking.uri" if lost else "")
    return _check("tracking", usable and not lost, says, needed=False)


def sizes(config: PipelineConfig) -> dict[str, dict]:
    """Per training stage: parameters, workers, units per step, and memory per worker in bytes by what takes it. A stage
    that starts from what is pinned has sizes that the config does not tell, and is left out."""
    models: dict[str, Any] = {}  # by the stage that makes it; a pinned one is not among them
    found = {}
    for stage in config.graph.stages:
        own, inputs = getattr(config.stages, stage.name), config.graph.inputs[stage.name]
        before, tokens = inputs.get("tokenizer", ""), getattr(config.stages, inputs.get("tokens", ""), None)
        if before and before not in models:
            continue
        if isinstance(own, TokenizerConfig):
            with naming(config), within(f"stages.{stage.name}"):
                models[stage.name] = architecture(own, models.get(before))
            found[stage.name] = _tokenizer(own, models[stage.name])
        elif isinstance(own, TrainConfig) and isinstance(tokens, PretokenizeConfig):
            found[stage.name] = _unified(own, tokens, models.get(before))
    return found


def _state(parameters: int, engine: EngineConfig, workers: int, frozen: int = 0) -> dict[str, int]:
    """Bytes per worker of weights, gradients, optimizer and EMA under ZeRO (arXiv 1910.02054, section 3). `parameters`
    are trained; `frozen` ones are weights alone."""
    share = [workers if engine.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    return {
        "weights_bytes": (parameters + frozen) * _WEIGHT // share[2],
        "gradients_bytes": parameters * _GRADIENT // share[1],
        "optimizer_bytes": 0 if engine.offload and engine.zero_stage else parameters * _MOMENTS // share[0],
        "ema_bytes": parameters * _WEIGHT // share[2] if engine.ema_decay else 0,
    }


def _with_total(size: dict) -> dict:
    return {**size, "memory_per_worker_bytes": sum(v for k, v in size.items() if k.endswith("_bytes"))}


def _tokenizer(stage, model) -> dict:
    import torch

    from omniloom.models.tokenizer.build import build_tokenizer
    from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig
    from omniloom.models.tokenizer.discriminator import Discriminator

    with torch.device("meta"):
        tokenizer = list(build_tokenizer(model).parameters())
        parameters = sum(p.numel() for p in tokenizer)
        frozen = sum(p.numel() for p in tokenizer if not p.requires_grad)
        critic = sum(p.numel() for p in Discriminator(stage.discriminator).parameters()) if stage.discriminator else 0
    data, workers = stage.data, stage.workers.count
    if isinstance(model, TiTokConfig):
        height, width = (side // model.patch_size for side in model.size)
        tokens = {"image": data.image_batch * (height * width + model.num_latents)}  # as the blocks see them
        layers = model.encoder_layers + model.decoder_layers
    elif isinstance(model, RAEConfig):
        tokens = {"image": data.image_batch * (max(data.sizes) // model.patch_size) ** 2}
        layers = model.decoder_layers  # the frozen encoder keeps nothing for a backward pass
    else:
        tokens = {}
        for kind in data.kinds:
            frames = 1 if kind == "image" else 1 + (data.frames - 1) // model.temporal_patch
            batch = data.image_batch if kind == "image" else data.video_batch
            tokens[kind] = batch * frames * (max(data.sizes) // model.patch_size) ** 2
        layers = len(model.spatial_layers) + len(model.decoder_spatial_layers) + 2 * model.temporal_layers
    width = 2 if stage.engine.precision == "bf16" else 4
    # Kept for the backward pass per token and layer: residual, q, k, v, attention's output, GEGLU's three tensors.
    per_layer = model.width * 2 + 4 * model.heads * model.head_dim + 3 * model.inner_width
    kept = model.width if stage.engine.activation_checkpointing else per_layer
    activations = max(tokens.values()) // workers * width * (kept * layers + (per_layer if kept != per_layer else 0))
    return _with_total(
        {
            "parameters": parameters,
            "discriminator_parameters": critic,
            "workers": workers,
            **{f"{kind}_tokens_per_step": count for kind, count in tokens.items()},
            **_state(parameters - frozen + critic, stage.engine, workers, frozen),
            "activations_bytes": activations,
        }
    )


def _unified(stage: TrainConfig, tokens: PretokenizeConfig, tokenizer) -> dict:
    from omniloom.models.unified.config import num_parameters
    from omniloom.models.unified.representations import patch_numbers
    from omniloom.stages.train.config import unified_config

    patch = tokens.pixel_patch
    sizes = {
        "latent_dim": tokenizer and tokenizer.latent_dim,
        "codebook_size": tokenizer and tokenizer.codebook_size,
        "pixel_dim": patch and patch_numbers(patch),
    }
    model = unified_config(stage, tokens.vocab_size, sizes, None)
    parameters = num_parameters(model)
    workers, accumulate = stage.workers.count, stage.workers.accumulate
    step_tokens = stage.batch_rows * stage.packing.length
    rows = stage.batch_rows // workers // accumulate
    width = 2 if stage.engine.precision == "bf16" else 4
    per_layer = 2 * model.width + 2 * (model.heads + model.kv_heads) * model.head_dim + 3 * model.hidden
    kept = model.width if stage.engine.activation_checkpointing else per_layer
    pass_tokens = rows * stage.packing.length
    activations = pass_tokens * width * (kept * model.layers + (per_layer if kept != per_layer else 0))
    return _with_total(
        {
            "parameters": parameters,
            "workers": workers,
            "tokens_per_step": step_tokens,
            "tokens_per_worker_and_pass": pass_tokens,
            **_state(parameters, stage.engine, workers),
            "activations_bytes": activations,
            # fp32 logits and their gradient, at every position in the worst case
            "logits_bytes": pass_tokens * model.vocab_size * 8,
            # ZeRO-3 gathers a layer at a time
            "gathered_bytes": parameters // model.layers * _WEIGHT * 2 if stage.engine.zero_stage == 3 else 0,
        }
    )
