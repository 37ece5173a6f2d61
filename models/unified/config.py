"""Configs of the unified model. In: plain numbers, as YAML gives them. Out: frozen, validated dataclasses
and `num_parameters`, the size of a model that has not been built. Standard library only, so that a plan can
read, check and size a model without importing torch.

A wrong value raises ValueError naming the class and the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from omniloom.models.checks import (
    STRICT_AND_DESCRIBED,
    Conditional,
    Derived,
    Use,
    derive,
    derived,
    left_open,
    require,
)
from omniloom.models.unified.density.config import DensityConfig, HeadShape, read_density
from omniloom.models.unified.representations import REPRESENTATIONS

ROPE_SCHEMES = ("rope_1d", "axial", "tie_v1", "tie_v2", "streaming")
BLOCKS = ("llama", "gau")
PATCHIFIERS = ("linear", "bottleneck", "unet")


def _positive_int(where: object, *names: str) -> None:
    for name in names:
        value = getattr(where, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        require(good, where, name, "a positive integer")


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that frame text and visual segments. The defaults are those of a
    tokenizer trained by `models.text`. bos and eos may be one token, as in Qwen's vocabularies."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    boi: int = 3
    bov: int = 4
    eoi: int = 5

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        for f in fields(self):
            value = getattr(self, f.name)
            require(isinstance(value, int) and value >= 0, self, f.name, "a non-negative integer")
            own = 2 if f.name in ("bos", "eos") and self.bos == self.eos else 1
            require(values.count(value) == own, self, f.name, "an id that no other special token has")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's change of rotary frequencies for long contexts. A frequency that turns more than
    `high_freq_factor` times within `original_length` positions stays, one that turns less than
    `low_freq_factor` times is divided by `factor`, and between them the two are mixed linearly in the turns.
    `models.unified.positions.rotary` applies it."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    factor: float
    """Divisor of the low frequencies."""
    low_freq_factor: float
    """Turns within the original length below which a frequency counts as low."""
    high_freq_factor: float
    """Turns within the original length above which a frequency stays."""
    original_length: int
    """Positions that the model was trained with before the change."""

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
            require(good, self, name, "a positive number")
        require(
            self.high_freq_factor > self.low_freq_factor,
            self,
            "high_freq_factor",
            f"a number above low_freq_factor={self.low_freq_factor}",
        )
        _positive_int(self, "original_length")


def _nested(where: object, name: str, cls: type) -> None:
    """A field that JSON or YAML gave as a mapping becomes the dataclass that it stands for."""
    value = getattr(where, name)
    if isinstance(value, dict):
        known = {f.name for f in fields(cls)}
        for key in value:
            if key not in known:
                raise ValueError(f"{type(where).__name__}.{name}.{key}: unknown field")
        try:
            object.__setattr__(where, name, cls(**value))
        except TypeError as error:  # a field without a default is missing
            raise ValueError(f"{type(where).__name__}.{name}: {error}") from None


def _enters_by(patchifier: str) -> Callable[[UnifiedConfig], bool]:
    """Whether a representation that the config has enters by `patchifier`."""
    return lambda config: patchifier in map(config.patchifier, config.representations)


@dataclass(frozen=True)
class UnifiedConfig(Conditional):
    """Shape of the transformer. Left at None, `kv_heads` becomes `heads`, `head_dim` width / heads, `flow_head_width`
    the width, and `hidden` 8/3 of the width, rounded up to a multiple of 32, or of GAUs twice the width.

    The model takes in and gives out those representations of pictures that have a size here
    (`models.unified.representations`); without any it is a language model. Of one that has not, its options have no
    effect: a config that a study trains with one objective after another may have those of all.
    """

    USES: ClassVar = {
        "pixel_bottleneck": Use(_enters_by("bottleneck"), "a patchifier: bottleneck of what is trained on"),
        "unet_width": Use(_enters_by("unet"), "a patchifier: unet of what is trained on"),
        "flow_head_width": Use(lambda c: c.flow_head_layers > 0, "flow_head_layers above 0"),
        "density": Use(lambda c: c.density is not None, "the objective next_latent"),
    }

    vocab_size: int
    """Text vocabulary, special tokens included."""
    latent_dim: int | None = None
    """Channels of a position of latents; null: none."""
    width: int = 512
    """Channels of the hidden states."""
    layers: int = 8
    """Blocks."""
    heads: int = 8
    """Attention heads of a block."""
    kv_heads: Derived[int] = derived()
    """Heads of keys and values, a divisor of `heads`; null: as many."""
    head_dim: Derived[int] = derived()
    """Channels of a head; null: width / heads."""
    hidden: Derived[int] = derived()
    """Inner width of a block's SwiGLU, or of a GAU; null: 8/3 of the width, rounded up to a multiple of 32, or of GAUs
    twice the width."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary frequencies, of every axis, or null."""
    rope_scheme: Literal["rope_1d", "axial", "tie_v1", "tie_v2", "streaming"] = "tie_v2"
    """How the positions of text, rows, columns and frames turn queries and keys (`models.unified.positions`)."""
    axes: int = 3
    """Position axes that share the rotary frequencies: 3 (row, column, time) serves images and videos; 2 gives still
    images more frequencies; text is RoPE-1D under each of them."""
    qk_norm: bool = True
    """RMSNorm on each head's queries and keys."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    out_bias: bool = False
    """Bias of attention's output."""
    tied: bool = True
    """The vocabulary head shares the embedding's weight."""
    norm_eps: float = 1e-6
    """Added to the mean square in norms (epsilon)."""
    time_dim: int = 256
    """Width of the sinusoidal embedding of the diffusion time."""
    pixel_dim: int | None = None
    """Numbers of a patch of raw pixels; null: none."""
    pixel_bottleneck: int = 128
    """Numbers between the two Linear of the patchifier bottleneck."""
    codebook_size: int | None = None
    """Number of visual codes; null: none."""
    latent_patchifier: Literal["linear", "bottleneck", "unet"] = "linear"
    """How latents become the blocks' input: linear; bottleneck, two Linear with `pixel_bottleneck` numbers between them
    (JiT, arXiv 2511.13720, section 4.3); unet, which has a part behind the blocks too and `unet_width` channels."""
    pixel_patchifier: Literal["linear", "bottleneck", "unet"] = "bottleneck"
    """How patches of raw pixels become the blocks' input, as in `latent_patchifier`."""
    unet_width: int = 128
    """Channels of the patchifier unet."""
    block: Literal["llama", "gau"] = "llama"
    """llama, or gau, two of which stand for one; a GAU has hidden / head_dim heads."""
    long_skips: bool = False
    """The input of each block of the first half is merged into its mirror image's (U-ViT, arXiv 2209.12152, which takes
    the output)."""
    flow_head_layers: int = 0
    """Modulated layers that predict a diffusion from the last hidden state, the noisy values and the time
    (`models.unified.flow_head`); 0: a Linear on the hidden state."""
    flow_head_width: Derived[int] = derived()
    """Width of those layers; null: the width."""
    patch_mask_low: float = 0.0
    """Of each target of a diffusion a share drawn evenly between this and `patch_mask_high`, none where it is below 0,
    enters training as a learned token (Tuna-2, arXiv 2604.24763: -0.7 and 0.3)."""
    patch_mask_high: float = 0.0
    """The largest share of a target that enters as a learned token, from 0 to 1; 0: none does."""
    specials: SpecialIds = field(default_factory=SpecialIds)
    """Vocabulary ids of the tokens that frame text and pictures."""
    density: DensityConfig | None = field(default=None, metadata={"later": True})
    """The head that gives the density of a position's latents, of the objective next_latent (docs/densities.md); null:
    none, and where that objective is trained a mixture."""

    def __post_init__(self) -> None:
        _positive_int(
            self, "vocab_size", "width", "layers", "heads", "axes", "time_dim", "pixel_bottleneck", "unet_width"
        )
        _positive_int(self, *(REPRESENTATIONS[name].size for name in self.representations))
        derive(self, "kv_heads", self.heads)
        if left_open(self, "head_dim"):
            require(self.width % self.heads == 0, self, "width", f"a multiple of heads={self.heads}")
            derive(self, "head_dim", self.width // self.heads)
        require(self.block in BLOCKS, self, "block", f"one of {', '.join(BLOCKS)}")
        derive(self, "hidden", 2 * self.width if self.block == "gau" else -(-self.width * 8 // 96) * 32)
        _nested(self, "specials", SpecialIds)
        _nested(self, "rope_scaling", RopeScaling)
        density: Any = self.density  # as JSON or YAML gave it
        if isinstance(density, dict):
            object.__setattr__(self, "density", read_density(density, f"{type(self).__name__}.density"))
        _positive_int(self, "kv_heads", "head_dim", "hidden")
        require(self.heads % self.kv_heads == 0, self, "kv_heads", f"a divisor of heads={self.heads}")
        if self.block == "gau":
            require(self.kv_heads == self.heads, self, "kv_heads", "None, as a GAU's heads share one projection")
            require(self.hidden % self.head_dim == 0, self, "hidden", f"a multiple of head_dim={self.head_dim}")
        self._check_visual()
        require(self.head_dim % 2 == 0, self, "head_dim", "an even number")
        require(self.time_dim % 2 == 0, self, "time_dim", "an even number")
        require(self.rope_scheme in ROPE_SCHEMES, self, "rope_scheme", f"one of {', '.join(ROPE_SCHEMES)}")
        require(self.axes in (1, 2, 3), self, "axes", "1, 2 or 3")
        require(
            self.axes > 1 or self.rope_scheme == "rope_1d",
            self,
            "axes",
            f"2 or 3 for rope_scheme={self.rope_scheme!r}",
        )
        require(self.head_dim // 2 >= self.axes, self, "head_dim", f"at least {2 * self.axes}, two an axis")
        require(self.rope_base > 1, self, "rope_base", "a number above 1")
        require(self.norm_eps > 0, self, "norm_eps", "a positive number")
        top = max(getattr(self.specials, f.name) for f in fields(self.specials))
        require(self.vocab_size > top, self, "vocab_size", f"more than the highest special id, {top}")

    def _check_visual(self) -> None:
        for name in ("latent_patchifier", "pixel_patchifier"):
            require(getattr(self, name) in PATCHIFIERS, self, name, f"one of {', '.join(PATCHIFIERS)}")
        layers = self.flow_head_layers
        good = isinstance(layers, int) and not isinstance(layers, bool) and layers >= 0
        require(good, self, "flow_head_layers", "an integer not below 0")
        derive(self, "flow_head_width", self.width)
        _positive_int(self, "flow_head_width")
        require(
            -float("inf") < self.patch_mask_low <= self.patch_mask_high,
            self,
            "patch_mask_low",
            f"a number of at most patch_mask_high={self.patch_mask_high}",
        )
        require(0 <= self.patch_mask_high <= 1, self, "patch_mask_high", "a share from 0 to 1")
        require(
            not (self.has_density and self.latent_patchifier == "unet"),
            self,
            "latent_patchifier",
            "linear or bottleneck with next_latent, as a unet's convolutions show positions those behind them",
        )

    def patchifier(self, name: str) -> str:
        """The patchifier of the representation `name`; codes have an embedding instead."""
        return {"latents": self.latent_patchifier, "pixels": self.pixel_patchifier}.get(name, "embedding")

    @property
    def has_density(self) -> bool:
        """Whether the model has a density head, which is of latents."""
        return self.density is not None and self.latent_dim is not None

    def head_shape(self, latent_dim: int) -> HeadShape:
        """What its density head stands between."""
        return HeadShape(self.width, latent_dim, self.time_dim)

    @property
    def attention_heads(self) -> int:
        """Heads that attend in a block."""
        return self.hidden // self.head_dim if self.block == "gau" else self.heads

    @property
    def representations(self) -> tuple[str, ...]:
        """Names of the representations of pictures that the model has parts for, in the table's order."""
        return tuple(name for name, row in REPRESENTATIONS.items() if getattr(self, row.size) is not None)


def num_parameters(config: UnifiedConfig) -> int:
    """Number of trained values of `UnifiedModel(config)`, in closed form; a tied head counts once."""
    c = config
    text = c.vocab_size * c.width * (1 if c.tied else 2) + c.width
    skips = c.layers // 2 * 2 * c.width * c.width if c.long_skips else 0
    visual = 0
    if c.latent_dim or c.pixel_dim:
        visual += (c.time_dim + 1) * c.width + (c.width + 1) * c.width
    for name in c.representations:
        size = getattr(c, REPRESENTATIONS[name].size)
        if REPRESENTATIONS[name].discrete:
            visual += (size + 1) * c.width + c.width + c.width * size
        else:
            visual += _patchifier_parameters(c, c.patchifier(name), size)
    if c.density and c.latent_dim:
        visual += c.density.parameters(c.head_shape(c.latent_dim))
    return text + c.layers * _block_parameters(c) + skips + visual


def _block_parameters(c: UnifiedConfig) -> int:
    count = 2 * c.head_dim if c.qk_norm else 0
    count += c.width if c.out_bias else 0
    if c.block == "gau":
        # Norm; base, values and gate; scales and offsets of queries and keys; output.
        inner = c.head_dim + 2 * c.hidden
        return count + c.width + (c.width + c.qkv_bias) * inner + 4 * c.hidden + c.hidden * c.width
    inner = (c.heads + 2 * c.kv_heads) * c.head_dim
    count += (c.width + c.qkv_bias) * inner + c.heads * c.head_dim * c.width
    return count + 3 * c.width * c.hidden + 2 * c.width


def _patchifier_parameters(c: UnifiedConfig, kind: str, size: int) -> int:
    """Input and output of a representation that is not discrete, whose positions are `size` numbers."""
    count = c.width + (c.width if c.patch_mask_high > 0 else 0)  # the norm before the output; the mask
    features = c.width
    if kind == "linear":
        count += (size + 1) * c.width
    elif kind == "bottleneck":
        count += size * c.pixel_bottleneck + (c.pixel_bottleneck + 1) * c.width
    else:
        features = c.unet_width
        count += _unet_parameters(c, size) + (features + 1) * c.width + _unet_parameters(c, c.width + features)
    if not c.flow_head_layers:
        return count + (features + 1) * size
    inner = c.flow_head_width
    count += (size + 1) * inner + (features + 1) * inner + (c.width + 1) * inner  # values, condition, time
    # A layer: modulation to three times the width, and two matrices. Behind the last: modulation to twice the width.
    return count + c.flow_head_layers * 5 * (inner + 1) * inner + 2 * (inner + 1) * inner + (inner + 1) * size


def _unet_parameters(c: UnifiedConfig, inputs: int) -> int:
    def residual(d: int) -> int:
        return 2 * d + 2 * (9 * d + 1) * d + (c.width + 1) * 2 * d

    d = c.unet_width
    return (inputs + 1) * d + 2 * residual(d) + residual(2 * d) + (4 * d + 1) * 2 * d + (3 * d + 1) * d + d
