"""The config of a low-rank adapter (LoRA, arXiv 2106.09685) and which of a model's matrices it may change. In: plain
numbers, as YAML gives them, and a `UnifiedConfig`. Out: places in the model, and numbers of parameters of a model that
has not been built. Standard library only.

Targets have the names that `transformers` gives them, as PEFT's `target_modules` do; several of them may be rows of one
matrix of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from omniloom.models.checks import STRICT_AND_DESCRIBED, FieldError, require
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.parameters import norm_parameters, num_parameters, qk_norm_parameters
from omniloom.models.unified.representations import REPRESENTATIONS

WHOLE = ("vocabulary", "norms", "visual")


class Target(NamedTuple):
    """The rows of a block's Linear that a target is: `rows` of them from `first` on, with so many `inputs`."""

    linear: str
    first: int
    rows: int
    inputs: int


def targets_of(c: UnifiedConfig) -> dict[str, Target]:
    """All that an adapter may change in each block, by name."""
    if c.block == "gau":
        return {
            "z_proj": Target("unit.zvu", 0, c.head_dim, c.width),
            "v_proj": Target("unit.zvu", c.head_dim, c.hidden, c.width),
            "u_proj": Target("unit.zvu", c.head_dim + c.hidden, c.hidden, c.width),
            "o_proj": Target("unit.out", 0, c.width, c.hidden),
        }
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    feed_forward = {
        "gate_proj": Target("mlp.gate_up", 0, c.hidden, c.width),
        "up_proj": Target("mlp.gate_up", c.hidden, c.hidden, c.width),
        "down_proj": Target("mlp.down", 0, c.width, c.hidden),
    }
    if c.feed_forward == "gelu":
        feed_forward = {
            "fc1": Target("mlp.up", 0, c.hidden, c.width),
            "fc2": Target("mlp.down", 0, c.width, c.hidden),
        }
    return {
        "q_proj": Target("attention.qkv", 0, queries, c.width),
        "k_proj": Target("attention.qkv", queries, keys, c.width),
        "v_proj": Target("attention.qkv", queries + keys, keys, c.width),
        "o_proj": Target("attention.out", 0, c.width, queries),
        **feed_forward,
    }


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter on frozen weights: W + scale * B A, merged when the model is saved."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    rank: int = 16
    """Rank of the product that is added to a matrix."""
    alpha: float = 32.0
    """The product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are zeroed in training."""
    rank_stabilized: bool = False
    """The product is multiplied by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    targets: tuple[str, ...] | None = None
    """Matrices of the blocks, of text where pictures have their own: q_proj, k_proj, v_proj, o_proj, gate_proj,
    up_proj, down_proj, of a Phi fc1 and fc2 in place of those three; of GAUs z_proj, v_proj, u_proj, o_proj; null: all
    of them."""
    trained_whole: tuple[Literal["vocabulary", "norms", "visual"], ...] = ()
    """Parts that are trained themselves besides: vocabulary (embedding and head), norms (of blocks and text), visual
    (pictures' inputs and outputs). What the start lacks always is."""

    def __post_init__(self) -> None:
        for name in ("targets", "trained_whole"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        good = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank > 0
        require(good, self, "rank", "a positive integer")
        require(0 < self.alpha < float("inf"), self, "alpha", "a positive number")
        require(0 <= self.dropout < 1, self, "dropout", "a share from 0 to below 1")
        require(self.targets is None or len(self.targets) > 0, self, "targets", "at least one matrix, or null for all")
        for name in self.trained_whole:
            require(name in WHOLE, self, "trained_whole", f"some of {', '.join(WHOLE)}")

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def kept(self, config: UnifiedConfig, all_inputs: bool = False) -> tuple[int, int, int]:
        """(channels that the first factors in a block give, channels that go into them by a dropout, channels that go
        into frozen matrices alone, which keep no input for the backward pass but with `all_inputs`), a position."""
        chosen = self.chosen(config).values()
        inputs = {target.linear: target.inputs for target in chosen}
        # Of a parallel block attention and feed-forward take the same.
        shared = {"mlp.gate_up": "attention.qkv", "mlp.up": "attention.qkv"} if config.parallel else {}
        frozen = {shared.get(t.linear, t.linear): t.inputs for t in targets_of(config).values()}
        seen = set() if self.dropout else {shared.get(linear, linear) for linear in inputs}  # as they are
        spared = sum(count for linear, count in frozen.items() if linear not in seen)
        return self.rank * len(chosen), sum(inputs.values()) if self.dropout else 0, 0 if all_inputs else spared

    def chosen(self, config: UnifiedConfig) -> dict[str, Target]:
        """The targets in each block of the model, in the order of their table. FieldError for a name that the blocks
        lack, and for a rank that is more than a matrix has."""
        if config.attention_every is not None:
            raise FieldError(
                AdapterConfig, "targets", "a model with attention_every has blocks that differ; train it whole"
            )
        known = targets_of(config)
        for name in self.targets or ():
            if name not in known:
                raise FieldError(AdapterConfig, "targets", f"unknown matrix {name!r}{_suggested(name, known)}")
        chosen = {name: place for name, place in known.items() if self.targets is None or name in self.targets}
        least = min(chosen, key=lambda name: min(chosen[name].rows, chosen[name].inputs))
        rows, inputs = chosen[least].rows, chosen[least].inputs
        if self.rank > (most := min(rows, inputs)):
            reason = f"expected at most {most}, as {least} is {rows} x {inputs}, got {self.rank}"
            raise FieldError(AdapterConfig, "rank", reason)
        return chosen


def _suggested(name: str, known: dict[str, Target]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected some of {', '.join(known)}"


def is_norm(name: str) -> bool:
    """Whether a parameter of `UnifiedModel` is a norm's of the blocks or of text, and none that pictures have for
    themselves."""
    owner = name.rpartition(".")[0]
    return owner == "norm" or owner.startswith("blocks.") and owner.endswith("norm") and ".visual." not in owner


def filled(config: UnifiedConfig, start: UnifiedConfig) -> UnifiedConfig:
    """The part of a model that its start, a model of the config `start`, has weights for."""
    known = _with(config, start.representations)
    return replace(
        known,
        long_skips=config.long_skips and start.long_skips,
        modulation=config.modulation if start.modulation else None,
        step_sizes=None,  # as `stages.checkpoints.own_model` leaves it open
        modality_experts=config.modality_experts if start.modality_experts else None,
        density=config.density if start.has_density else None,
    )


def _with(config: UnifiedConfig, representations: Collection[str]) -> UnifiedConfig:
    """The config of a model that has those of its representations of pictures alone."""
    lacking: dict[str, Any] = {row.size: None for name, row in REPRESENTATIONS.items() if name not in representations}
    return replace(config, **lacking)


def trained_parameters(adapter: AdapterConfig, config: UnifiedConfig, start: UnifiedConfig) -> tuple[int, int]:
    """(numbers that an adapter adds, numbers of the model's own that are trained besides), in closed form, of a model
    of `config` that starts from one of `start`. FieldError as of `chosen`."""
    places = adapter.chosen(config).values()
    added = config.layers * adapter.rank * sum(place.rows + place.inputs for place in places)
    whole = num_parameters(config) - num_parameters(filled(config, start))
    tables = config.width * (1 if config.tied else 2)
    if "vocabulary" in adapter.trained_whole:
        whole += (tables + bool(config.head_bias)) * config.vocab_size
    else:
        added += tables * (config.vocab_size - start.vocab_size)
    if "norms" in adapter.trained_whole:
        whole += _norms(config)
    if "visual" in adapter.trained_whole:
        known = filled(config, start)
        whole += num_parameters(known) - num_parameters(_with(known, ()))
    return added, whole


def _norms(c: UnifiedConfig) -> int:
    norms = 1 if c.block == "gau" or c.parallel else 2
    return norm_parameters(c) + c.layers * (qk_norm_parameters(c) + norms * norm_parameters(c))
