"""The config of stage `train`: what is trained, by which objectives, on which rows; and the model that it asks for.

In: the pipeline's YAML. Out: `Config`, and `UnifiedConfig` where the facts of the tokens are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, field_validator, model_validator

from omniloom.infra.errors import InputError
from omniloom.infra.training.config import BlocksOptimizerConfig, EngineConfig, WorkersConfig, check_muon
from omniloom.models.checks import FieldError
from omniloom.models.docstrings import field_docstrings
from omniloom.models.unified.adapter.config import AdapterConfig, trained_parameters
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import DensityConfig, MixtureConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig, pixel_fields
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.representations import DENSITY, OBJECTIVES, REPRESENTATIONS, Objective, patch_numbers
from omniloom.stages.base import LATER, PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.checkpoints.start import known_config, start_config
from omniloom.stages.data.packing import PackingConfig, Task
from omniloom.stages.data.shares import AS_SCHEDULE, AS_SHARES, BY_FORM, Schedule, most, of_names, stages
from omniloom.stages.inference.config import DrawingConfig

# The architecture as far as it is a choice: vocabulary and what pictures are made of come from the tokens, and some
# parts that models of others have from the start alone.
_FROM_INPUTS = ("vocab_size", "latent_dim", "pixel_dim", "codebook_size", "specials")
_FROM_START = ("qk_norm_kind", "norm_after", "code_dim", "step_sizes")
_HINTS = get_type_hints(UnifiedConfig)
_TOLD = field_docstrings(UnifiedConfig)
ArchitectureConfig = create_model(  # type: ignore[call-overload]  # fields as they come
    "ArchitectureConfig",
    __config__=ConfigDict(extra="forbid", use_attribute_docstrings=True),
    __doc__="Shape of the transformer, as far as it is a choice.",
    **{
        f.name: (_HINTS[f.name], Field(f.default, description=_TOLD[f.name], json_schema_extra={**f.metadata} or None))
        for f in fields(UnifiedConfig)
        if f.name not in (*_FROM_INPUTS, *_FROM_START)
    },
)


class LossConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    text_weight: float = Field(1.0, ge=0)
    """Weight of the loss on text, and of objectives on codes."""
    visual_weight: float = Field(5.0, ge=0)
    """Weight of the loss of a diffusion, and of next_latent."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared log-partition of text (arXiv 2204.02311, section 5.1), which keeps logits from drifting."""
    task_weights: dict[Task, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By what a document is arranged as (text, draw, describe, document): factor of the losses of its targets, 1 where
    it is not named; means go over all targets as without it."""
    objective_weights: dict[Objective, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By objective; what is not named has text_weight where it is on codes, else visual_weight."""


def _pixel_diffusion(value: Any) -> Any:
    """What is left out of a mapping is the default of pixels, not of latents."""
    return pixel_fields(value) if isinstance(value, dict) else value


class LearningRateConfig(BaseModel):
    """Learning rates of the model's parts as multiples of `optimizer.lr`; 0 freezes a part."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    text: float = Field(1.0, ge=0)
    """Learning rate of vocabulary, blocks and head, as a multiple of the schedule's."""
    visual: float = Field(1.0, ge=0)
    """Learning rate of the pictures' input and output layers and of their parts of the blocks, as a multiple of the
    schedule's."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> LearningRateConfig:
        if not self.text and not self.visual:
            raise ValueError("text and visual are both 0, which leaves nothing to train")
        return self


class AlignmentConfig(BaseModel):
    """Hidden states of diffusions' targets are drawn towards the features that pretokenize.features keeps (REPA)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    weight: float = Field(0.5, ge=0)
    """Weight of the alignment's loss."""
    layer: int | None = Field(None, ge=1)
    """Blocks behind which the states are taken; null takes a third of them."""

    def check(self, layers: int) -> None:
        """ValueError where a model of that many layers has no such block."""
        if self.layer and self.layer > layers:
            raise ValueError(f"alignment.layer: expected at most the model's {layers}, got {self.layer}")


class TrainEngineConfig(EngineConfig):
    """Numerics and sharding of the unified model's training."""

    activation_checkpointing: bool | Literal["auto"] = Field(False, json_schema_extra=PLACEMENT)  # type: ignore[assignment]
    """Compute activations again in the backward pass, which saves memory and costs time; auto: where a worker's device
    has no room to keep them."""
    sequence_parallel: int = Field(1, ge=1, json_schema_extra=PLACEMENT)
    """Workers that share out the places of each row, for rows that do not fit on one GPU (DeepSpeed-Ulysses): a divisor
    of workers.count and of the attention heads. `batch_rows` stays the rows of a step: workers.count /
    sequence_parallel groups divide them."""

    def check_heads(self, model: UnifiedConfig) -> None:
        """ValueError where the model's heads, or its blocks, cannot be shared out."""
        if self.sequence_parallel > 1 and model.attention_every is not None:
            raise ValueError(
                "engine.sequence_parallel: expected 1 with model.attention_every, whose recurrence goes through whole "
                f"rows, got {self.sequence_parallel}"
            )
        if model.attention_heads % self.sequence_parallel:
            whose = "model.hidden / head_dim" if model.block == "gau" else "model.heads"
            raise ValueError(
                f"engine.sequence_parallel: expected a divisor of the attention heads, {whose} = "
                f"{model.attention_heads}, got {self.sequence_parallel}"
            )


class SampleConfig(DrawingConfig):
    count: int = Field(16, ge=0)
    """Validation captions that are drawn."""


class ContinueConfig(BaseModel):
    """The step of an earlier training that this one goes on from, with its weights, optimizer states and documents."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    training: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The earlier training's fingerprint, all 64 digits as `plan --json` shows it; finished or not, in this storage."""
    step: int = Field(ge=1)
    """How many of its steps are done there: one that it has a checkpoint of."""


class TrainConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    model: ArchitectureConfig = Field(default_factory=ArchitectureConfig)
    """Shape of the transformer."""
    init_from: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of what to start from: a Llama, Mistral, Qwen, Phi, Chameleon, Emu3, Janus, BAGEL or Show-o folder
    (config.json, safetensors, tokenizer.json), or a train artifact or its `model` folder; of `model`, only what it
    lacks is read."""
    adapter: AdapterConfig | None = Field(None, json_schema_extra=LATER)
    """Low-rank adapters on the frozen weights of `init_from` (LoRA), merged in the trained model; null: all weights are
    trained."""
    lr_scale: LearningRateConfig = Field(default_factory=LearningRateConfig)
    """Learning rates of the model's parts."""
    objectives: Annotated[
        Annotated[dict[Objective, Annotated[float, Field(ge=0)]], AS_SHARES] | Annotated[Schedule, AS_SCHEDULE], BY_FORM
    ] = Field(default_factory=lambda: {"latent_diffusion": 1.0})
    """Objectives of pictures, with their shares of the documents: latent_diffusion, pixel_diffusion, next_code,
    masked_code, next_latent; without any it is a language model, trained on texts alone. Or a schedule of them."""
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    """Diffusion over latents."""
    pixel_diffusion: Annotated[DiffusionConfig, BeforeValidator(_pixel_diffusion)] = PIXEL_DIFFUSION
    """Diffusion over raw pixels, which pretokenize.pixel_patch keeps."""
    alignment: AlignmentConfig | None = None
    """Drawing hidden states towards a frozen encoder's features; null: none."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """Weights of the losses."""
    packing: PackingConfig = Field(default_factory=PackingConfig)
    """How documents are packed into rows."""
    batch_rows: int = Field(32, ge=1)
    """Packed rows an optimizer step, over all workers."""
    steps: int = Field(100_000, ge=1)
    """Optimizer steps."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of weights, documents and noise."""
    optimizer: BlocksOptimizerConfig = Field(default_factory=BlocksOptimizerConfig)
    """The optimizer."""
    engine: TrainEngineConfig = Field(default_factory=lambda: TrainEngineConfig(ema_decay=0.999))
    """Numerics and sharding."""
    workers: WorkersConfig = Field(default_factory=WorkersConfig, json_schema_extra=PLACEMENT)
    """Where the training runs."""
    continue_from: ContinueConfig | None = Field(None, json_schema_extra=PLACEMENT)  # see `enters_fingerprint`
    """The step of an earlier training to go on from; null: step 0. What may differ from it: docs/books.md."""
    keep_checkpoint: bool = Field(False, json_schema_extra=PLACEMENT)
    """Keep the last checkpoint in the artifact, so that a finished training can be gone on from; it is as large as the
    weights, the optimizer's states and the moving average."""
    cache_bytes: int | None = Field(None, ge=1, json_schema_extra=PLACEMENT)
    """Bytes of each machine's disk, below $OMNILOOM_CACHE, for token shards that come from an object store, of which
    those used last stay; null: nine tenths of what is free."""
    validate_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT)
    """Steps between validations."""
    validation_rows: int = Field(16, ge=1, json_schema_extra=PLACEMENT)
    """Packed rows of the validation split that losses are measured on."""
    samples: SampleConfig = Field(default_factory=SampleConfig, json_schema_extra=PLACEMENT)
    """Held-out captions that are drawn while it trains."""

    @field_validator("init_from")
    @classmethod
    def _is_a_place(cls, init_from: str | None) -> str | None:
        if init_from and init_from.startswith("models:/"):
            raise ValueError(
                "expected a folder's path or URI, got a model of the registry; name its train artifact, "
                "STORAGE/artifacts/train/FINGERPRINT, by the version's tag omniloom.fingerprint"
            )
        return init_from

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, objectives: Any) -> Any:
        of_names(objectives, tuple(OBJECTIVES))
        if any(any(held.values()) for held in stages(objectives)) and not all(
            any(h.values()) for h in stages(objectives)
        ):
            raise ValueError("schedule: at each step some objective must have a share")
        return objectives

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if not self.trained and (
            shares := [kind for kind, share in most(self.packing.mixture).items() if share and kind != "text"]
        ):
            raise ValueError(
                f"packing.mixture: {', '.join(shares)} holds pictures, and objectives names none to train on them"
            )
        if unknown := set(self.loss.objective_weights) - set(self.trained):
            raise ValueError(f"loss.objective_weights: {', '.join(sorted(unknown))} has no share in objectives")
        if self.alignment and not any(OBJECTIVES[name].is_diffusion for name in self.trained):
            raise ValueError(
                "alignment: expected null without a share of latent_diffusion or pixel_diffusion, whose "
                "pictures it is of"
            )
        check_muon(self.optimizer, self.engine)
        if self.adapter and not self.init_from:
            raise ValueError(
                "adapter: adapts the weights of a model; set init_from to the folder of one, or adapter to null"
            )
        if self.init_from and getattr(self.model, "mup", None):
            raise ValueError("model.mup: is of a model that begins at random; a model of ours brings its own")
        if self.adapter and not self.lr_scale.text:
            raise ValueError("lr_scale.text: is 0, which leaves the adapter untrained; set adapter to null")
        if not self.init_from:
            try:
                model = placeholder_model(self)
                written = self.model.model_fields_set
                dumped = UnifiedConfig.dumped() & type(self.model).model_fields.keys()
                model.check_uses(() if written >= dumped else written)
            except FieldError as error:
                raise error.below("model") from None
            self.check_model(model)
        self._check_groups()
        return self

    def check_model(self, model: UnifiedConfig) -> None:
        """ValueError where the model has not what other fields ask of it."""
        if self.alignment:
            self.alignment.check(model.layers)
        self.engine.check_heads(model)
        if model.mup and self.optimizer.muon:
            raise ValueError("optimizer.muon: expected null with muP, whose learning rates are Adam's")

    def _check_groups(self) -> None:
        """That workers form whole groups, and the rows of a step divide by their forward passes."""
        workers, size = self.workers, self.engine.sequence_parallel
        if size > 1 and workers.least != workers.most:
            raise ValueError(
                f"engine.sequence_parallel: expected 1 with a range of workers.count, of which {size} may not divide "
                f"every number; or set workers.count to one number"
            )
        if workers.most % size:
            raise ValueError(
                f"engine.sequence_parallel: expected a divisor of workers.count {workers.most}, got {size}"
            )
        if size > 1 and (whole := [name for name in self.trained if not OBJECTIVES[name].separable]):
            raise ValueError(
                f"engine.sequence_parallel: expected 1 with {', '.join(whole)}, whose predictions cannot be shared out "
                "(`VisualObjective.separable`)"
            )
        if size > 1 and self.adapter and self.adapter.dropout:
            raise ValueError(
                f"adapter.dropout: expected 0 with engine.sequence_parallel {size}, as it is drawn for whole rows"
            )
        parts = workers.most // size * workers.accumulate
        if self.batch_rows % parts:
            told = "workers.count * accumulate" + (" / engine.sequence_parallel" if size > 1 else "")
            raise ValueError(f"batch_rows: {self.batch_rows} does not divide by {told} = {parts}")

    @property
    def enters_fingerprint(self) -> dict[str, str]:
        """What counts in the fingerprint beside the fields: where the training goes on from."""
        before = self.continue_from
        return {"continue_from": f"{before.training}@{before.step}"} if before else {}

    @property
    def trained(self) -> tuple[str, ...]:
        """The objectives that ever have a share, in the order of their table."""
        shares = most(self.objectives)
        return tuple(row.name for row in OBJECTIVES.values() if shares.get(row.name))


Config = TrainConfig


def kept_config(values: Mapping[str, Any], **more: Any) -> TrainConfig:
    """A config as a manifest or a ledger keeps it, with `more` fields, on one worker. What `model` did not have when it
    was written has its default: a dump is known by having all. ValueError where this version does not know a field."""
    model = {**ArchitectureConfig().model_dump(), **(values.get("model") or {})}
    return TrainConfig.model_validate({**values, "model": model, "workers": {"count": 1}, **more})


_SIZES = tuple(row.size for row in REPRESENTATIONS.values())


def placeholder_model(config: TrainConfig) -> UnifiedConfig:
    """The model's config before anything is known of the tokens; of one that starts from no checkpoint."""
    return unified_config(config, 1 << 20, {name: 1 for name in _SIZES}, None)


def visual_sizes(facts: dict) -> dict[str, int | None]:
    """The sizes of each representation of pictures in the tokens that `facts` (tokens.json) are about."""
    patch = facts.get("pixel_patch")
    return {
        "latent_dim": len(facts["latent_mean"]) or None,
        "pixel_dim": patch and patch_numbers(patch),
        "codebook_size": facts.get("codebook_size"),
    }


def feature_dim(config: Config, facts: dict) -> int | None:
    """Channels of the features that are trained on, of the tokens that `facts` are about; None where none are."""
    return held_features(facts) if config.alignment else None


def held_features(facts: dict) -> int:
    """Channels of the features in the tokens; InputError where they hold none."""
    if not facts.get("feature_dim"):
        raise InputError("the tokens hold no features; set stages.pretokenize.features", field="alignment")
    return facts["feature_dim"]


def unified_config(
    config: Config, vocab_size: int, sizes: dict[str, int | None], specials: dict | None
) -> UnifiedConfig:
    """The model's config; of the `sizes` of pictures' representations it has those that the objectives need. Where
    training starts from a checkpoint, its config.json is read."""
    sizes = {
        name: value
        for name, value in sizes.items()
        if any(OBJECTIVES[objective].representation.size == name for objective in config.trained)
    }
    for objective in config.trained:
        if sizes[OBJECTIVES[objective].representation.size] is None:
            missing = {
                "latent_dim": "the tokens are of texts alone, made without a visual tokenizer",
                "pixel_dim": "the tokens hold no raw pixels; set stages.pretokenize.pixel_patch",
                "codebook_size": "the visual tokenizer is continuous and has no codes",
            }[OBJECTIVES[objective].representation.size]
            raise InputError(f"{objective} cannot be trained: {missing}", field="objectives")
    if config.init_from:
        # A default is no wish: only what is written in the config can contradict the checkpoint.
        chosen = {
            name: value for name in config.model.model_fields_set if (value := getattr(config.model, name)) is not None
        }
        density = chosen.pop(DENSITY, None)
        return _with_density(config, start_config(config.init_from, chosen, vocab_size, sizes, specials), density)
    given: dict[str, Any] = {**sizes, **({"specials": specials} if specials else {})}
    own = config.model.model_dump(exclude={DENSITY})
    return _with_density(config, UnifiedConfig(vocab_size=vocab_size, **given, **own), getattr(config.model, DENSITY))


def _with_density(config: Config, model: UnifiedConfig, chosen: DensityConfig | None) -> UnifiedConfig:
    """The model with the density head that its objectives ask: the chosen one, else that of its start, else a mixture.
    InputError where start and choice differ."""
    if not any(OBJECTIVES[name].by_density for name in config.trained):
        return replace(model, density=None)
    if chosen and model.density and chosen != model.density:
        raise InputError(f"the start has {model.density}, got {chosen}; leave it out", field=f"model.{DENSITY}")
    return replace(model, density=chosen or model.density or MixtureConfig())


def expected_config(config: TrainConfig, tokens: Any, tokenizer: Any) -> UnifiedConfig:
    """The model's config as pretokenize's config (`tokens`) and the tokenizer's architecture tell before there are any;
    what an unknown architecture, None, would make is taken to be there, as the start has it. Tokens for a start are in
    its vocabulary, to which theirs may add a few rows."""
    start = known_config(config.init_from) if config.init_from and not tokenizer else None
    sizes = {
        "latent_dim": tokenizer.latent_dim if tokenizer else start and start.latent_dim or 1,
        "codebook_size": tokenizer.codebook_size if tokenizer else start and start.codebook_size or 1,
        "pixel_dim": tokens.pixel_patch and patch_numbers(tokens.pixel_patch),
    }
    return unified_config(config, 0 if config.init_from else tokens.vocab_size, sizes, None)


def parameters_of(config: TrainConfig, model: UnifiedConfig) -> tuple[int, int]:
    """(numbers that are trained, numbers that stay as they are) of a model that is trained by the config."""
    if config.adapter is None or config.init_from is None:
        return num_parameters(model), 0
    check_adapter(config, model)
    added, whole = trained_parameters(config.adapter, model, known_config(config.init_from, model))
    return added + whole, num_parameters(model) - whole


def check_adapter(config: TrainConfig, model: UnifiedConfig) -> None:
    """InputError where the adapter does not fit the model, or has an option that changes nothing."""
    if config.adapter is None or config.init_from is None:
        return
    try:
        config.adapter.chosen(model)
    except FieldError as error:
        raise InputError(error.reason, field=f"adapter.{error.field}") from None
    known = known_config(config.init_from, model).representations
    if "visual" in config.adapter.trained_whole and not {*known} & {*model.representations}:
        raise InputError(
            "visual has no effect: the start has no parts for the pictures that are trained on, and those that are "
            "new are trained anyway",
            field="adapter.trained_whole",
        )
