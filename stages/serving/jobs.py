"""What a server's front asks of the model, and what it is told. One job is one answer: a picture, a text, or text and
pictures in turn.

In and out between processes: a `Job` goes in; `Interim`, `Written` and at last `Made` come out, or `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from omniloom.models.model import OmniLoom
    from omniloom.models.unified.generation.sampling import VisualSampling

Task = Literal["draw", "text", "interleave"]


@dataclass(frozen=True)
class Job:
    """One answer.

    prompt    text, behind the `images`, uint8 (H, W, 3) each
    sampling  choices by option (`stages.inference.options`)
    interim   pictures to show while one is drawn, at most
    stream    whether text is told as it is written
    """

    task: Task
    prompt: str
    images: tuple[np.ndarray, ...] = ()
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    interim: int = 0
    stream: bool = False

    @property
    def together(self) -> tuple:
        """What jobs have in common that are computed in one batch."""
        return self.task, bool(self.images), tuple(sorted(self.sampling.items()))


@dataclass(frozen=True)
class Interim:
    """The picture, uint8 (H, W, 3), as it is predicted after `step` of `steps`."""

    picture: np.ndarray
    step: int
    steps: int


@dataclass(frozen=True)
class Written:
    """More text, or a picture uint8 (H, W, 3) that stands behind it."""

    part: str | np.ndarray


@dataclass(frozen=True)
class Made:
    """The whole answer.

    parts       texts and pictures in turn
    prompt_tokens, tokens   of the prompt with its pictures, and of the answer: a picture's are its positions
    finish      whether the text ended by itself or by its limit
    visual      how pictures were drawn, what the model fills in included; None for text
    """

    parts: tuple[str | np.ndarray, ...]
    prompt_tokens: int
    tokens: int
    finish: Literal["stop", "length"] = "stop"
    visual: VisualSampling | None = None


Event = Interim | Written | Made


@dataclass(frozen=True)
class Facts:
    """What a front knows of its model.

    made_by     `stages.inference.marks.identity`: which training and weights
    usual       by objective, the usual one first, how it draws where nothing is chosen; none of a model of text alone
    size        (height, width) in pixels that it draws by default
    """

    name: str
    made_by: Mapping[str, str]
    usual: Mapping[str, VisualSampling]
    size: tuple[int, int] | None

    @classmethod
    def of(cls, name: str, made_by: Mapping[str, str], loom: OmniLoom) -> Facts:
        usual = {objective: loom.sampling({"objective": objective}) for objective in loom.config.objectives}
        size = loom.config.image_size
        return cls(name, made_by, usual, size and (size[0], size[1]))


class Refused(Exception):
    """A job that the model cannot do. `field` is the option, or the field of the job, that is wrong."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message, self.field = message, field

    def __reduce__(self):
        return type(self), (self.message, self.field)


class Overloaded(Exception):
    """There is no room for a job; `after` seconds there may be."""

    def __init__(self, after: int):
        super().__init__(f"the queue is full; try again in {after} s")
        self.after = after


class Unavailable(Exception):
    """The model does not answer, and may do so later."""
