"""Packing: how documents come into rows of a fixed length, as a config says it, and one of them placed in a row.

Who computes it: `streams` in which order they come, `arrange` how each is shown, `bestfit` in which row it lies,
`planner` all of it, window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from omniloom.infra.fields import LATER
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


class SourceConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Times its share among the sources; 0 leaves it out."""
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """How often its documents are seen at most; then the others take its share. null: without end."""
    caption_weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(None, min_length=1)
    """Of the captions of its pictures, how often the first, the second, ... stands with one; the last holds for those
    behind it. null: each in turn, once in as many epochs as there are."""
    caption_dropout: Share | None = None
    """Share of its pictures drawn from a caption whose caption is left out; null: that of condition_dropout."""

    @field_validator("caption_weights")
    @classmethod
    def _some(cls, weights: list[float] | None) -> list[float] | None:
        if weights is not None and not any(weights):
            raise ValueError("expected one that is more than 0")
        return weights

    @model_validator(mode="after")
    def _says_something(self) -> SourceConfig:
        if self == type(self).model_construct():
            raise ValueError(f"expected some of {', '.join(type(self).model_fields)} other than the defaults")
        return self


class PackingConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    length: int = Field(4096, ge=16)
    """Tokens of a packed row."""
    mixture: Annotated[
        Annotated[dict[Kind, Annotated[float, Field(ge=0)]], AS_SHARES] | Annotated[Schedule, AS_SCHEDULE], BY_FORM
    ] = Field(default_factory=dict)
    """Share of tokens per kind (image, video, text, document); what is not named keeps its natural share, 0 leaves a
    kind out. Or a schedule of them."""
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False, json_schema_extra=LATER)
    """Evens out what a kind and source of documents has by nature: its share goes with its tokens to the power of
    1/temperature; at 1 it stays, the higher it is the more alike all are."""
    sources: dict[str, SourceConfig] | None = Field(None, min_length=1, json_schema_extra=LATER)
    """What holds for sources, by their names; those that are not named keep the defaults. With it, or with a
    temperature, each source of a kind has an order of its own."""
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

    @property
    def by_source(self) -> bool:
        """Whether each source of a kind has a stream of its own."""
        return self.temperature is not None or self.sources is not None

    def source(self, name: str | None) -> SourceConfig:
        """What holds for a source, or for all (None)."""
        return (self.sources or {}).get(name or "", _ANY)

    def held_out(self) -> PackingConfig:
        """The same for what is measured: no caption left out, no context with noise, every source without end."""
        sources = {
            name: held.model_copy(update={"caption_dropout": None, "epochs": None})
            for name, held in (self.sources or {}).items()
        }
        quiet = {"condition_dropout": 0.0, "noisy_context": 0.0, "sources": sources or None}
        return self.model_copy(update=quiet)

    @field_validator("mixture")
    @classmethod
    def _of_kinds(cls, mixture: Any) -> Any:
        return of_names(mixture, get_args(Kind))


_ANY = SourceConfig.model_construct()  # what holds where nothing is said


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
