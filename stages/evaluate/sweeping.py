"""What sampling costs: pictures of the same captions from the same noise, by several settings of the sampler, with
their quality and the seconds that one takes. In: an `Evaluation`, whose config has a `sweep`. Out: its `sweep`, a
`stages.evaluate.swept.Swept`.

Figures: class agreement, coverage, the Fréchet distance of shrunken pixels, and FID and FD-DINOv2 where their networks
are given, as `stages.evaluate.measures` says what each means.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.drawing import NEIGHBOURS, classifier_of, drawn_for, looks_of, real_looks
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import measuring
from omniloom.stages.evaluate.figure import LEAST_PICTURES
from omniloom.stages.evaluate.items import Values, label_weights, values_of
from omniloom.stages.evaluate.swept import Setting, choose

_WARM = 4  # pictures drawn before the clock runs


def sweep(evaluation: Evaluation) -> None:
    """Nothing where no sweep is asked for, or there are no captions to draw."""
    asked = cast(EvaluateConfig, evaluation.config).sweep
    if asked is None or not evaluation.captioned or not evaluation.objectives:
        return
    indices = evaluation.plain[: asked.drawings]
    measure = _Measure(evaluation, indices)
    if not measure.figures:
        evaluation.metrics["sweep_left_out"] = f"{len(indices)} captions, of which no figure can be measured"
        return
    found = []
    for fields in asked.settings:
        _draw(evaluation, indices[:_WARM], fields)
        begun = time.perf_counter()
        drawn = _draw(evaluation, indices, fields)
        found.append(Setting(fields, (time.perf_counter() - begun) / len(indices), measure(drawn)))
    evaluation.sweep = choose(found, len(indices), evaluation.config.seed)
    chosen = evaluation.sweep.settings[evaluation.sweep.chosen]
    evaluation.metrics |= {f"sampling_{name}": value for name, value in chosen.fields.items()}
    evaluation.metrics["sampling_seconds"] = chosen.seconds


def _draw(evaluation: Evaluation, indices: list[int], fields: Mapping[str, Any]) -> list[np.ndarray]:
    return drawn_for(evaluation, indices, evaluation.objectives[0], fields=fields)


class _Measure:
    """Figures of pictures that were drawn for the captions of held-out ones."""

    def __init__(self, evaluation: Evaluation, indices: list[int]):
        self.evaluation, self.indices = evaluation, indices
        self.ids = evaluation.ids(indices)
        known = set(evaluation.classes)
        self.labelled = [place for place, i in enumerate(indices) if evaluation.labels[i] in known]
        self.classifier = classifier_of(evaluation) if self.labelled else None
        self.real = real_looks(evaluation, evaluation.images, indices)
        self.covers = len(np.unique(self.real, axis=0)) > NEIGHBOURS
        self.far = len(indices) >= LEAST_PICTURES
        self.figures = bool(self.classifier or self.covers or self.far)

    def __call__(self, drawn: list[np.ndarray]) -> dict[str, Values]:
        evaluation, looks = self.evaluation, looks_of(self.evaluation, drawn)
        found: dict[str, Values] = {}
        if self.classifier:
            truth = [evaluation.label(self.indices[place]) for place in self.labelled]
            called = self.classifier(looks[self.labelled])
            right = [a == b for a, b in zip(called, truth, strict=True)]
            ids = [self.ids[place] for place in self.labelled]
            found["image_class_agreement"] = values_of(ids, right, label_weights(truth))
        if self.covers:
            found["image_coverage"] = values_of(self.ids, metrics.covered(self.real, looks, NEIGHBOURS))
        if self.far:
            distance = measuring.frechet(self.real, looks)
            found[f"frechet_pixels{evaluation.config.class_pixels}"] = values_of(self.ids, measuring.items(distance))
            for name, values in measuring.frechet_in_networks(evaluation, self.indices, drawn).items():
                found[name] = values_of(self.ids, values)
        return found
