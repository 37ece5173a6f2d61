"""What one trial tells among others: its number before its stages, and its rows gone when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omniloom.pipelines.views.events import Count, Event, View


@dataclass
class Part:
    """A view of one run in the view of several, which is entered and left by whoever runs them."""

    view: View
    label: str
    _stages: set[str] = field(default_factory=set)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *exception: Any) -> None:
        for stage in self._stages:
            self.view.drop(stage)

    def tell(self, event: Event) -> None:
        if event.stage is None:
            self.view.tell(replace(event, message=f"{self.label}{event.message}"))
            return
        stage = f"{self.label}{event.stage}"
        if event.event == "start":
            self._stages.add(stage)
        self.view.tell(replace(event, stage=stage))

    def count(self, stage: str, count: Count, begins: bool) -> None:
        self.view.count(f"{self.label}{stage}", count, begins)

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        """Of one trial, which says little of them all."""

    def drop(self, stage: str) -> None:
        self.view.drop(f"{self.label}{stage}")

    def last(self, event: Event) -> None:
        self.view.last(event)
