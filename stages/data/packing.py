"""Packing: how documents come into rows of a fixed length, as a config says it, and one of them placed in a row.

Who computes it: `streams` in which order they come, `arrange` how each is shown, `bestfit` in which row it lies,
`planner` all of it, window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from omniloom.stages.data.shares import AS_SCHEDULE, AS_SHARES, BY_FORM, Schedule, of_names

Kind = Literal["image", "video", "text", "document"]
Task = Literal["text", "draw", "describe", "document"]  # what a document is arranged as
TASKS: tuple[Task, ...] = get_args(Task)
Source = Literal["text", "image"]  # of a drawn picture's condition: what words say, and earlier pictures
Share = Annotated[float, Field(ge=0, le=1)]


def _shares(value: Any) -> Any:
    """A union's own errors name its types, not what was expected."""
    shares = value if isinstance(value, dict) else {"text": value}
    if (
        not shares
        or set(shares) - set(get_args(Source))
        or not all(
            isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
            for share in shares.values()
        )
    ):
        raise ValueError(f"expected a share from 0 to 1, or shares of {' and '.join(get_args(Source))}, got {value!r}")
    return value


class PackingConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    length: int = Field(4096, ge=16)
    """Tokens of a packed row."""
    mixture: Annotated[
        Annotated[dict[Kind, Annotated[float, Field(ge=0)]], AS_SHARES] | Annotated[Schedule, AS_SCHEDULE], BY_FORM
    ] = Field(default_factory=dict)
    """Share of tokens per kind (image, video, text, document); what is not named keeps its natural share, 0 leaves a
    kind out. Or a schedule of them."""
    caption_first: float = Field(0.5, ge=0, le=1)
    """Share of captioned pictures that are drawn from their caption; the others are described. Pictures without a
    caption are drawn, and left out where this is 0."""
    caption_loss: bool = True
    """Whether the caption that a picture is drawn from is learnt as well; without it the picture alone is."""
    condition_dropout: Annotated[Share | dict[Source, Share], BeforeValidator(_shares)] = 0.1
    """For guidance: share of the former whose caption is left out; or shares by source, which hold for the drawn
    pictures of interleaved documents too: of text (a caption, all words before the picture) and, apart from it, of
    image (all pictures before it)."""
    noisy_context: float = Field(0.0, ge=0, le=1)
    """Share of documents whose pictures that stand as context are shown with noise; next_code shows none."""
    context_max_time: float = Field(0.3, gt=0, lt=1)
    """Cap of that noise, as a share of the path."""
    window_rows: int = Field(256, ge=1)
    """Rows that are planned together."""

    @field_validator("mixture")
    @classmethod
    def _of_kinds(cls, mixture: Any) -> Any:
        return of_names(mixture, get_args(Kind))


@dataclass(frozen=True)
class Placed:
    """One document in a row. `view` is its `Task`; `start`, `stop` cut a text; `caption_loss` is the config's;
    `target` is the segment of an interleaved document that is drawn, -1 for none, and `dropped` are the sources of a
    drawn picture's condition that are left out; `caption` is the one of a picture's captions that stands with it. Its
    pictures, the drawn one and those that are context, are what `objective` is about; context has noise up to
    `context_time`."""

    index: int
    view: Task
    length: int
    dropped: frozenset[Source] = frozenset()
    start: int = 0
    stop: int = 0
    target: int = -1
    objective: str = "latent_diffusion"
    context_time: float = 0.0
    caption_loss: bool = True
    caption: int = 0
