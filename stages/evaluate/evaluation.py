"""Shared by the measurements of a trained model: the model, the held-out clips, and where figures are put down.

In: records, tokens and a model's folder. `stages.evaluate.tokenizer`, `.drawing` and `.writing` measure; each of their
functions adds to `metrics`, `items` (what figures are means of), `pictures` (PNG by name), `samples` and
`text_samples`. What is measured is drawn by the seed, evenly over sources and labels (`stages.data.spread`), and shown
in the shape that it was trained in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniloom.infra.artifacts import Artifact
from omniloom.models.model import OmniLoom, VisualSampling
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import ClipStore
from omniloom.stages.data.packing import PackingConfig
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate.intervals import intervals
from omniloom.stages.evaluate.items import Values, values_of
from omniloom.stages.train.ledger import trained_by

if TYPE_CHECKING:
    from omniloom.stages.evaluate.config import MeasureConfig
    from omniloom.stages.evaluate.features.networks import Networks
    from omniloom.stages.evaluate.swept import Swept


def _given(value: str | None, what: str) -> str:
    if value is None:
        raise ValueError(f"there is no {what}")
    return value


class Evaluation:
    """`inputs` holds artifacts by role: `records` and `tokens`; the model is in `folder` and was trained by the config
    `training`, by default those of the input `model`."""

    def __init__(
        self,
        config: MeasureConfig,
        inputs: dict[str, Artifact],
        device: str,
        folder: Path | None = None,
        training: Mapping[str, Any] | None = None,
    ):
        self.config, self.inputs = config, inputs
        self.training = trained_by(inputs["model"]) if training is None else training
        self.loom = OmniLoom.load(folder or inputs["model"].local() / "model", device)
        self.tokens = TokenSet(inputs["tokens"], config.split)
        self.facts = self.tokens.facts
        self.networks = self._networks(device)
        self.sweep: Swept | None = None
        self.metrics: dict[str, Any] = {}
        self.items: dict[str, Values] = {}
        self.looks: dict[int, dict[int, np.ndarray]] = {}
        self.seen: dict[tuple[str, int], dict[int, np.ndarray]] = {}  # features, by network and store of clips
        self.pictures: dict[str, bytes] = {}
        self.cards: dict[str, list[dict]] = {}  # what the report shows one by one, as `reporting.report` takes it
        self.samples: list[dict] = []
        self.text_samples: list[dict] = []

    def _networks(self, device: str) -> Networks | None:
        """The feature networks that the config names, and the pipeline's scorer, each tried on a clip of the model's
        size."""
        scorer = self.inputs.get("scorer") if self.loom.config.objectives else None
        if self.config.features is None and scorer is None:
            return None
        from omniloom.stages.evaluate.features.networks import load

        size = min(self.loom.config.image_size or (1,))
        return load(self.config.features, device, size, self.facts["frames"], scorer)

    def add(
        self, name: str, ids: Sequence[str], values: Sequence[float] | np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """A figure as the weighted mean of its items (`stages.evaluate.items`)."""
        self.items[name] = values_of(ids, values, weights)
        self.metrics[name] = self.items[name].mean

    def close(self) -> None:
        """Add the intervals of all figures."""
        self.metrics |= intervals(self.items, self.config.seed)

    @cached_property
    def packing(self) -> PackingConfig:
        """How the model was trained; a field that its training did not have yet has its default."""
        known = self.training.get("packing", {})
        return PackingConfig(**{name: known[name] for name in PackingConfig.model_fields if name in known})

    @property
    def knows_captions(self) -> bool:
        """Whether captions before pictures were trained: how likely they are by themselves is known of no other
        model."""
        weight = self.training.get("loss", {}).get("task_weights", {}).get("draw", 1.0)
        return bool(self.packing.caption_first and self.packing.caption_loss and weight)

    @cached_property
    def aspects(self) -> Aspects:
        """Of the clips' shapes in training; tokens from before there were ratios are of squares."""
        tokenizer = self.loom.tokenizer
        return Aspects(tuple(self.facts.get("aspects", Aspects.names)), tokenizer.config.patch_size if tokenizer else 1)

    def clips(self, kind: str, split: str) -> ClipStore:
        size = self.facts["image_size"] if kind == "image" else self.facts["video_size"]
        return ClipStore(self.inputs["records"], kind, split, self.aspects, size, self.facts["frames"], 1 << 28)

    @cached_property
    def images(self) -> ClipStore:
        return self.clips("image", self.config.split)

    @cached_property
    def videos(self) -> ClipStore:
        return self.clips("video", self.config.split)

    @cached_property
    def train_images(self) -> ClipStore:
        return self.clips("image", "train")

    @cached_property
    def train_videos(self) -> ClipStore:
        return self.clips("video", "train")

    @cached_property
    def trained_on(self) -> np.ndarray:
        """Indices of the train pictures that are looked at, all or `train_pictures` of them, in rising order."""
        return np.sort(self.train_images.spread(self.config.seed)[: self.config.train_pictures])

    def visual(self, **more: Any) -> VisualSampling:
        """How is drawn: as the config says, and where it is silent as the model does by itself; with `more` fields."""
        return self.loom.sampling(self.config.chosen(**more))

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.loom.config.objectives

    def suffix(self, objective: str) -> str:
        """Suffix of the names of an objective's figures and pictures: none where it is the only one."""
        return f"_{objective}" if len(self.objectives) > 1 else ""

    @cached_property
    def captions(self) -> list[str | None]:
        """Of the held-out pictures, by index."""
        return self.images.table["caption"].to_pylist()

    def caption(self, index: int) -> str:
        """Of a held-out picture that has one; ValueError where it has none."""
        return _given(self.captions[index], f"caption of the held-out picture {index}")

    def ids(self, indices: Sequence[int]) -> list[str]:
        """Of held-out pictures."""
        return [self._ids[i] for i in indices]

    @cached_property
    def _ids(self) -> list[str]:
        return self.images.table["id"].to_pylist()

    def label(self, index: int) -> str:
        """As `caption`."""
        return _given(self.labels[index], f"label of the held-out picture {index}")

    @cached_property
    def labels(self) -> list[str | None]:
        return self.images.table["label"].to_pylist()

    @cached_property
    def captioned(self) -> list[int]:
        """Indices of the held-out pictures that have a caption, in the order of a draw that is even over sources and
        within each over labels."""
        return self._drawn(self._with_caption, ("source", "label"))

    @cached_property
    def labelled(self) -> list[int]:
        """Indices of those whose label is one of `classes`, in the order of a draw that is even over labels and
        within each over sources."""
        classes = set(self.classes)
        return self._drawn([i for i in self._with_caption if self.labels[i] in classes], ("label", "source"))

    @cached_property
    def plain(self) -> list[int]:
        """Indices of those with a caption, drawn as they are frequent."""
        return self._drawn(self._with_caption, ())

    @cached_property
    def _with_caption(self) -> list[int]:
        return [i for i, caption in enumerate(self.captions) if caption]

    def _drawn(self, among: list[int], by: tuple[str, ...]) -> list[int]:
        return self.images.spread(self.config.seed, by, np.array(among, np.int64)).tolist()

    @cached_property
    def classes(self) -> list[str]:
        """Labels that both splits have, with enough train pictures to learn them from; none where there is but one,
        which says nothing."""
        train = Counter(label for label in self.train_images.table["label"].to_pylist() if label)
        held_out = set(self.labels)
        found = sorted(label for label, n in train.items() if n >= self.config.class_examples and label in held_out)
        return found if len(found) > 1 else []

    def by_source(self, indices: Sequence[int]) -> dict[str, list[int]]:
        """The indices by the source of their pictures, as what names of grids end in; "" where they have but one."""
        parts: dict[str, list[int]] = {}
        for i in indices:
            source = self.images.table["source"][i].as_py()
            parts.setdefault("_" + re.sub(r"\W", "_", source), []).append(i)
        return parts if len(parts) > 1 else {"": list(indices)}

    @staticmethod
    def by_shape(clips: ClipStore, indices: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """Places in `indices` by the (height, width) of their clips."""
        parts: dict[tuple[int, int], list[int]] = {}
        for place, i in enumerate(indices):
            parts.setdefault(clips.shape(i), []).append(place)
        return parts
