"""What a step of curation is: a `Filter`, which looks at one record at a time, or a `Comparison`, which looks at all.

An object is one step of a config: `config` are its options. What a step needs of weight (decoders, models) it imports
where it uses it: every plan imports its module.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from omniloom.stages.ingest.options import Strict

if TYPE_CHECKING:
    import numpy as np

    from omniloom.stages.curate.item import Item
    from omniloom.stages.curate.signatures import Signatures


class StepConfig(Strict):
    """Options of a step. A kind's own config derives from this one and names itself by `kind: Literal["name"]`."""

    CANONICAL: ClassVar[dict[str, Any]] = {}

    kind: str
    """What the step does, one of those that `omniloom schema` lists."""


class Step(ABC):
    """One step. Has to have `Config` and `kinds`."""

    Config: ClassVar[type[StepConfig]]
    # Of records that it looks at; all others pass untouched.
    kinds: ClassVar[tuple[str, ...]]
    # Records may come out that hold other content than those that went in: they are compared with what is held out.
    makes_content: ClassVar[bool] = False
    # Rows may take a record's place.
    changes: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def name(cls) -> str:
        return typing.get_args(cls.Config.model_fields["kind"].annotation)[0]

    @classmethod
    def check(cls, config: Any) -> None:
        """What can be told to be wrong before anything is read: raise `InputError` with a field of the config."""
        return None

    @classmethod
    def outside(cls, config: Any) -> Any:
        """What besides the options decides the outcome, such as code that an option names, as JSON can hold it; None
        where nothing does."""
        return None


class Filter(Step):
    """Looks at one record at a time, in a worker."""

    @abstractmethod
    def apply(self, item: Item) -> str | list[dict] | None:
        """None: the record stays as it is. A text: it goes, for this reason. Rows: they take its place, made by
        `item.changed`."""


class Comparison(Step):
    """Looks at all records together: a worker makes signatures of each, and one place says which are of no use."""

    # Each table of signatures is compared with itself; the signatures of one table have one length.
    tables: ClassVar[tuple[str, ...]] = ("all",)
    # The n-th signature of a record is of its n-th caption, which goes alone.
    of_captions: ClassVar[bool] = False

    @abstractmethod
    def sign(self, item: Item) -> list[tuple[str, bytes]]:
        """(table, signature) of what of a record is to be compared."""

    @abstractmethod
    def decide(self, table: str, signed: Signatures) -> Iterable[tuple[np.ndarray, np.ndarray, str]]:
        """Batches of (those that go, those that they are like, why): rows of `signed`, int64 (n,) both. "like" and the
        name of a record follow the reason."""
