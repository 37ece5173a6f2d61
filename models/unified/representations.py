"""What a visual segment is made of, and what is trained on it: two tables. Standard library only, for configs.

representation   values of one position              size in `UnifiedConfig`   input and output of the model
latents          C floats of the visual tokenizer    latent_dim                Linear; Linear
pixels           p * p * 3 floats of one frame       pixel_dim                 two Linear with a bottleneck; Linear
codes            an index into the codebook          codebook_size             Embedding, a mask's included; Linear

Those are the defaults: latents and pixels may take unets and a flow head instead (`UnifiedConfig.latent_patchifier`,
`pixel_patchifier`, `flow_head_layers`).

objective          on        a segment sees itself   loss of a position
latent_diffusion   latents   in full                 `unified.diffusion.diffusion` (Transfusion, arXiv 2408.11039)
pixel_diffusion    pixels    in full                 the same, predicting x by default (JiT, arXiv 2511.13720)
next_code          codes     causally                cross entropy of the code, asked of the position before it
masked_code        codes     in full                 cross entropy of the code, where it is masked (MaskGIT,
                                                     arXiv 2202.04200; Show-o, arXiv 2408.12528)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

RGB = 3
Objective = Literal["latent_diffusion", "pixel_diffusion", "next_code", "masked_code"]


@dataclass(frozen=True)
class Representation:
    """`size` is the field of `UnifiedConfig` that says how large it is, None where a model lacks it; `prefix` begins
    the names of its modules in `UnifiedModel`."""

    name: str
    size: str
    prefix: str
    discrete: bool = False


@dataclass(frozen=True)
class VisualObjective:
    name: Objective
    representation: Representation
    causal: bool = False


REPRESENTATIONS = {
    row.name: row
    for row in (
        Representation("latents", "latent_dim", "visual"),
        Representation("pixels", "pixel_dim", "pixel"),
        Representation("codes", "codebook_size", "code", discrete=True),
    )
}
OBJECTIVES: dict[str, VisualObjective] = {
    row.name: row
    for row in (
        VisualObjective("latent_diffusion", REPRESENTATIONS["latents"]),
        VisualObjective("pixel_diffusion", REPRESENTATIONS["pixels"]),
        VisualObjective("next_code", REPRESENTATIONS["codes"], causal=True),
        VisualObjective("masked_code", REPRESENTATIONS["codes"]),
    )
}
assert tuple(OBJECTIVES) == get_args(Objective)


def patch_numbers(patch: int) -> int:
    """Numbers of a position of pixels, whose patches have `patch` pixels a side."""
    return patch * patch * RGB


def objective_row(name: str) -> VisualObjective:
    """The row of an objective. ValueError for a name that is none."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]
