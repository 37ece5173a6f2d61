"""Two tables: representations of a visual segment, and the objectives that train on them. Standard library only.

representation   values of one position              size in `UnifiedConfig`   input and output of the model
latents          C floats of the visual tokenizer    latent_dim                Linear; Linear
pixels           p * p * 3 floats of one frame       pixel_dim                 two Linear with a bottleneck; Linear
codes            an index into the codebook          codebook_size             Embedding, a mask's included; Linear

Those are the defaults: latents and pixels may take unets and a flow head instead (`UnifiedConfig.latent_patchifier`,
`pixel_patchifier`, `flow_head_layers`).

objective          on        a segment sees itself   loss of a position
latent_diffusion   latents   in full                 `unified.diffusion.diffusion` (Transfusion, arXiv 2408.11039)
pixel_diffusion    pixels    in full                 the same, predicting x by default (JiT, arXiv 2511.13720)
next_latent        latents   causally                the density of the latents, asked of the position before them, by
                                                     the head of `UnifiedConfig.density` (GIVT, arXiv 2312.02116)
next_code          codes     causally                cross entropy of the code, asked of the position before it
masked_code        codes     in full                 cross entropy of the code, where it is masked (MaskGIT,
                                                     arXiv 2202.04200; Show-o, arXiv 2408.12528)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omniloom.models import extensions

RGB = 3
GROUP = "omniloom.objectives"
DENSITY = "density"  # the density head's output, and its field in `UnifiedConfig`


@dataclass(frozen=True)
class Representation:
    """`size` is the field of `UnifiedConfig` that says how large it is, None where a model lacks it; `prefix` begins
    the names of its modules in `UnifiedModel`; `usual` is the objective of what names none, None where it has to."""

    name: str
    size: str
    prefix: str
    discrete: bool = False
    usual: str | None = None


@dataclass(frozen=True)
class VisualObjective:
    """A row of the table of objectives.

    stream: the number of its random draws; no two rows share one, and it never changes, so that another row or another
        another order changes nobody's noise. Ours are 0 to 4; others take any from 16 on.
    loss: "module:name" of what is called with (row, `UnifiedConfig`, the representation's `DiffusionConfig` or None)
        and has `show` and `error`, as in `models.unified.objectives.losses`.
    draw: "module:name" of what draws a picture on a canvas (`models.unified.generation.draw`).
    causal: whether a segment sees itself causally.
    predicted: the share of its targets, on average, whose predictions are asked for; for counts of FLOPs.
    separable: whether ranks may share its predictions out: its error is a sum over predictions, and each tensor in
        `Shown.extras` has a row for each of them (`models.unified.sequence`).
    by_density: whether its predictions are those of the model's density head instead of its representation's output.
    """

    name: str
    representation: Representation
    stream: int
    loss: str
    draw: str
    causal: bool = False
    predicted: float = 1.0
    separable: bool = False
    by_density: bool = False

    @property
    def is_diffusion(self) -> bool:
        """Whether it sees its targets with noise, at a time of their segment."""
        return not self.representation.discrete and not self.by_density

    @property
    def head(self) -> str:
        """The output of `UnifiedModel.forward` that its predictions are in."""
        return DENSITY if self.by_density else self.representation.name

    @property
    def mask_stream(self) -> int:
        """The number of the draws of its masked patches: streams stand in blocks of four, each before its masks'."""
        return self.draw_stream + 4

    @property
    def draw_stream(self) -> int:
        """The number of the draws of its noise, or of its masked codes."""
        block, place = divmod(self.stream, 4)
        return 8 * block + place


REPRESENTATIONS = {
    row.name: row
    for row in (
        Representation("latents", "latent_dim", "visual", usual="latent_diffusion"),
        Representation("pixels", "pixel_dim", "pixel", usual="pixel_diffusion"),
        Representation("codes", "codebook_size", "code", discrete=True),
    )
}
_LOSSES, _DRAW = "omniloom.models.unified.objectives.losses", "omniloom.models.unified.generation.draw"
_OURS = (
    VisualObjective(
        "latent_diffusion",
        REPRESENTATIONS["latents"],
        0,
        f"{_LOSSES}:DiffusionLoss",
        f"{_DRAW}:diffuse",
        separable=True,
    ),
    VisualObjective(
        "pixel_diffusion", REPRESENTATIONS["pixels"], 1, f"{_LOSSES}:DiffusionLoss", f"{_DRAW}:diffuse", separable=True
    ),
    VisualObjective(
        "next_code",
        REPRESENTATIONS["codes"],
        2,
        f"{_LOSSES}:NextCodeLoss",
        f"{_DRAW}:write_codes",
        causal=True,
        separable=True,
    ),
    VisualObjective(
        "masked_code",
        REPRESENTATIONS["codes"],
        3,
        f"{_LOSSES}:MaskedCodeLoss",
        f"{_DRAW}:unmask",
        predicted=2 / math.pi,  # the mean of `corruption.mask_ratio`
        separable=True,
    ),
    VisualObjective(
        "next_latent",
        REPRESENTATIONS["latents"],
        4,
        "omniloom.models.unified.objectives.next_latent:next_latent_loss",
        "omniloom.models.unified.density.drawing:write_latents",
        causal=True,
        separable=True,
        by_density=True,
    ),
)


def _problem(name: str, row: Any) -> str | None:
    """The reason why an entry point cannot be an objective."""
    if not isinstance(row, VisualObjective):
        return f"is no omniloom.models.unified.representations.VisualObjective but a {type(row).__name__}"
    if row.name != name:
        return f"is the objective {row.name!r}, expected the name of its entry point"
    if row.stream < 16:
        return f"has the random stream {row.stream}, expected a number of its own from 16 on"
    return None if row.representation in REPRESENTATIONS.values() else "is on no representation of ours"


def _table() -> tuple[dict[str, VisualObjective], dict[str, str]]:
    """The objectives in the order of their streams; and by name why others that are offered cannot be used."""
    others, unusable = extensions.load(GROUP, [row.name for row in _OURS], _problem)
    rows: dict[int, VisualObjective] = {row.stream: row for row in _OURS}
    for row in others.values():
        if row.stream in rows:
            other = rows[row.stream].name
            unusable[row.name] = f"offered with the random stream {row.stream}, which is that of {other}"
        rows.setdefault(row.stream, row)
    return {rows[stream].name: rows[stream] for stream in sorted(rows)}, unusable


OBJECTIVES, UNUSABLE = _table()
if TYPE_CHECKING:
    Objective = str
else:
    Objective = Literal[tuple(OBJECTIVES)]


def patch_numbers(patch: int) -> int:
    """Numbers of a position of pixels, whose patches have `patch` pixels a side."""
    return patch * patch * RGB


def objective_row(name: str) -> VisualObjective:
    """The row of an objective. ValueError for a name that is none."""
    if name in UNUSABLE:
        raise ValueError(f"objective: {name} cannot be used; it is {UNUSABLE[name]}")
    if name not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]
