"""Low-rank adapters in a `UnifiedModel` (LoRA, arXiv 2106.09685): W x + scale * B A x with W frozen. In: a model, which
is changed in place, or its adapters' weights. Out: the same model to the last bit before the first step, and merged
matrices, W + scale * B A, which a model without adapters computes the same with.

Names of what was there stay. Added are, below an adapted Linear, `adapters.TARGET.A` (rank, inputs) and
`adapters.TARGET.B` (rows, rank), and `new_rows` of an embedding and a head, (rows, width): what is added to the rows of
tokens that the start did not know. B and `new_rows` start at 0, A is drawn as in the authors' code and PEFT, uniformly
within 1 / sqrt(inputs) (the paper, section 4.1, draws it normal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.linear import Linear
from omniloom.models.unified.adapter.config import AdapterConfig, Target, filled, is_norm
from omniloom.models.unified.adapter.dropout import Dropout
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.models.unified.model import UnifiedModel

_NEW = "new_rows"


class LowRank(nn.Module):
    """(..., inputs) -> (..., rows), scale * B A x."""

    def __init__(self, target: Target, adapter: AdapterConfig, like: Tensor):
        super().__init__()
        self.scale, rank = adapter.scale, adapter.rank
        self.A = nn.Parameter(like.new_empty(rank, target.inputs))
        self.B = nn.Parameter(like.new_zeros(target.rows, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.scale * F.linear(x, self.A), self.B)  # scaled where it is small


class AdaptedLinear(Linear):
    """A Linear with the weights of `linear` and adapters of some of its rows."""

    def __init__(self, linear: nn.Linear, targets: Mapping[str, Target], adapter: AdapterConfig, number: int):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.adapters = nn.ModuleDict({n: LowRank(t, adapter, linear.weight) for n, t in targets.items()})
        self.scale = adapter.scale
        self.dropout = Dropout(adapter.dropout, number) if adapter.dropout else nn.Identity()
        self._pieces: list[tuple[str, int]] = []  # target, or "" where there is none, and rows
        at = 0
        for name, target in sorted(targets.items(), key=lambda item: item[1].first):
            self._pieces += [("", target.first - at)] if target.first > at else []
            self._pieces.append((name, target.rows))
            at = target.first + target.rows
        self._pieces += [("", self.out_features - at)] if self.out_features > at else []

    def forward(self, x: Tensor) -> Tensor:
        out, seen = super().forward(x), self.dropout(x)
        added = [
            self.adapters[name](seen) if name else out.new_zeros(*out.shape[:-1], rows) for name, rows in self._pieces
        ]
        return out + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))


class NewRowsEmbedding(nn.Embedding):
    """An Embedding with the weights of `embedding`, to some `rows` of which `new_rows` are added."""

    def __init__(self, embedding: nn.Embedding, rows: Tensor):
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight
        self.new_rows = nn.Parameter(self.weight.new_zeros(len(rows), self.embedding_dim))
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.searchsorted(self.rows, ids).clamp_(max=len(self.rows) - 1)
        is_new = (self.rows[at] == ids)[..., None]
        return super().forward(ids) + F.embedding(at, self.new_rows) * is_new


class NewRowsHead(Linear):
    """A head with the weights of `head`, to some `rows` of which `new_rows` are added; the embedding's own where it is
    given. A bias stays as it is."""

    def __init__(self, head: nn.Linear, rows: Tensor, new_rows: nn.Parameter | None):
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight, self.bias = head.weight, head.bias
        self.new_rows = (
            nn.Parameter(self.weight.new_zeros(len(rows), self.in_features)) if new_rows is None else new_rows
        )
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits.index_add_(-1, self.rows, F.linear(x, self.new_rows).to(logits.dtype))


def attach(model: UnifiedModel, adapter: AdapterConfig, new_tokens: Sequence[int] = ()) -> None:
    """Put adapters into the model and freeze nothing yet; `trains` says what to. `new_tokens`: ids whose rows of the
    vocabulary the start did not know, which are trained. FieldError as of `AdapterConfig.chosen`."""
    linears: dict[str, dict[str, Target]] = {}
    for name, target in adapter.chosen(model.config).items():
        linears.setdefault(target.linear, {})[name] = target
    number = 0
    for block in model.blocks:
        for path, targets in linears.items():
            owner, _, leaf = path.rpartition(".")
            parent = block.get_submodule(owner)
            setattr(parent, leaf, AdaptedLinear(getattr(parent, leaf), targets, adapter, number))
            number += 1
    if new_tokens and "vocabulary" not in adapter.trained_whole:
        rows = torch.tensor(sorted(new_tokens), dtype=torch.int64)
        embed = NewRowsEmbedding(model.embed, rows)
        model.embed, model.head = embed, NewRowsHead(model.head, rows, embed.new_rows if model.config.tied else None)


def trains(adapter: AdapterConfig, config: UnifiedConfig, start: UnifiedConfig) -> Callable[[str], bool]:
    """Whether a parameter of the model with its adapters, by name, is trained: adapters, what `start`, the config of
    what the weights are from, lacks, and what is trained whole."""
    with torch.device("meta"):
        known = {name for name, _ in UnifiedModel(filled(config, start)).named_parameters()}

    def is_trained(name: str) -> bool:
        if _is_added(name) or name not in known:
            return True
        if name in ("embed.weight", "head.weight", "head.bias"):
            return "vocabulary" in adapter.trained_whole
        return ("norms" if is_norm(name) else "" if is_text_parameter(name) else "visual") in adapter.trained_whole

    return is_trained


def _is_added(name: str) -> bool:
    return ".adapters." in name or name.endswith(f".{_NEW}")


@dataclass(frozen=True)
class Addition:
    """What is added to the rows of a matrix: `scale` times the product of the parameters `names`, B and A, to `rows`;
    or the one parameter itself."""

    rows: slice | Tensor
    names: tuple[str, ...]
    scale: float = 1.0


def additions(model: UnifiedModel) -> dict[str, list[Addition]]:
    """By name of a matrix of the model, what its adapters add to it; `names` are those in the model's state."""
    found: dict[str, list[Addition]] = {}
    for path, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            at, own = 0, found.setdefault(f"{path}.weight", [])
            for name, rows in module._pieces:
                if name:
                    names = f"{path}.adapters.{name}.B", f"{path}.adapters.{name}.A"
                    own.append(Addition(slice(at, at + rows), names, module.scale))
                at += rows
        elif isinstance(module, NewRowsEmbedding | NewRowsHead):
            found[f"{path}.weight"] = [Addition(module.get_buffer("rows"), (f"{path}.{_NEW}",))]
    return found


def wanted(names: Iterable[str], added: Mapping[str, Sequence[Addition]]) -> list[str]:
    """The names of matrices, each behind those of what is added to it: the order that `merged` takes them in."""
    return [needed for name in names for needed in (*(part for a in added.get(name, ()) for part in a.names), name)]


def merged(
    tensors: Iterable[tuple[str, Tensor | None]], added: Mapping[str, Sequence[Addition]]
) -> Iterator[tuple[str, Tensor | None]]:
    """The matrices with what is added to them, of tensors in the order of `wanted`, in fp32, whole or None."""
    held: dict[str, Tensor | None] = {}
    parts = {part for several in added.values() for a in several for part in a.names}
    for name, value in tensors:
        if name in parts:
            held[name] = value
            continue
        for addition in added.get(name, ()):
            factors = [held.pop(part) for part in addition.names]
            if value is not None:
                value = _with(value, addition, [factor for factor in factors if factor is not None])
        yield name, value


@torch.no_grad()
def _with(weight: Tensor, addition: Addition, factors: list[Tensor]) -> Tensor:
    added = torch.linalg.multi_dot([f.float() for f in factors]) if len(factors) > 1 else factors[0].float()
    total = weight.float().clone()
    total[addition.rows] += addition.scale * added
    return total.to(weight.dtype)
