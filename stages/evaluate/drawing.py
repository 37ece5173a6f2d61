"""Measures drawing: pictures from held-out captions, by each objective, each in the shape of the
held-out picture whose caption it is. In: an `Evaluation`, which gets the figures and pictures. What each figure means
stands in `stages.evaluate.measures`.

The Fréchet distance is between drawn and held-out pictures, of as many captions as pictures, drawn as they are
frequent: both sides are of the split as it is. Its features are the pixels of the picture shrunken to NxN, so it
compares with nothing but itself; that of as many train pictures is what a good model comes near.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniloom.stages.data.clips import ClipStore
from omniloom.stages.evaluate import following, metrics, novelty
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import measuring
from omniloom.stages.evaluate.figure import LEAST_PICTURES
from omniloom.stages.evaluate.items import label_weights
from omniloom.stages.reporting import report

NEIGHBOURS = 5  # of a real picture, for coverage


def draw(evaluation: Evaluation) -> None:
    config = evaluation.config
    if not evaluation.captioned or not config.drawings:
        return
    labelled = evaluation.labelled
    named = [labelled[i % len(labelled)] for i in range(config.drawings)] if labelled else []
    classifier = classifier_of(evaluation) if labelled else None
    asked = _plain(evaluation)
    for objective in evaluation.objectives:
        suffix = evaluation.suffix(objective)
        for source, part in evaluation.by_source(evaluation.captioned).items():
            _draw_grid(evaluation, part, source, objective)
        drawn = drawn_for(evaluation, named, objective)
        if classifier:
            _judge(evaluation, classifier, named, drawn, objective)
        _follow(evaluation, named, drawn, objective)
        plain, others = named[: len(asked)], drawn[: len(asked)]
        if set(plain) != set(asked):
            plain, others = asked, drawn_for(evaluation, asked, objective)
        if asked:
            distance, of_real, of_drawn = metrics.frechet_parts(
                real_looks(evaluation, evaluation.images, plain), looks_of(evaluation, others)
            )
            name = _distance_name(evaluation, suffix)
            evaluation.add(name, evaluation.ids(plain), distance + of_real + of_drawn)
            measuring.of_drawn(evaluation, plain, others, suffix)
        if classifier or asked:
            known = (named, drawn) if classifier else (plain, others)
            _copies(evaluation, *known, suffix)


def _copies(evaluation: Evaluation, asked: list[int], drawn: list[np.ndarray], suffix: str) -> None:
    """The pictures drawn for these captions against train pictures, as held-out ones stand against them."""
    real = real_looks(evaluation, evaluation.images, list(dict.fromkeys(asked)))
    train = real_looks(evaluation, evaluation.train_images, evaluation.trained_on.tolist())
    novelty.copies(evaluation, asked, looks_of(evaluation, drawn), real, train, suffix)


def _follow(evaluation: Evaluation, named: list[int], drawn: list[np.ndarray], objective: str) -> None:
    """`image_following`: pairs of captions drawn from one noise, in the shape of the first one's picture."""
    if not (pairs := following.pairs(evaluation)):
        return
    firsts, seconds = ([pair[side] for pair in pairs] for side in (0, 1))
    made = drawn[: len(firsts)] if named[: len(firsts)] == firsts else drawn_for(evaluation, firsts, objective)
    others = drawn_for(evaluation, seconds, objective, shapes_of=firsts)
    found = following.followed(
        (looks_of(evaluation, made), looks_of(evaluation, others)),
        (real_looks(evaluation, evaluation.images, firsts), real_looks(evaluation, evaluation.images, seconds)),
    )
    evaluation.add(f"image_following{evaluation.suffix(objective)}", evaluation.ids(firsts), found)


def looks_of(evaluation: Evaluation, pictures: Sequence[np.ndarray]) -> np.ndarray:
    return metrics.shrink(pictures, evaluation.config.class_pixels)


def real_looks(evaluation: Evaluation, clips: ClipStore, indices: Sequence[int]) -> np.ndarray:
    """Features of real pictures, of which one at a time is whole in memory."""
    known = evaluation.looks.setdefault(id(clips), {})
    for i in indices:
        if i not in known:
            known[i] = looks_of(evaluation, [clips[i][0]])[0]
    return np.stack([known[i] for i in indices])


def drawn_for(
    evaluation: Evaluation,
    indices: Sequence[int],
    objective: str,
    shapes_of: Sequence[int] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """A picture for the caption of each of the held-out ones, in its shape, or in that of another; the seeds count
    up. `fields` of sampling stand in place of the config's."""
    config = evaluation.config
    drawn: dict[int, np.ndarray] = {}
    for shape, places in evaluation.by_shape(evaluation.images, shapes_of or indices).items():
        made = evaluation.loom.text_to_image(
            [evaluation.caption(indices[place]) for place in places],
            dataclasses.replace(evaluation.visual(objective=objective, size=shape), **(fields or {})),
            seeds=[config.seed + place for place in places],
        )
        drawn |= dict(zip(places, made, strict=True))
    return [drawn[place] for place in range(len(indices))]


def _draw_grid(evaluation: Evaluation, part: list[int], source: str, objective: str) -> None:
    """One picture of each of 32 captions; of fewer, several of each."""
    shown = list({evaluation.captions[i]: i for i in reversed(part)}.values())[::-1][:32]
    shown = (shown * (32 // len(shown) + 1))[:32]
    evaluation.pictures[f"drawn_images{source}{evaluation.suffix(objective)}"] = report.grid(
        drawn_for(evaluation, shown, objective), 8, [evaluation.caption(i) for i in shown]
    )


def classifier_of(evaluation: Evaluation) -> metrics.PixelClassifier:
    """Trained on the train split; how good it is on real held-out pictures is a figure too."""
    train, classes, labelled = evaluation.train_images, set(evaluation.classes), evaluation.labelled
    labels = train.table["label"].to_pylist()
    rows = [i for i in evaluation.trained_on.tolist() if labels[i] in classes]
    classifier = metrics.PixelClassifier(real_looks(evaluation, train, rows), [labels[i] for i in rows])
    truth = [evaluation.label(i) for i in labelled]
    named = classifier(real_looks(evaluation, evaluation.images, labelled))
    evaluation.metrics["classes"] = len(evaluation.classes)
    right = [a == b for a, b in zip(named, truth, strict=True)]
    evaluation.add("classifier_accuracy", evaluation.ids(labelled), right, label_weights(truth))
    return classifier


def _judge(
    evaluation: Evaluation,
    classifier: metrics.PixelClassifier,
    asked: list[int],
    drawn: list[np.ndarray],
    objective: str,
) -> None:
    suffix, features = evaluation.suffix(objective), looks_of(evaluation, drawn)
    named, truth = classifier(features), [evaluation.label(i) for i in asked]
    right = [a == b for a, b in zip(named, truth, strict=True)]
    evaluation.add(f"image_class_agreement{suffix}", evaluation.ids(asked), right, label_weights(truth))
    # As many drawn as real, and of the same captions: more would cover more by number alone, fewer less.
    count = len(set(asked))
    real = real_looks(evaluation, evaluation.images, asked[:count])
    if len(np.unique(real, axis=0)) > NEIGHBOURS:
        found = metrics.covered(real, features[:count], NEIGHBOURS)
        evaluation.add(f"image_coverage{suffix}", evaluation.ids(asked[:count]), found)
    for number, (i, label) in enumerate(zip(asked, named, strict=True)):
        evaluation.samples.append(
            {
                "task": "text_to_image",
                "objective": objective,
                "prompt": evaluation.captions[i],
                "label": truth[number],
                "named": label,
                "seed": evaluation.config.seed + number,
            }
        )


def _distance_name(evaluation: Evaluation, suffix: str) -> str:
    return f"frechet_pixels{evaluation.config.class_pixels}{suffix}"


def _plain(evaluation: Evaluation) -> list[int]:
    """The held-out pictures whose captions are drawn for the Fréchet distance, all or as many as `drawings`; none where
    there are too few. The distance of as many train pictures is measured on the way."""
    train = evaluation.train_images
    count = min(evaluation.config.drawings, len(evaluation.captioned), len(train))
    if count < LEAST_PICTURES:
        return []
    chosen = evaluation.plain[:count]
    others = train.spread(evaluation.config.seed, ())[:count]
    evaluation.metrics["frechet_pictures"] = count
    evaluation.metrics[_distance_name(evaluation, "_train")] = metrics.frechet(
        real_looks(evaluation, evaluation.images, chosen), real_looks(evaluation, train, others.tolist())
    )
    measuring.floors(evaluation, chosen, others.tolist())
    return chosen
