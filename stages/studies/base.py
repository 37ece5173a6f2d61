"""Shared by the studies: several trainings in one stage, told apart in its progress, MLflow run and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.infra import storage


@dataclass
class Share:
    """Progress of one training as its share of the whole study."""

    progress: Any
    number: int
    count: int

    def __call__(self, done: int, total: int, unit: str, **shown: Any) -> None:
        self.progress(self.number * total + done, self.count * total, unit, **shown)

    def say(self, text: str) -> None:
        self.progress.say(f"{self.number + 1} of {self.count}: {text}")

    def note(self, text: str) -> None:
        self.progress.note(text)

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Nothing waits for the validations of one training among several: the study is judged when it ends."""

    def is_to_stop(self) -> str | None:
        return self.progress.is_to_stop()


@dataclass
class Named:
    """The study's MLflow run, with each training's metrics and pictures under its own name."""

    tracker: Any
    name: str

    def log_metrics(self, metrics: dict, **where: Any) -> None:
        self.tracker.log_metrics({f"{self.name}/{key}": value for key, value in metrics.items()}, **where)

    def log_image(self, picture: bytes, name: str, step: int) -> None:
        self.tracker.log_image(picture, f"{self.name}_{name}", step)

    def log_text(self, text: str, file: str) -> None:
        self.tracker.log_text(text, f"{self.name}/{file}")

    def close(self) -> None:
        self.tracker.close()


def curves(study: dict, output: str, titles: Sequence[str]) -> dict[str, dict]:
    """The curves of all trainings by title and name, from the folders below `output`; those that none has are empty."""
    from omniloom.stages.reporting import history

    found: dict[str, dict] = {title: {} for title in titles}
    for row in study["rows"]:
        series = history.series(history.load(storage.join(output, row["name"], "report", "history.jsonl")))
        for title in titles:
            if title in series:
                found[title][row["name"]] = series[title]
    return found
