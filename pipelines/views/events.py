"""What a run tells, and who shows it: events, counts between them, the protocol of a view, and their words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Event:
    """Something that happened once. `message` says it in words, `fields` to a machine: literals."""

    event: str
    message: str
    stage: str | None = None
    level: str = "info"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """How far a stage is; `rate` is 0 and `left`, in seconds, infinity where they are not known yet."""

    done: float
    total: float
    unit: str
    rate: float
    left: float
    facts: dict[str, float]

    def text(self, width: int | None = None) -> str:
        """`132/150 steps, 3.22 steps/s, loss 0.432, 6 s left`; in `width` columns what matters least is left out."""
        for text in self._texts():
            if width is None or len(text) <= width:
                return text
        return text

    def _texts(self) -> list[str]:
        """From all there is to say to the least."""
        done = f"{_number(self.done)}/{_number(self.total)}"
        left = f"{clock(self.left)} left" if self.rate else ""
        brief = f"{about(self.left)} left" if self.rate else ""
        rate, bare = (f"{_rate(self.rate)} {self.unit}/s", f"{_rate(self.rate)}/s") if self.rate else ("", "")
        facts = [f"{name} {value:.4g}" for name, value in self.facts.items()]
        full = [(f"{done} {self.unit}", rate, *facts[:n], left) for n in range(len(facts), 0, -1)]
        short = [
            (f"{done} {self.unit}", bare, *facts[:1], left),
            (f"{done} {self.unit}", bare, *facts[:1], brief),
            (done, bare, *facts[:1], brief),
            (done, *facts[:1], brief),
            (done, brief),
            (done,),
        ]
        return [", ".join(part for part in parts if part) for parts in (*full, *short)]

    def fields(self) -> dict[str, Any]:
        known = {"rate": self.rate, "seconds_left": round(self.left, 1)} if self.rate else {}
        return {"done": self.done, "total": self.total, "unit": self.unit, **known, **self.facts}


class View(Protocol):
    """Use as a context manager around a run, and outside it for what comes before and after."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> None: ...

    def tell(self, event: Event) -> None: ...

    def count(self, stage: str, count: Count, begins: bool) -> None:
        """Where a stage is; called about twice a second. `begins`: the first count after other words."""
        ...

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        """How many stages are done, and the seconds that the rest takes, where that is known; called as often as
        counts. `ended`: a stage has just ended."""
        ...

    def drop(self, stage: str) -> None:
        """Nothing more will be told of the stage."""
        ...

    def last(self, event: Event) -> None:
        """A last word: a `result` goes to standard output, where there is no machine that reads."""
        ...


def told(event: Event) -> str:
    """In a line of plain text."""
    return f"{event.stage}: {event.message}" if event.stage else event.message


def of_all(done: int, stages: int, left: float | None) -> str:
    """`2 of 8 stages, about 12 min left`."""
    return f"{done} of {stages} stages" + (f", about {about(left)} left" if left else "")


def about(seconds: float) -> str:
    """`40 s`, `2 min`, `5.2 h`, `4.1 d`: as well as a prediction knows."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def _number(value: float) -> str:
    """A count, whole where it is: no exponent however large."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _rate(value: float) -> str:
    """Three digits, without an exponent where the number is large."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """`40 s`, `3 min 05 s`, `5 h 12 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"
