"""Configs of the unified model. In: plain numbers, as YAML gives them. Out: frozen, validated dataclasses. Standard
library only, so that a plan can read, check and size (`models.unified.parameters`) a model without importing torch.

A wrong value raises ValueError naming the class and the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from omniloom.models.checks import (
    Conditional,
    Derived,
    FieldError,
    Use,
    derive,
    derived,
    left_open,
    require,
)
from omniloom.models.unified.density.config import DensityConfig, HeadShape, read_density
from omniloom.models.unified.nested import MupConfig, RopeScaling, SpecialIds, nested, positive_int
from omniloom.models.unified.representations import REPRESENTATIONS

ROPE_SCHEMES = ("rope_1d", "axial", "tie_v1", "tie_v2", "streaming", "one_place")
TIME_SCALE = 1000.0  # what times in [0, 1] are multiplied by before their sinusoids (arXiv 2006.11239)
BLOCKS = ("llama", "gau")
MODULATIONS = ("adaln_zero",)
EXPERTS = ("feed_forward", "all")
RECURRENT_TAPS = 4  # places that the convolution before a recurrence sees
QK_NORMS = ("rms", "layer", "shared_layer")
NORMS = ("layer",)
FEED_FORWARDS = ("gelu",)
PATCHIFIERS = ("linear", "bottleneck", "unet")


# Fields that came when artifacts had been made without them: left at None, they are not part of an identity.
_LATER = {"later": True}


def _enters_by(patchifier: str) -> Callable[[UnifiedConfig], bool]:
    """Whether a representation that the config has enters by `patchifier`."""
    return lambda config: patchifier in map(config.patchifier, config.representations)


@dataclass(frozen=True)
class UnifiedConfig(Conditional):
    """Shape of the transformer. Left at None, `kv_heads` becomes `heads`, `head_dim` width / heads, `flow_head_width`
    the width, and `hidden` 8/3 of the width, rounded up to a multiple of 32, of GAUs twice the width and of a GELU four
    times.

    The model takes in and gives out those representations of pictures that have a size here
    (`models.unified.representations`); without any it is a language model. Of one that has not, its options have no
    effect: a config that a study trains with one objective after another may have those of all.
    """

    USES: ClassVar = {
        "pixel_bottleneck": Use(_enters_by("bottleneck"), "a patchifier: bottleneck of what is trained on"),
        "unet_width": Use(_enters_by("unet"), "a patchifier: unet of what is trained on"),
        "unet_depth": Use(_enters_by("unet"), "a patchifier: unet of what is trained on"),
        "flow_head_width": Use(lambda c: c.flow_head_layers > 0, "flow_head_layers above 0"),
        "density": Use(lambda c: c.density is not None, "the objective next_latent"),
        "modulation": Use(lambda c: c.has_times, "a diffusion, whose times it takes in"),
        "time_scale": Use(lambda c: c.has_times, "a diffusion, whose times it takes in"),
        "modality_experts": Use(lambda c: bool(c.representations), "a model of pictures"),
        "joined_frame": Use(
            lambda c: bool(c.representations) and not c.one_place,
            "a model of pictures, and another rope_scheme than one_place, which has it",
        ),
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
    """Inner width of a block's feed-forward, or of a GAU; null: 8/3 of the width, rounded up to a multiple of 32, of
    GAUs twice the width and of a GELU four times."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary frequencies, of every axis, or null."""
    rope_scheme: Literal["rope_1d", "axial", "tie_v1", "tie_v2", "streaming", "one_place"] = "tie_v2"
    """How the positions of text, rows, columns and frames turn queries and keys (`models.unified.positions`).
    one_place (BAGEL, arXiv 2505.14683): a picture and the tokens around it share one position and, but for objectives
    in which a picture sees itself causally, all see each other; its rows and columns enter as sinusoids added to the
    blocks' input."""
    axes: int = 3
    """Position axes that share the rotary frequencies: 3 (row, column, time) serves images and videos; 2 gives still
    images more frequencies; text is RoPE-1D under each of them."""
    qk_norm: bool = True
    """A norm on each head's queries and keys."""
    qk_norm_kind: Literal["rms", "layer", "shared_layer"] = "rms"
    """That norm: RMSNorm with one weight for all heads; LayerNorm with each head's own weight and bias (Chameleon, as
    `transformers` has it), or with one of each for all heads (Phi)."""
    norm_after: bool = False
    """A block norms what attention and SwiGLU give instead of what they take (Swin Transformer V2, arXiv 2111.09883;
    the larger Chameleon, arXiv 2405.09818, section 2.3)."""
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
    code_dim: int | None = None
    """Numbers of a code's embedding, which two Linear with a GELU between them widen, as two others predict the codes
    (Janus, arXiv 2410.13848, section 3.1); null: an embedding of the width, and a Linear."""
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
    mup: MupConfig | None = field(default=None, metadata=_LATER)
    """Maximal update parametrization: initial weights, learning rates, attention and logits by width and depth relative
    to this base, so that the best `optimizer.lr` of a small model is that of a large one; null: the standard one."""
    specials: SpecialIds = field(default_factory=SpecialIds)
    """Vocabulary ids of the tokens that frame text and pictures."""
    unet_depth: int | None = field(default=None, metadata=_LATER)
    """Residual blocks of the patchifier unet at half the positions' resolution, where they cost least: a model is
    scaled there (Simple Diffusion, arXiv 2301.11093, section 3.3). null: one."""
    density: DensityConfig | None = field(default=None, metadata=_LATER)
    """The head that gives the density of a position's latents, of the objective next_latent (docs/densities.md); null:
    none, and where that objective is trained a mixture."""
    modulation: Literal["adaln_zero"] | None = field(default=None, metadata=_LATER)
    """adaln_zero: the blocks scale, shift and gate what they add to the positions of a diffusion by its segment's time
    (DiT, arXiv 2212.09748); gates start at 0, and text is computed as without it. null: time enters with the input
    alone."""
    modality_experts: Literal["feed_forward", "all"] | None = field(default=None, metadata=_LATER)
    """What pictures have of each block for themselves (Mixture-of-Transformers, arXiv 2411.04996): feed_forward, the
    norms and the SwiGLU; all, the projections of attention too. Text and pictures attend to each other as ever, and a
    place costs the same. Of a language model that training starts from both get the weights. null: nothing."""
    attention_every: int | None = field(default=None, metadata=_LATER)
    """Of so many blocks the last attends, and the others have a gated linear recurrence over texts in its place
    (RG-LRU, arXiv 2402.19427, which has 3), to which a picture's positions all come behind the text before them. null:
    every block attends."""
    time_scale: float | None = field(default=None, metadata=_LATER)
    """What a diffusion's times, in [0, 1], are multiplied by before their sinusoids (BAGEL has 1); null: 1000."""
    gau_length: int | None = field(default=None, metadata=_LATER)
    """n of relu(q k / n)^2, by which GAUs weigh values in place of a softmax (arXiv 2202.10447): the tokens
    of the documents that they are made for, as a query's weights grow with what it sees. null: a softmax."""
    step_sizes: bool | None = field(default=None, metadata=_LATER)
    """Beside the time of a diffusion the network is told how far its sampler's step goes, in the time that it is told
    (shortcut models, arXiv 2410.12557, section 3), and at size 0 is the model that it were without. null: it is not, as
    of all but what `distill` makes by shortcut."""
    norm_kind: Literal["layer"] | None = field(default=None, metadata=_LATER)
    """layer: blocks and heads have LayerNorms, with weight and bias (arXiv 1607.06450); null: RMSNorms."""
    parallel: bool | None = field(default=None, metadata=_LATER)
    """Attention and feed-forward of a block stand side by side behind one norm, and what both give is added (PaLM,
    arXiv 2204.02311, section 2); null: one behind the other."""
    feed_forward: Literal["gelu"] | None = field(default=None, metadata=_LATER)
    """gelu: two Linear with biases and between them a GELU by its tanh (arXiv 1606.08415); null: SwiGLU."""
    rotary_fraction: float | None = field(default=None, metadata=_LATER)
    """Of each head's channels the share, rounded down to whole channels, that positions turn: the first ones
    (GPT-NeoX-20B, arXiv 2204.06745, section 2.1.1); null: all."""
    head_bias: bool | None = field(default=None, metadata=_LATER)
    """Biases of what predicts tokens and codes; null: none."""
    joined_frame: bool | None = field(default=None, metadata=_LATER)
    """The tokens around a picture that sees itself in full see it too, as under one_place (Show-o, arXiv 2408.12528,
    section 3); null: <boi> sees no more than text does."""

    def __post_init__(self) -> None:
        positive_int(
            self, "vocab_size", "width", "layers", "heads", "axes", "time_dim", "pixel_bottleneck", "unet_width"
        )
        positive_int(self, *(REPRESENTATIONS[name].size for name in self.representations))
        if self.code_dim is not None:
            positive_int(self, "code_dim")
        derive(self, "kv_heads", self.heads)
        if left_open(self, "head_dim"):
            require(self.width % self.heads == 0, self, "width", f"a multiple of heads={self.heads}")
            derive(self, "head_dim", self.width // self.heads)
        require(self.block in BLOCKS, self, "block", f"one of {', '.join(BLOCKS)}")
        require(self.qk_norm_kind in QK_NORMS, self, "qk_norm_kind", f"one of {', '.join(QK_NORMS)}")
        require(self.feed_forward in (None, *FEED_FORWARDS), self, "feed_forward", "gelu, or null")
        derive(self, "hidden", _usual_hidden(self.block, self.width, self.feed_forward))
        nested(self, "specials", SpecialIds)
        nested(self, "rope_scaling", RopeScaling)
        density: Any = self.density  # as JSON or YAML gave it
        if isinstance(density, dict):
            object.__setattr__(self, "density", read_density(density, f"{type(self).__name__}.density"))
        nested(self, "mup", MupConfig)
        positive_int(self, "kv_heads", "head_dim", "hidden")
        require(self.heads % self.kv_heads == 0, self, "kv_heads", f"a divisor of heads={self.heads}")
        if self.block == "gau":
            require(self.kv_heads == self.heads, self, "kv_heads", "None, as a GAU's heads share one projection")
            require(self.hidden % self.head_dim == 0, self, "hidden", f"a multiple of head_dim={self.head_dim}")
            require(self.qk_norm_kind == "rms", self, "qk_norm_kind", "rms, as a GAU's heads share their norms")
            require(not self.norm_after, self, "norm_after", "false, as a GAU norms what it takes")
        self._check_visual()
        self._check_by_modality()
        self._check_recurrence()
        self._check_parts()
        if self.gau_length is not None:
            positive_int(self, "gau_length")
            require(self.block == "gau", self, "gau_length", "null without block: gau")
            require(self.mup is None, self, "mup", "null, as it has no rule for the scores of gau_length")
        require(self.head_dim % 2 == 0, self, "head_dim", "an even number")
        require(self.time_dim % 2 == 0, self, "time_dim", "an even number")
        require(self.rope_scheme in ROPE_SCHEMES, self, "rope_scheme", f"one of {', '.join(ROPE_SCHEMES)}")
        require(self.axes in (1, 2, 3), self, "axes", "1, 2 or 3")
        require(
            self.axes > 1 or self.rope_scheme in ("rope_1d", "one_place"),
            self,
            "axes",
            f"2 or 3 for rope_scheme={self.rope_scheme!r}",
        )
        turned = "head_dim" if self.rotary_fraction is None else "rotary_fraction"
        require(self.rotary_dim % 2 == 0, self, turned, "an even number of channels that turn")
        require(self.rotary_dim // 2 >= self.axes, self, turned, f"at least {2 * self.axes}, two an axis")
        if self.one_place:
            require(self.width % 4 == 0, self, "width", "a multiple of 4, a sine and a cosine of row and column each")
        require(self.rope_base > 1, self, "rope_base", "a number above 1")
        require(self.norm_eps > 0, self, "norm_eps", "a positive number")
        top = max(getattr(self.specials, f.name) for f in fields(self.specials))
        require(self.vocab_size > top, self, "vocab_size", f"more than the highest special id, {top}")
        if self.mup:
            require(not self.norm_after, self, "mup", "null, as norms behind the branches undo their factors")
            _ = self.base

    def _check_visual(self) -> None:
        for name in ("latent_patchifier", "pixel_patchifier"):
            require(getattr(self, name) in PATCHIFIERS, self, name, f"one of {', '.join(PATCHIFIERS)}")
        if self.unet_depth is not None:
            positive_int(self, "unet_depth")
        layers = self.flow_head_layers
        good = isinstance(layers, int) and not isinstance(layers, bool) and layers >= 0
        require(good, self, "flow_head_layers", "an integer not below 0")
        if self.time_scale is not None:
            require(0 < self.time_scale < float("inf"), self, "time_scale", "a positive number, or null")
        derive(self, "flow_head_width", self.width)
        positive_int(self, "flow_head_width")
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

    def _check_by_modality(self) -> None:
        require(self.modulation in (None, *MODULATIONS), self, "modulation", f"{', '.join(MODULATIONS)}, or null")
        expected = f"{', '.join(EXPERTS)}, or null"
        require(self.modality_experts in (None, *EXPERTS), self, "modality_experts", expected)
        if self.block == "gau":
            expected = "null, as a GAU is attention and feed-forward in one"
            require(self.modality_experts is None, self, "modality_experts", expected)
        if self.norm_after:
            for name in ("modulation", "modality_experts"):
                require(
                    getattr(self, name) is None, self, name, "null, as the norms of this start stand behind its parts"
                )
        if self.qk_norm_kind == "layer":
            expected = "feed_forward or null, as each head of this start has norms of its own"
            require(self.modality_experts != "all", self, "modality_experts", expected)

    def _check_recurrence(self) -> None:
        every = self.attention_every
        if every is None:
            return
        good = isinstance(every, int) and not isinstance(every, bool) and 2 <= every <= self.layers
        require(good, self, "attention_every", f"an integer from 2 to layers={self.layers}, or null")
        require(self.block == "llama", self, "attention_every", "null, as a GAU is attention and feed-forward in one")
        require(not self.norm_after, self, "attention_every", "null, as every block of this start attends")
        expected = "null, as a recurrence cannot read the tokens around a picture with it"
        require(not self.joins_frame, self, "attention_every", expected)
        require(self.width % self.heads == 0, self, "width", f"a multiple of heads={self.heads}, whose gates are apart")
        require(self.mup is None, self, "mup", "null, as it has no rule for the gates of attention_every")

    def _check_parts(self) -> None:
        """Of the parts that models of others have."""
        require(self.norm_kind in (None, *NORMS), self, "norm_kind", f"{', '.join(NORMS)}, or null")
        for name in ("parallel", "head_bias", "joined_frame"):
            require(getattr(self, name) in (None, False, True), self, name, "true, false or null")
        share = self.rotary_fraction
        good = share is None or isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
        require(good, self, "rotary_fraction", "a share above 0 up to 1, or null")
        if self.block == "gau":
            for name in ("norm_kind", "parallel", "feed_forward", "rotary_fraction"):
                require(not getattr(self, name), self, name, "null, as a GAU is attention and feed-forward in one")
        if self.parallel:
            for name in ("norm_after", "modulation", "modality_experts", "attention_every"):
                expected = "nothing, as both parts of a parallel block share its norm"
                require(not getattr(self, name), self, name, expected)

    def attends(self, block: int) -> bool:
        """Whether the block of that number, from 0, has attention."""
        return self.attention_every is None or (block + 1) % self.attention_every == 0

    @property
    def attention_layers(self) -> int:
        """Blocks that attend."""
        return self.layers if self.attention_every is None else self.layers // self.attention_every

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
    def base(self) -> UnifiedConfig | None:
        """The base of `mup`; FieldError where there is no model of that shape."""
        if self.mup is None:
            return None
        width, heads = self.mup.width, self.mup.heads
        if heads is None:
            heads = max(1, round(self.heads * width / self.width))
        is_derived = self.head_dim * self.heads == self.width
        kv_heads = next(n for n in range(max(1, heads * self.kv_heads // self.heads), 0, -1) if heads % n == 0)
        hidden = None if self.hidden == _usual_hidden(self.block, self.width, self.feed_forward) else self.hidden
        try:
            return replace(
                self,
                mup=None,
                width=width,
                layers=self.mup.layers or self.layers,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=None if is_derived else self.head_dim,
                hidden=hidden,
                flow_head_width=None if self.flow_head_width == self.width else self.flow_head_width,
            )
        except FieldError as error:
            raise FieldError(type(self), "mup", f"no base of this shape: {error}") from None

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before attention divides by the root of `head_dim`."""
        return (self.base.head_dim / self.head_dim) ** 0.5 if self.base else 1.0

    @property
    def attention_heads(self) -> int:
        """Heads that attend in a block."""
        return self.hidden // self.head_dim if self.block == "gau" else self.heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that positions turn."""
        return self.head_dim if self.rotary_fraction is None else int(self.head_dim * self.rotary_fraction)

    @property
    def joins_frame(self) -> bool:
        """Whether the tokens around a picture that sees itself in full are read together with it, as they see it."""
        return self.one_place or bool(self.joined_frame)

    @property
    def has_times(self) -> bool:
        """Whether the model takes in latents or pixels, whose segments have a diffusion time."""
        return self.latent_dim is not None or self.pixel_dim is not None

    @property
    def one_place(self) -> bool:
        """Whether a picture and the tokens around it share one position, and sinusoids say what is where in it."""
        return self.rope_scheme == "one_place"

    @property
    def is_modulated(self) -> bool:
        """Whether blocks are modulated by times."""
        return self.modulation is not None and self.has_times

    @property
    def tells_steps(self) -> bool:
        """Whether it is told step sizes."""
        return bool(self.step_sizes) and self.has_times

    @property
    def has_experts(self) -> bool:
        """Whether pictures have parts of the blocks for themselves."""
        return self.modality_experts is not None and bool(self.representations)

    @property
    def sublayers(self) -> int:
        """Residual branches of a block."""
        return 1 if self.block == "gau" else 2

    @property
    def representations(self) -> tuple[str, ...]:
        """Names of the representations of pictures that the model has parts for, in the table's order."""
        return tuple(name for name, row in REPRESENTATIONS.items() if getattr(self, row.size) is not None)


def _usual_hidden(block: str, width: int, feed_forward: str | None) -> int:
    """Of a width: the inner one of a block that has as many parameters as Llama's, of a GELU, or of a GAU."""
    if block == "gau":
        return 2 * width
    return 4 * width if feed_forward == "gelu" else -(-width * 8 // 96) * 32
