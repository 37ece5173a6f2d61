"""Measures drawing: pictures from held-out captions, by each objective, each in the shape of the
held-out picture whose caption it is. In: an `Evaluation`, which gets the figures and pictures. What each figure means
stands in `stages.evaluate.measures`.

The Fréchet distance is between drawn and held-out pictures, of as many captions as pictures, drawn as they are
frequent: both sides are of the split as it is. Its features are the pixels of the picture shrunken to NxN, so it
compares with nothing but itself; that of as many train pictures is what a good model comes near.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniloom.stages.data.clips import ClipStore
from omniloom.stages.data.media.videos import encode_mp4
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.items import label_weights
from omniloom.stages.evaluate.measures import LEAST_PICTURES
from omniloom.stages.reporting import report

_FPS = 8.0  # of a video in the report
_NEIGHBOURS = 5  # of a real picture, for coverage


def draw(evaluation: Evaluation) -> None:
    config = evaluation.config
    if not evaluation.captioned or not config.drawings:
        return
    labelled = evaluation.labelled
    named = [labelled[i % len(labelled)] for i in range(config.drawings)] if labelled else []
    classifier = _classifier(evaluation) if labelled else None
    asked = _plain(evaluation)
    for objective in evaluation.objectives:
        for source, part in evaluation.by_source(evaluation.captioned).items():
            _draw_grid(evaluation, part, source, objective)
        drawn = _drawn(evaluation, named, objective)
        if classifier:
            _judge(evaluation, classifier, named, drawn, objective)
        if asked:
            same = set(named[: len(asked)]) == set(asked)
            others = drawn[: len(asked)] if same else _drawn(evaluation, asked, objective)
            distance, of_real, of_drawn = metrics.frechet_parts(
                _real(evaluation, evaluation.images, asked), _features(evaluation, others)
            )
            name = _distance_name(evaluation, evaluation.suffix(objective))
            evaluation.add(name, evaluation.ids(asked), distance + of_real + of_drawn)


def _features(evaluation: Evaluation, pictures: Sequence[np.ndarray]) -> np.ndarray:
    return metrics.shrink(pictures, evaluation.config.class_pixels)


def _real(evaluation: Evaluation, clips: ClipStore, indices: Sequence[int]) -> np.ndarray:
    """Features of real pictures, of which one at a time is whole in memory."""
    return np.concatenate([_features(evaluation, [clips[int(i)][0]]) for i in indices])


def _drawn(evaluation: Evaluation, indices: Sequence[int], objective: str) -> list[np.ndarray]:
    """A picture for the caption of each of the held-out ones, in its shape; the seeds count up."""
    config = evaluation.config
    drawn: dict[int, np.ndarray] = {}
    for shape, places in evaluation.by_shape(evaluation.images, indices).items():
        made = evaluation.loom.text_to_image(
            [evaluation.caption(indices[place]) for place in places],
            config.visual(objective=objective, size=shape),
            seeds=[config.seed + place for place in places],
        )
        drawn |= dict(zip(places, made, strict=True))
    return [drawn[place] for place in range(len(indices))]


def _draw_grid(evaluation: Evaluation, part: list[int], source: str, objective: str) -> None:
    """One picture of each of 32 captions; of fewer, several of each."""
    shown = list({evaluation.captions[i]: i for i in reversed(part)}.values())[::-1][:32]
    shown = (shown * (32 // len(shown) + 1))[:32]
    evaluation.pictures[f"drawn_images{source}{evaluation.suffix(objective)}"] = report.grid(
        _drawn(evaluation, shown, objective), 8, [evaluation.caption(i) for i in shown]
    )


def _classifier(evaluation: Evaluation) -> metrics.PixelClassifier:
    """Trained on the train split; how good it is on real held-out pictures is a figure too."""
    train, classes, labelled = evaluation.train_images, set(evaluation.classes), evaluation.labelled
    labels = train.table["label"].to_pylist()
    rows = [i for i, label in enumerate(labels) if label in classes]
    classifier = metrics.PixelClassifier(_real(evaluation, train, rows), [labels[i] for i in rows])
    truth = [evaluation.label(i) for i in labelled]
    named = classifier(_real(evaluation, evaluation.images, labelled))
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
    suffix, features = evaluation.suffix(objective), _features(evaluation, drawn)
    named, truth = classifier(features), [evaluation.label(i) for i in asked]
    right = [a == b for a, b in zip(named, truth, strict=True)]
    evaluation.add(f"image_class_agreement{suffix}", evaluation.ids(asked), right, label_weights(truth))
    # As many drawn as real, and of the same captions: more would cover more by number alone, fewer less.
    count = len(set(asked))
    real = _real(evaluation, evaluation.images, asked[:count])
    if len(np.unique(real, axis=0)) > _NEIGHBOURS:
        found = metrics.covered(real, features[:count], _NEIGHBOURS)
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
        _real(evaluation, evaluation.images, chosen), _real(evaluation, train, others.tolist())
    )
    return chosen


def show_videos(evaluation: Evaluation) -> None:
    """Videos from held-out captions, as strips of frames, by each objective."""
    clips, config = evaluation.videos, evaluation.config
    captions = clips.table["caption"].to_pylist()
    order = [i for i in clips.spread(config.seed).tolist() if captions[i]]
    shown = list({captions[i]: i for i in reversed(order)}.values())[::-1][:6]
    for objective in evaluation.objectives if shown else ():
        strips: dict[int, np.ndarray] = {}
        for shape, places in evaluation.by_shape(clips, shown).items():
            videos = evaluation.loom.text_to_video(
                [captions[shown[place]] for place in places],
                config.visual(objective=objective, size=shape),
                seeds=[config.seed + place for place in places],
            )
            strips |= {place: report.filmstrip(video) for place, video in zip(places, videos, strict=True)}
            evaluation.cards.setdefault("drawn_videos", []).extend(
                {
                    "mp4": encode_mp4(_even(video), _FPS),
                    "lines": [captions[shown[place]], evaluation.suffix(objective)[1:]],
                }
                for place, video in zip(places, videos, strict=True)
            )
        evaluation.pictures[f"drawn_videos{evaluation.suffix(objective)}"] = report.grid(
            [strips[place] for place in range(len(shown))], 1, [captions[i] for i in shown]
        )


def _even(video: np.ndarray) -> np.ndarray:
    """The video, uint8 (T, H, W, 3), enlarged fourfold without smoothing, so that H.264 does not blur its pixels."""
    return np.ascontiguousarray(video.repeat(4, axis=1).repeat(4, axis=2))
