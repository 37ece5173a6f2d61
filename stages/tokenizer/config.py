"""Configuration of the tokenizer's training stages.

Errors: pydantic's, and `ValueError` naming the field, where values do not fit each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from omniloom.infra.training.config import (
    BlocksOptimizerConfig,
    EngineConfig,
    OptimizerConfig,
    WorkersConfig,
    check_muon,
)
from omniloom.models.docstrings import field_docstrings
from omniloom.models.tokenizer.build import DEFAULT_ARCHITECTURE, AnyTokenizerConfig
from omniloom.models.tokenizer.config import IMAGES_ALONE, RAEConfig, TiTokConfig, TokenizerConfig, VQGANConfig
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig
from omniloom.stages.base import LATER, PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.data.aspects import Aspects, check_names
from omniloom.stages.retrain import Retrain


class DataConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    kinds: tuple[Literal["image", "video"], ...] = Field(("image",), min_length=1)
    """Kinds to train on: image, video or both."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((256,), min_length=1)
    """Pixels a side of a square; a step draws one of them."""
    aspects: tuple[str, ...] = Field(("1:1",), min_length=1)
    """Ratios, width:height; a clip is cut to the nearest, of as many pixels as the square, and a step has clips of
    one."""
    frames: int = Field(17, ge=1)
    """Frames of a video clip; 1 modulo the temporal patch."""
    image_batch: int = Field(64, ge=1)
    """Images a step, over all workers."""
    video_batch: int = Field(16, ge=1)
    """Video clips a step, over all workers."""
    image_ratio: float = Field(0.5, ge=0, le=1)
    """Share of steps on images where both kinds are trained."""
    flip: bool = False
    """Mirror half of the examples; not for letters and digits."""
    cache_bytes: int = Field(1 << 30, ge=0, json_schema_extra=PLACEMENT)
    """Decoded clips a worker keeps in memory."""

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(aspects)


class PerceptualConfig(BaseModel):
    """Where the frozen networks of the perceptual losses lie; none comes with the package."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    vgg: str = Field(json_schema_extra=path_to("file"))
    """URI of VGG-16's weights under torchvision's names, .safetensors or .pth."""
    heads: str | None = Field(None, json_schema_extra=path_to("file"))
    """URI of the LPIPS heads; the Gram loss needs none."""


def _architecture(value: Any) -> str:
    """Which config class `value` is meant for, or of."""
    if isinstance(value, dict):
        return str(value.get("architecture", DEFAULT_ARCHITECTURE))
    return getattr(value, "architecture", DEFAULT_ARCHITECTURE)


def _either(schema: dict) -> None:
    """What leaves `architecture` out fits both in JSON Schema's terms, which `oneOf` forbids."""
    schema["anyOf"] = schema.pop("oneOf")


@dataclass(frozen=True)
class NamedRAEConfig(RAEConfig):
    """An RAE whose encoder is the URI of a folder, or the pipeline's scorer, the shape of which is read when the stage
    runs."""

    encoder: str | None = field(default=None, metadata=path_to("folder", reads=FILES))
    """URI of the folder of a vision encoder, SigLIP, DINOv2 or CLIP, as `transformers` saves one; null: the pictures'
    tower of the scorer that this pipeline trains."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Fields that a dataclass inherits have no docstring of its own: they take that of the class they are from."""
        reference = handler(core_schema)
        fields = handler.resolve_ref_schema(reference)["properties"]
        for name, told in field_docstrings(RAEConfig).items():
            fields[name].setdefault("description", told)
        return reference


class SemanticAlignmentConfig(BaseModel):
    """Alignment of latents with a frozen vision encoder's features (VA-VAE, arXiv 2501.01423)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    encoder: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of the folder of a vision encoder, SigLIP, DINOv2 or CLIP, as `transformers` saves one; null: the pictures'
    tower of the scorer that this pipeline trains."""
    weight: float = Field(0.1, gt=0)
    """Weight of both terms together, which are first scaled so that their gradient at the encoder's last matrix is as
    long as that of the reconstruction."""
    cosine_margin: float = Field(0.5, ge=0, lt=2)
    """A position is left alone whose projected latent has a cosine with its feature of more than 1 less this."""
    distance_margin: float = Field(0.25, ge=0, lt=2)
    """Two positions are left alone whose latents' cosine is this near to that of their features."""


ModelConfig = Annotated[
    Annotated[TokenizerConfig, Tag("omni")]
    | Annotated[TiTokConfig, Tag("titok")]
    | Annotated[NamedRAEConfig, Tag("rae")],
    Discriminator(_architecture),
    Field(json_schema_extra=_either),
]


class TokenizerStageConfig(BaseModel):
    """`model` None takes the architecture of the tokenizer that training starts from."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    model: ModelConfig | None = None
    """The architecture, by `architecture`; null takes that of the tokenizer that training starts from."""
    official: str | None = Field(None, json_schema_extra=path_to("any", reads=FILES))
    """URI of a released OmniTokenizer checkpoint to start from, in place of `model`; beside a `model` with
    `proxy_codes` the one whose codes that learns. Or the folder of a Janus, whose picture tokenizer is taken as it is,
    with `steps` 0."""
    quantizer: QuantizerConfig | None = None
    """Another bottleneck than that of the tokenizer that training starts from."""
    train_only: Literal["decoder"] | None = Field(None, json_schema_extra=LATER)
    """decoder: of the tokenizer that training starts from the decoder alone is trained, and codes and latents stay what
    they are; null: all of it is."""
    loss: TokenizerLossConfig = Field(default_factory=TokenizerLossConfig)
    """Weights of what the tokenizer is trained to: reconstruction, perceptual and adversarial terms."""
    perceptual: PerceptualConfig | None = None
    """The frozen networks of perceptual losses, where the loss gives a weight to one."""
    alignment: SemanticAlignmentConfig | None = Field(None, json_schema_extra=LATER)
    """What latents of an OmniTokenizer are aligned with, of pictures alone; null: nothing."""
    discriminator: DiscriminatorConfig | None = None
    """The discriminator of adversarial training; null: none."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Which clips it trains on."""
    steps: int = Field(500000, ge=0)
    """0 takes the tokenizer that training starts from as it is."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of weights, clips and noise."""
    optimizer: BlocksOptimizerConfig = Field(default_factory=BlocksOptimizerConfig)
    """The optimizer of the tokenizer."""
    discriminator_optimizer: OptimizerConfig | None = None
    """Like `optimizer` where not given, without its muon."""
    engine: EngineConfig = Field(default_factory=EngineConfig)
    """Numerics and sharding."""
    workers: WorkersConfig = Field(default_factory=WorkersConfig, json_schema_extra=PLACEMENT)
    """Where the training runs."""
    retrain: Retrain = "never"
    """When the corpus has grown: never keeps the tokenizer, always trains it again, `when_changed_by 20%` trains it
    again where more than that is new, or gone. With never, too, one is trained where most of the corpus that the last
    learnt from is gone."""
    validate_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT)
    """Steps between validations."""
    validation_examples: int = Field(64, ge=1, json_schema_extra=PLACEMENT)
    """Clips of each kind that are validated on, drawn by the seed, evenly over sources and labels."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> TokenizerStageConfig:
        if self.model:
            check_fit(self.model, self.data)
        for batch, kind in ((self.data.image_batch, "image"), (self.data.video_batch, "video")):
            if kind in self.data.kinds and batch % self.workers.most:
                raise ValueError(f"data.{kind}_batch: {batch} does not divide by workers.count {self.workers.most}")
        if is_warm_up(self.model):
            self._check_warm_up()
        elif self.official and self.model:
            raise ValueError("official: the checkpoint has its architecture with it, expected no `model`")
        if self.loss.needs_perceptual and not self.perceptual:
            raise ValueError("perceptual: is missing, and the loss gives a weight to it")
        if self.perceptual and not self.loss.needs_perceptual:
            raise ValueError("perceptual: has no effect: loss.perceptual_weight and loss.style_weight are 0")
        for name in ("adversarial_start", "discriminator_warmup", "adversarial_ramp", "adaptive_weight"):
            if getattr(self.loss, name) and not self.discriminator:
                raise ValueError(f"loss.{name}: has no effect: there is no discriminator")
        if self.train_only and self.quantizer:
            raise ValueError("quantizer: expected null with train_only: decoder, which keeps the codes")
        if self.train_only and is_warm_up(self.model):
            raise ValueError("train_only: expected null in the warm-up of a TiTok, whose encoder is what it trains")
        check_muon(self.optimizer, self.engine)
        if self.alignment:
            self._check_alignment()
        if self.workers.accumulate != 1:
            raise ValueError("workers.accumulate: a tokenizer step has one forward pass, expected 1")
        return self

    def _check_warm_up(self) -> None:
        for name in ("loss", "perceptual", "alignment", "discriminator", "discriminator_optimizer"):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(
                    f"{name}: has no effect in the warm-up of a TiTok, which learns codes and no pixels; leave it out, "
                    "or model.proxy_codes"
                )

    def _check_alignment(self) -> None:
        if "video" in self.data.kinds:
            raise ValueError("alignment: is of pictures alone, expected data.kinds [image]")
        if self.train_only:
            raise ValueError("alignment: has no effect with train_only: decoder, which keeps the latents")
        if self.engine.zero_stage == 3:
            raise ValueError("alignment: reads one matrix's gradient, expected engine.zero_stage 0 to 2")


Config = TokenizerStageConfig


class KLTokenizerConfig(TokenizerStageConfig):
    """Stage 3: what the joint stage has learned, with a continuous bottleneck in place of its codes."""

    quantizer: QuantizerConfig | None = Field(default_factory=GaussianConfig)
    """The continuous bottleneck, or another one than that of the tokenizer that training starts from; null: its own."""


KLConfig = KLTokenizerConfig


def scorer_field(config: TokenizerStageConfig) -> str | None:
    """The field that takes the pipeline's scorer for its encoder; None where none does."""
    if isinstance(config.model, NamedRAEConfig) and config.model.encoder is None:
        return "model.encoder"
    return "alignment.encoder" if config.alignment and config.alignment.encoder is None else None


def is_warm_up(model: AnyTokenizerConfig | None) -> bool:
    """Whether it is a TiTok that learns another tokenizer's codes, and has no pixels yet."""
    return isinstance(model, TiTokConfig) and model.proxy_codes is not None


def check_fit(model: AnyTokenizerConfig, data: DataConfig) -> None:
    """ValueError where a size or a number of frames does not fit the model, as far as its patch is known."""
    if "video" in data.kinds and (name := IMAGES_ALONE.get(model.architecture)):
        raise ValueError(f"data.kinds: {name} is for images alone, expected [image]")
    if model.patch_size is None:  # an RAE's is that of its encoder, whose folder is read when the stage runs
        return
    aspects = Aspects(data.aspects, model.patch_size)
    aspects.check(data.sizes, "data.sizes", "data.aspects")
    if isinstance(model, RAEConfig | VQGANConfig):
        return
    if isinstance(model, TiTokConfig):
        for size in data.sizes:
            for bucket, name in enumerate(aspects.names):
                if (shape := aspects.shape(bucket, size)) != model.size:
                    raise ValueError(
                        f"data.sizes: {size} at aspect {name} makes pictures of {shape[0]}x{shape[1]}, "
                        f"model.image_size is {model.size[0]}x{model.size[1]}"
                    )
        return
    if model.compat == "official" and set(data.aspects) != {"1:1"}:
        raise ValueError("data.aspects: the published computation takes squares alone, expected [1:1]")
    if "video" in data.kinds and (data.frames - 1) % model.temporal_patch:
        raise ValueError(
            f"data.frames: expected 1 + a multiple of temporal_patch {model.temporal_patch}, got {data.frames}"
        )
