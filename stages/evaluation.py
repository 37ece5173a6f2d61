"""What the measurements of a trained model share: the model, the held-out clips, and where figures are put down.

In: records, tokens and a model's folder. `stages.measure_tokenizer`, `.measure_drawing` and `.measure_writing` measure;
each of their functions adds to `metrics`, `pictures` (PNG by name), `samples` and `text_samples`.
"""
from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infra.artifacts import Artifact
from models.bundle import OmniLoom
from stages import records
from stages.aspects import Aspects
from stages.clips import ClipStore
from stages.tokens import TokenSet

if TYPE_CHECKING:
    from stages.evaluate import MeasureConfig


class Evaluation:
    """`inputs` holds `ingest` and `pretokenize`; the model is in `folder`, by default in that of the input `train`."""

    def __init__(self, config: MeasureConfig, inputs: dict[str, Artifact], device: str, folder: Path | None = None):
        self.config, self.inputs = config, inputs
        self.loom = OmniLoom.load(folder or inputs["train"].local() / "model", device)
        self.tokens = TokenSet(inputs["pretokenize"], config.split)
        self.facts = self.tokens.facts
        self.metrics: dict[str, float] = {}
        self.pictures: dict[str, bytes] = {}
        self.samples: list[dict] = []
        self.text_samples: list[dict] = []
        self.images = self.clips("image", config.split)
        self.videos = self.clips("video", config.split)

    def clips(self, kind: str, split: str, aspects: Aspects = Aspects()) -> ClipStore:
        size = self.facts["image_size"] if kind == "image" else self.facts["video_size"]
        return ClipStore(self.inputs["ingest"], kind, split, aspects, size, self.facts["frames"], 1 << 28)

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.loom.config.objectives

    def suffix(self, objective: str) -> str:
        """What the names of an objective's figures and pictures end in: nothing where it is the only one."""
        return f"_{objective}" if len(self.objectives) > 1 else ""

    @cached_property
    def records(self) -> list[dict]:
        """id, caption and label of the held-out pictures."""
        return [self.images.record(i) for i in range(len(self.images))]

    @cached_property
    def captioned(self) -> list[int]:
        """Indices of the held-out pictures that have a caption."""
        return [i for i, record in enumerate(self.records) if record["caption"]]

    @cached_property
    def train_images(self) -> ClipStore:
        return self.clips("image", "train")

    @cached_property
    def classes(self) -> list[str]:
        """Labels that both splits have, with enough train pictures to learn them from; none where there is but one,
        which says nothing."""
        train = Counter(label for label in self.train_images.table["label"].to_pylist() if label)
        held_out = {record["label"] for record in self.records}
        found = sorted(label for label, n in train.items() if n >= self.config.class_examples and label in held_out)
        return found if len(found) > 1 else []

    @cached_property
    def _sources(self) -> dict[str, str]:
        return {row["id"]: row["source"] for row in records.iterate(
            self.inputs["ingest"].uri, kinds=["image"], split=self.config.split, columns=("id", "source"))}

    def by_source(self, indices: list[int]) -> dict[str, list[int]]:
        """The indices by the source of their pictures, as what names of grids end in; "" where they have but one."""
        parts: dict[str, list[int]] = {}
        for i in indices:
            source = self._sources[self.records[i]["id"]]
            parts.setdefault("_" + re.sub(r"\W", "_", source), []).append(i)
        return parts if len(parts) > 1 else {"": indices}
