"""Sizing: parameters, memory per worker and tokens per step of what a pipeline trains.

Nothing is trained and no GPU is needed: parameters are counted on torch's meta device or in closed form, and memory
follows from them. The estimate leaves out what the allocator wastes: plan for a tenth more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniloom.infra.errors import InputError, within
from omniloom.infra.training.config import EngineConfig
from omniloom.infra.training.memory import state_memory
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import PipelineConfig, naming
from omniloom.pipelines.trainings import Training, UnifiedTraining, training_of
from omniloom.stages.tokenizer.architecture import architecture
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train.memory import one_pass


def sizes(config: PipelineConfig) -> dict[str, dict]:
    """Per training stage: parameters, workers, units per step, and memory per worker in bytes by what takes it. A stage
    that starts from what is pinned has sizes that the config does not tell, and is left out."""
    models, found = tokenizer_models(config), {}
    for stage, own, upstream in with_upstream(config):
        with naming(config), within(f"stages.{stage.name}"):
            if stage.name in models:
                found[stage.name] = tokenizer_size(own, models[stage.name])
            elif stage.name not in config.pins and config.graph.inputs[stage.name].get("tokenizer") in {None, *models}:
                if training := training_of(own, upstream):
                    found[stage.name] = _training(training)
    return found


def tokenizer_models(config: PipelineConfig) -> dict[str, Any]:
    """The architecture that each tokenizer stage trains; but of those that start from what is pinned."""
    models: dict[str, Any] = {}
    for stage in config.graph.stages:
        own, before = getattr(config.stages, stage.name), config.graph.inputs[stage.name].get("tokenizer")
        if isinstance(own, TokenizerConfig) and (before is None or before in models):
            with naming(config), within(f"stages.{stage.name}"):
                models[stage.name] = architecture(own, models.get(before) if before else None)
    return models


def least(config: PipelineConfig) -> dict[str, dict]:
    """As `sizes`, what is known without torch, and of it what is sure to be needed: weights, gradients and states."""
    found = {}
    for stage, own, upstream in with_upstream(config):
        training = training_of(own, upstream) if stage.name not in config.pins else None
        if training:
            found[stage.name] = _with_total({"workers": own.workers.most, **_bytes(training.least)})
    return found


def _state(parameters: int, frozen: int, engine: EngineConfig, workers: int) -> dict[str, int]:
    return _bytes(state_memory(parameters, engine, workers, frozen))


def _bytes(parts: Mapping[str, int]) -> dict[str, int]:
    return {f"{name}_bytes": size for name, size in parts.items()}


def _with_total(size: dict) -> dict:
    return {**size, "memory_per_worker_bytes": sum(v for k, v in size.items() if k.endswith("_bytes"))}


def tokenizer_size(stage, model) -> dict:
    """Of a tokenizer's training: parameters, workers, tokens a step, and memory a worker in bytes by what takes it."""
    import torch

    from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, VQGANConfig
    from omniloom.models.tokenizer.discriminator import Discriminator

    tokenizer = list(_built(stage, model).parameters())
    parameters = sum(p.numel() for p in tokenizer)
    frozen = sum(p.numel() for p in tokenizer if not p.requires_grad)
    with torch.device("meta"):
        critic = sum(p.numel() for p in Discriminator(stage.discriminator).parameters()) if stage.discriminator else 0
    data, workers = stage.data, stage.workers.most
    if isinstance(model, VQGANConfig):  # taken as it is
        tokens = {"image": data.image_batch * (max(data.sizes) // model.patch_size) ** 2}
        size = {"parameters": parameters, "workers": workers, "image_tokens_per_step": tokens["image"]}
        return _with_total({**size, **_state(0, parameters, stage.engine, workers)})
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
            **_state(parameters - frozen + critic, frozen, stage.engine, workers),
            "activations_bytes": activations,
        }
    )


def _built(stage, model):
    """The tokenizer, without memory for its weights where its quantizer can be made so: one of another distribution may
    read what is in a tensor. InputError where it cannot be made at all."""
    import torch

    from omniloom.models.extensions import offered_by
    from omniloom.models.tokenizer.build import build_tokenizer
    from omniloom.models.tokenizer.quantizers.kinds import GROUP

    kind = getattr(getattr(model, "quantizer", None), "kind", "")
    origin = kind and offered_by(GROUP, kind)
    try:
        with torch.device("meta"):
            return build_tokenizer(model)
    except Exception:
        if not origin:
            raise
    try:
        return build_tokenizer(model)
    except Exception as error:  # whatever a module of somebody else's raises
        raise InputError(
            f"kind {kind} of the distribution {origin} cannot be built: {type(error).__name__}: {error}; mend it "
            "there, or take another kind",
            field="quantizer" if stage.quantizer else "model.quantizer",
        ) from error


def _training(training: Training) -> dict:
    trained, frozen = training.parameters
    workers, passes = training.config.workers.most, {}
    if isinstance(training, UnifiedTraining):
        positions = one_pass(training.config, training.model, workers).positions
        passes = {"tokens_per_worker_and_pass": positions}
    return _with_total(
        {
            "parameters": trained + frozen,
            **({"trained_parameters": trained} if frozen else {}),
            "workers": workers,
            f"{training.unit}_per_step": training.units,
            **passes,
            **_bytes(training.memory),
        }
    )
