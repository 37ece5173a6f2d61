"""Configuration of the visual tokenizer: frozen dataclasses, standard library only.

In: plain values from a pipeline's YAML (a stage's pydantic `Config` holds these classes) or from code.
Out: checked, hashable values that the tokenizers are built from.
Errors: `ValueError` naming the field, what was given and what was expected.
Figures: OmniTokenizer, arXiv 2406.09399 (the defaults are the published joint configuration).
Of every config: `patch_size`, and what its bottleneck gives: `latent_dim` channels, `codebook_size` codes or None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from omniloom.models.checks import STRICT_AND_DESCRIBED, Conditional, Use, require
from omniloom.models.tokenizer.quantizers.config import GaussianConfig, VQConfig
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig
from omniloom.models.tokenizer.vit_config import ViTConfig

SPATIAL_KINDS = {"t": "plain", "w": "window"}
IMAGES_ALONE = {
    "titok": "a TiTok",
    "rae": "an RAE",
    "vqgan": "a VQGAN",
}  # architectures that encode no videos, and what one is called


class _Quantized:
    """Properties of the latents of a config with a `quantizer`."""

    quantizer: QuantizerConfig

    @property
    def latent_dim(self) -> int:
        return self.quantizer.dim

    @property
    def codebook_size(self) -> int | None:
        return self.quantizer.size


def _official(config: TokenizerConfig) -> bool:
    return config.compat == "official"


@dataclass(frozen=True)
class TokenizerConfig(_Quantized, Conditional):
    """OmniTokenizer's shape."""

    USES: ClassVar = {
        name: Use(_official, "compat: official") for name in ("positions", "rel_bias", "causal_attention", "causal_peg")
    }

    architecture: Literal["omni"] = "omni"
    """Which tokenizer this is: an OmniTokenizer."""
    patch_size: int = 8
    """Pixels a side of one token."""
    temporal_patch: int = 4
    """Frames of one token, after the first frame."""
    width: int = 512
    """Channels of the hidden states."""
    heads: int = 8
    """Attention heads of every block."""
    head_dim: int = 64
    """Channels of a head; heads * head_dim may differ from width."""
    mlp_width: int = 0
    """Inner width of the GEGLU feed-forward; 0 takes 8/3 of the width, rounded up to a multiple of 32, at which matrix
    products are fast."""
    spatial_layers: str = "ttww"
    """The encoder's blocks over space, one letter a block: t plain attention, w window attention."""
    temporal_layers: int = 4
    """Causal blocks over time, as many in the encoder as in the decoder."""
    decoder_spatial_layers: str = "tttt"
    """The decoder's blocks over space, as in `spatial_layers`."""
    window: int = 8
    """Tokens a side of an attention window."""
    temporal_window: int = 8
    """Latent frames that attention over time sees, its own included; 0: all earlier ones, whose keys a video in chunks
    then keeps, so that its memory grows with its length."""
    patch_norm: bool = False
    """LayerNorm on the pixels of each patch, as published. It takes a patch's brightness and contrast away before the
    first weight sees them, so it is off by default."""
    compat: Literal["corrected", "official"] = "corrected"
    """corrected, or official for the published computation with its faults, for released weights. That one has its
    patch norms always, a mlp_width of int(8/3 * width), and a vq or kl quantizer."""
    positions: Literal["rope", "rel"] = "rope"
    """In the plain spatial blocks of compat: official, rope or rel (a continuous position bias)."""
    rel_bias: Literal["sdpa", "einsum"] = "sdpa"
    """The published attention path of compat: official: sdpa drops the bias of rel, einsum adds it, and ALiBi in causal
    temporal blocks, whatever the positions."""
    causal_attention: bool = True
    """Whether temporal attention of compat: official sees earlier frames alone."""
    causal_peg: bool = True
    """Whether every convolution of compat: official sees earlier frames alone."""
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    """The bottleneck between encoder and decoder, by `kind`; vq where it does not say."""

    def __post_init__(self) -> None:
        require(self.architecture == "omni", self, "architecture", "omni")
        self._check_compat()
        for name in ("patch_size", "temporal_patch", "width", "heads", "head_dim", "window"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(self.head_dim % 4 == 0, self, "head_dim", "a multiple of 4 (2-D rotary positions)")
        require(self.mlp_width >= 0, self, "mlp_width", "an integer of at least 0")
        for name in ("temporal_layers", "temporal_window"):
            require(getattr(self, name) >= 0, self, name, "an integer of at least 0")
        for name in ("spatial_layers", "decoder_spatial_layers"):
            value = getattr(self, name)
            require(bool(value) and set(value) <= set(SPATIAL_KINDS), self, name, "letters out of t and w")

    def _check_compat(self) -> None:
        require(self.compat in ("corrected", "official"), self, "compat", "one of corrected, official")
        require(self.positions in ("rope", "rel"), self, "positions", "one of rope, rel")
        require(self.rel_bias in ("sdpa", "einsum"), self, "rel_bias", "one of sdpa, einsum")
        if self.compat == "official":
            published = isinstance(self.quantizer, VQConfig | GaussianConfig)
            require(published, self, "quantizer", "kind vq or kl with compat official")
            require(self.width % self.heads == 0, self, "heads", "a divisor of width with compat official")
        self.check_uses(
            name for name in self.USES if getattr(self, name) != type(self).__dataclass_fields__[name].default
        )

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        if self.compat == "official":
            return self.mlp_width or int(4 * (2 / 3) * self.width)
        return self.mlp_width or -(-8 * self.width // 96) * 32


@dataclass(frozen=True)
class TiTokConfig(_Quantized):
    """TiTok's shape (arXiv 2406.07550): images of one size as a row of `num_latents` tokens."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    architecture: Literal["titok"] = "titok"
    """Which tokenizer this is: a TiTok."""
    image_size: int | tuple[int, int] = 256
    """Pixels a side of a square image, or [height, width]; multiples of patch_size."""
    patch_size: int = 16
    """Pixels a side of the patches that the encoder reads and the decoder predicts."""
    num_latents: int = 128
    """Tokens an image; the paper's sizes have 32, 64 and 128 for 256x256 pixels."""
    width: int = 512
    """Channels of the hidden states, of encoder and decoder."""
    heads: int = 8
    """Attention heads of every block."""
    head_dim: int = 64
    """Channels of a head; heads * head_dim may differ from width."""
    mlp_width: int = 0
    """Inner width of the feed-forward; 0 takes 8/3 of the width, rounded up to a multiple of 32."""
    encoder_layers: int = 8
    """The encoder's blocks of full attention over patches and latents."""
    decoder_layers: int = 8
    """The decoder's blocks of full attention over patches and latents."""
    proxy_codes: int | None = None
    """The first of the paper's two training stages, a warm-up: the decoder predicts the codes of the OmniTokenizer that
    training starts from, in place of pixels. How many codes that has; its patch_size has to be this one's. The next
    tokenizer stage trains the decoder alone on pixels. null: pixels from the start."""
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    """The bottleneck between encoder and decoder, by `kind`; vq where it does not say."""

    def __post_init__(self) -> None:
        given: Any = self.image_size
        if isinstance(given, list):  # JSON and YAML have no tuples
            object.__setattr__(self, "image_size", tuple(given))
        require(self.architecture == "titok", self, "architecture", "titok")
        for name in ("patch_size", "num_latents", "width", "heads", "head_dim", "encoder_layers", "decoder_layers"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(self.head_dim % 4 == 0, self, "head_dim", "a multiple of 4 (2-D rotary positions)")
        require(self.mlp_width >= 0, self, "mlp_width", "an integer of at least 0")
        fits = isinstance(self.image_size, int) or len(self.image_size) == 2
        fits = fits and all(side >= 1 and side % self.patch_size == 0 for side in self.size)
        expected = f"a positive multiple of patch_size {self.patch_size}, or two of them (height, width)"
        require(fits, self, "image_size", expected)
        require(self.proxy_codes is None or self.proxy_codes >= 2, self, "proxy_codes", "null or at least 2")

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        return self.mlp_width or -(-8 * self.width // 96) * 32

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)


@dataclass(frozen=True)
class RAEConfig:
    """A representation autoencoder (arXiv 2510.11690): a frozen vision encoder's features as the latents of images, and
    a trained decoder, a vision transformer. Defaults: the paper's largest decoder."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    encoder: str | ViTConfig | None
    """The encoder's shape; before it is known, the URI of its folder as `transformers` saves one, or null: the
    pictures' tower of the pipeline's scorer."""
    architecture: Literal["rae"] = "rae"
    """Which tokenizer this is: a representation autoencoder."""
    patch_size: int | None = None
    """Pixels a side that a latent stands for and the decoder predicts; null: the encoder's patch. Where they differ,
    the encoder sees the picture scaled (the paper: DINOv2, of patch 14, sees 224 of 256 pixels with 16)."""
    width: int = 1152
    """Channels of the decoder's hidden states."""
    heads: int = 16
    """Attention heads of the decoder's blocks."""
    head_dim: int = 72
    """Channels of a head; heads * head_dim may differ from width."""
    mlp_width: int = 0
    """Inner width of the decoder's feed-forward; 0 takes 8/3 of the width, rounded up to a multiple of 32."""
    decoder_layers: int = 28
    """The decoder's blocks."""
    noise_tau: float = 0.8
    """In training the decoder reads latents with noise of the deviation |N(0, noise_tau^2)|, one an image, so that it
    forgives what a diffusion draws."""

    def __post_init__(self) -> None:
        require(self.architecture == "rae", self, "architecture", "rae")
        known = isinstance(self.encoder, ViTConfig)
        require(
            known or self.encoder is None or (isinstance(self.encoder, str) and bool(self.encoder)),
            self,
            "encoder",
            "the URI of a vision encoder's folder, or null",
        )
        if known and self.patch_size is None:
            object.__setattr__(self, "patch_size", cast(ViTConfig, self.encoder).patch_size)
        require(self.patch_size is None or self.patch_size >= 1, self, "patch_size", "null or at least 1")
        for name in ("width", "heads", "head_dim", "decoder_layers"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(self.head_dim % 4 == 0, self, "head_dim", "a multiple of 4 (2-D rotary positions)")
        require(self.mlp_width >= 0, self, "mlp_width", "an integer of at least 0")
        require(self.noise_tau >= 0, self, "noise_tau", "a number of at least 0")

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        return self.mlp_width or -(-8 * self.width // 96) * 32

    @property
    def known_patch_size(self) -> int:
        """`patch_size`; ValueError where it is that of an encoder whose shape is not known."""
        if self.patch_size is None:
            raise ValueError(f"RAEConfig.patch_size: is that of the encoder, which is not read yet: {self.encoder}")
        return self.patch_size

    @property
    def latent_dim(self) -> int:
        """Channels of the encoder's features; its shape must be known."""
        return cast(ViTConfig, self.encoder).width

    @property
    def codebook_size(self) -> None:
        return None


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a convolutional VQ autoencoder that is read from an open model's folder (`vqgan_checkpoint`)."""

    channels: int
    """Channels of the first convolution."""
    multipliers: tuple[int, ...]
    """Of each resolution, from the highest, its channels as a multiple of `channels`."""
    blocks: int
    """Residual blocks of a resolution in the encoder; the decoder has one more."""
    width: int
    """Channels between convolutions and bottleneck."""
    latent_dim: int
    """Channels of a code's vector."""
    codebook_size: int
    """Number of codes."""
    unit_codes: bool
    """The decoder reads the codes' vectors at unit length."""
    architecture: Literal["vqgan"] = "vqgan"
    """Which tokenizer this is: a VQGAN."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON has lists
        require(self.architecture == "vqgan", self, "architecture", "vqgan")
        for name in ("channels", "blocks", "width", "latent_dim", "codebook_size"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(len(self.multipliers) > 0 and min(self.multipliers) >= 1, self, "multipliers", "positive integers")
        require(self.channels % 32 == 0, self, "channels", "a multiple of 32, the groups of its norms")

    @property
    def patch_size(self) -> int:
        """Pixels a side that a code stands for."""
        return 2 ** (len(self.multipliers) - 1)
