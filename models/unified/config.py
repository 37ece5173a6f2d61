"""Configs of the unified model. In: plain numbers, as YAML gives them. Out: frozen, validated dataclasses
and `num_parameters`, the size of a model that has not been built. Standard library only, so that a plan can
read, check and size a model without importing torch.

A wrong value raises ValueError naming the class and the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

ROPE_SCHEMES = ("rope_1d", "axial", "tie_v1", "tie_v2", "streaming")


def _require(condition: bool, where: object, name: str, expected: str) -> None:
    if not condition:
        value = getattr(where, name)
        raise ValueError(f"{type(where).__name__}.{name}: expected {expected}, got {value!r}")


def _positive_int(where: object, *names: str) -> None:
    for name in names:
        value = getattr(where, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        _require(good, where, name, "a positive integer")


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that frame text and visual segments. The defaults are those of a
    tokenizer trained by `models.text`."""

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
            _require(isinstance(value, int) and value >= 0, self, f.name, "a non-negative integer")
            _require(values.count(value) == 1, self, f.name, "an id that no other special token has")


@dataclass(frozen=True)
class UnifiedConfig:
    """Shape of the transformer. Left at None, `kv_heads` becomes `heads`, `head_dim` width / heads, and
    `hidden` (the SwiGLU's inner width) 8/3 of the width, rounded up to a multiple of 32.

    vocab_size    text vocabulary, special tokens included
    latent_dim    channels C of one visual position
    rope_scheme   see `models.unified.positions`
    axes          position axes that share the rotary frequencies: 3 (row, column, time) serves images and
                  videos; 2 gives still images more frequencies; text is RoPE-1D under each of them
    qk_norm       RMSNorm on each head's queries and keys
    tied          the vocabulary head shares the embedding's weight
    time_dim      width of the sinusoidal embedding of the diffusion time
    """

    vocab_size: int
    latent_dim: int
    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    rope_base: float = 10000.0
    rope_scheme: str = "tie_v2"
    axes: int = 3
    qk_norm: bool = True
    tied: bool = True
    norm_eps: float = 1e-6
    time_dim: int = 256
    specials: SpecialIds = field(default_factory=SpecialIds)

    def __post_init__(self) -> None:
        _positive_int(self, "vocab_size", "latent_dim", "width", "layers", "heads", "axes", "time_dim")
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.head_dim is None:
            _require(self.width % self.heads == 0, self, "width", f"a multiple of heads={self.heads}")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        if self.hidden is None:
            object.__setattr__(self, "hidden", -(-self.width * 8 // 96) * 32)
        if isinstance(self.specials, dict):
            object.__setattr__(self, "specials", SpecialIds(**self.specials))
        _positive_int(self, "kv_heads", "head_dim", "hidden")
        _require(self.heads % self.kv_heads == 0, self, "kv_heads", f"a divisor of heads={self.heads}")
        _require(self.head_dim % 2 == 0, self, "head_dim", "an even number")
        _require(self.time_dim % 2 == 0, self, "time_dim", "an even number")
        _require(self.rope_scheme in ROPE_SCHEMES, self, "rope_scheme", f"one of {', '.join(ROPE_SCHEMES)}")
        _require(self.axes in (1, 2, 3), self, "axes", "1, 2 or 3")
        _require(
            self.axes > 1 or self.rope_scheme == "rope_1d",
            self,
            "axes",
            f"2 or 3 for rope_scheme={self.rope_scheme!r}",
        )
        _require(self.head_dim // 2 >= self.axes, self, "head_dim", f"at least {2 * self.axes}, two an axis")
        _require(self.rope_base > 1, self, "rope_base", "a number above 1")
        _require(self.norm_eps > 0, self, "norm_eps", "a positive number")
        top = max(getattr(self.specials, f.name) for f in fields(self.specials))
        _require(self.vocab_size > top, self, "vocab_size", f"more than the highest special id, {top}")


@dataclass(frozen=True)
class DiffusionConfig:
    """Flow matching with t = 1 noise: x_t = (1 - t) x + t e, v = e - x.

    formulation      "flow"
    predict          what the network gives: "v", or "x" trained with the loss on v (arXiv 2511.13720)
    time             law of t in training: "uniform", or "logit_normal": t = sigmoid(N(mean, std^2))
    shift            k of t' = k t / (1 + (k - 1) t); above 1 moves training and sampling towards noise, as
                     larger grids need
    min_time         floor of t where t divides (predict="x")
    """

    formulation: str = "flow"
    predict: str = "v"
    time: str = "logit_normal"
    time_mean: float = 0.0
    time_std: float = 1.0
    shift: float = 1.0
    min_time: float = 0.05

    def __post_init__(self) -> None:
        _require(self.formulation == "flow", self, "formulation", "flow")
        _require(self.predict in ("v", "x"), self, "predict", "v or x")
        _require(self.time in ("uniform", "logit_normal"), self, "time", "uniform or logit_normal")
        _require(self.time_std > 0, self, "time_std", "a positive number")
        _require(self.shift > 0, self, "shift", "a positive number")
        _require(0 < self.min_time < 1, self, "min_time", "a number between 0 and 1")


def num_parameters(config: UnifiedConfig) -> int:
    """Number of trained values of `UnifiedModel(config)`, in closed form; a tied head counts once."""
    c = config
    attention = c.width * (c.heads + 2 * c.kv_heads) * c.head_dim + c.heads * c.head_dim * c.width
    attention += 2 * c.head_dim if c.qk_norm else 0
    layer = attention + 3 * c.width * c.hidden + 2 * c.width
    text = c.vocab_size * c.width * (1 if c.tied else 2) + c.width
    time = (c.time_dim + 1) * c.width + (c.width + 1) * c.width
    visual = (c.latent_dim + 1) * c.width + c.width + (c.width + 1) * c.latent_dim
    return text + c.layers * layer + time + visual
