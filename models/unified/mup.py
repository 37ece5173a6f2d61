"""Maximal update parametrization: what a width and a depth do to initial weights and to Adam's rates, relative to a
base model at which nothing changes, so that the best learning rate of the base is that of all. In: a model, and one of
the base's widths. Out: by a parameter's name two factors.

Width (muP, arXiv 2203.03466, tables 3 and 8), r the inputs of a matrix over those of the base's:

    both axes grow       standard deviation r^-1/2, rate 1/r
    the inputs alone     standard deviation 1/r, rate 1/r
    otherwise            as the base's: embeddings, what values of pictures enter by, norms, biases
    text head            as an embedding, which it may be tied to; its logits times base width / width, in the forward
    attention            logits times sqrt(base head_dim) / head_dim, in the forward (`UnifiedConfig.query_scale`)

Depth (arXiv 2310.02244), R the blocks over those of the base: branches times R^-1/2, and Adam's rate in the blocks
times R^-1/2. Adam's updates do not depend on the size of gradients, so that a factor behind a matrix is the same model
as that factor on its initial value and on its rate (2203.03466, lemma J.1). So no branch is multiplied: its last matrix
starts smaller by R^-1/2, which GPT-2's rule sees to already, and its rate has another R^-1/2. Outputs of pictures are
treated so too.

The rates are Adam's. Weight decay acts on a matrix with the rate of the schedule, whatever the factor: the engine
divides it by the factor (`infra.training.engine`), as the authors' package does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from omniloom.models.unified.config import UnifiedConfig


class Factors(NamedTuple):
    """Of a parameter: of its initial standard deviation, and of its learning rate."""

    std: float = 1.0
    rate: float = 1.0


def factors(model: nn.Module, base: nn.Module, depth: float) -> dict[str, Factors]:
    """By the name of each parameter of a `UnifiedModel` that is not as the base's. `base` has the base's widths and as
    many blocks as the model, which are compared one by one; `depth`: the model's blocks over those of the base."""
    branches = depth**-0.5
    found = {}
    for name, _ in model.named_parameters():
        std, rate = _of_width(model, base, name)
        if name.startswith("blocks."):
            rate *= branches * (branches if _ends_branch(model, name) else 1.0)
        if (std, rate) != (1.0, 1.0):
            found[name] = Factors(std, rate)
    return found


def _of_width(model: nn.Module, base: nn.Module, name: str) -> Factors:
    owner, _, leaf = name.rpartition(".")
    module, small = model.get_submodule(owner), base.get_submodule(owner)
    if (
        leaf != "weight"
        or name == "head.weight"
        or not (isinstance(module, nn.Linear) and isinstance(small, nn.Linear))
    ):
        return Factors()
    ratio = module.in_features / small.in_features
    outputs_grow = module.out_features != small.out_features
    return Factors(ratio**-0.5 if outputs_grow else 1 / ratio, 1 / ratio) if ratio != 1 else Factors()


def _ends_branch(model: nn.Module, name: str) -> bool:
    block: Any = model.get_submodule(".".join(name.split(".")[:2]))
    owner = model.get_submodule(name.rpartition(".")[0])
    return any(owner is linear for linear in block.residual_outputs)


def logits_factor(config: UnifiedConfig) -> float:
    """Of what reads hidden states with weights that do not shrink with the width: the text head, and an alignment's
    projection."""
    return config.base.width / config.width if config.base else 1.0
