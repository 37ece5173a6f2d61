"""What `evaluate` measures of drawing: pictures from held-out captions, by each objective. In: an `Evaluation`, which
gets the figures and pictures.

image_class_agreement   share of the pictures that a classifier of real ones calls what was asked for
image_coverage          how much of the real pictures' spread the drawn ones have
frechet_pixelsN         Fréchet distance between drawn and held-out pictures, of as many captions as pictures. Its
                        features are the pixels of the picture shrunken to NxN, so it compares with nothing but itself;
                        frechet_pixelsN_train, the distance of as many train pictures, is what a good model comes near
"""
from __future__ import annotations

import numpy as np

from stages import metrics, report
from stages.evaluation import Evaluation

LEAST_PICTURES = 100  # for a Fréchet distance: of fewer, the means and covariances say little


def draw(evaluation: Evaluation) -> None:
    config, records = evaluation.config, evaluation.records
    if not evaluation.captioned or not config.drawings:
        return
    labelled = [i for i in evaluation.captioned if records[i]["label"] in evaluation.classes]
    named = [labelled[i % len(labelled)] for i in range(config.drawings)] if labelled else []
    classifier = _classifier(evaluation, labelled) if labelled else None
    spread = _spread(evaluation)
    for objective in evaluation.objectives:
        for source, part in evaluation.by_source(evaluation.captioned).items():
            _draw_grid(evaluation, _captions(evaluation, part), source, objective)
        drawn = _drawn(evaluation, _captions(evaluation, named), objective)
        if classifier:
            _judge(evaluation, classifier, labelled, named, drawn, objective)
        if spread:
            same = named[:len(spread)] == spread
            others = drawn[:len(spread)] if same else _drawn(evaluation, _captions(evaluation, spread), objective)
            evaluation.metrics[_distance_name(evaluation, evaluation.suffix(objective))] = metrics.frechet(
                _features(evaluation, [evaluation.images[i][0] for i in spread]), _features(evaluation, others))


def _features(evaluation: Evaluation, images) -> np.ndarray:
    return metrics.shrink(list(images), evaluation.config.class_pixels)


def _captions(evaluation: Evaluation, indices: list[int]) -> list[str]:
    return [evaluation.records[i]["caption"] for i in indices]


def _drawn(evaluation: Evaluation, captions: list[str], objective: str) -> np.ndarray:
    config = evaluation.config
    return evaluation.loom.text_to_image(captions, num_steps=config.num_steps, objective=objective,
                                         guidance_scale=config.guidance_scale, seeds=config.seed)


def _draw_grid(evaluation: Evaluation, captions: list[str], source: str, objective: str) -> None:
    """One picture of each of 32 captions; of fewer, several of each."""
    shown = list(dict.fromkeys(captions))[:32]
    shown = (shown * (32 // len(shown) + 1))[:32]
    evaluation.pictures[f"drawn_images{source}{evaluation.suffix(objective)}"] = report.grid(
        list(_drawn(evaluation, shown, objective)), 8, shown)


def _classifier(evaluation: Evaluation, labelled: list[int]) -> metrics.PixelClassifier:
    """Trained on the train split; how good it is on real held-out pictures is a figure too."""
    train = evaluation.train_images
    rows = [i for i, label in enumerate(train.table["label"].to_pylist()) if label in evaluation.classes]
    classifier = metrics.PixelClassifier(_features(evaluation, [train[i][0] for i in rows]),
                                         [train.record(i)["label"] for i in rows])
    named = classifier(_features(evaluation, [evaluation.images[i][0] for i in labelled]))
    evaluation.metrics["classes"] = len(evaluation.classes)
    evaluation.metrics["classifier_accuracy"] = float(
        np.mean([name == evaluation.records[i]["label"] for name, i in zip(named, labelled, strict=True)]))
    return classifier


def _judge(evaluation: Evaluation, classifier: metrics.PixelClassifier, labelled: list[int], asked: list[int],
           drawn: np.ndarray, objective: str) -> None:
    suffix, features = evaluation.suffix(objective), _features(evaluation, drawn)
    named = classifier(features)
    evaluation.metrics[f"image_class_agreement{suffix}"] = float(
        np.mean([name == evaluation.records[i]["label"] for name, i in zip(named, asked, strict=True)]))
    # As many drawn as real: more would cover more by number alone, fewer less.
    count = min(len(labelled), len(features))
    if count > 5:
        real = _features(evaluation, [evaluation.images[i][0] for i in labelled[:count]])
        evaluation.metrics[f"image_coverage{suffix}"] = metrics.coverage(real, features[:count])
    for number, (i, label) in enumerate(zip(asked, named, strict=True)):
        record = evaluation.records[i]
        evaluation.samples.append({"task": "text_to_image", "objective": objective, "prompt": record["caption"],
                                   "label": record["label"], "named": label, "seed": evaluation.config.seed + number})


def _distance_name(evaluation: Evaluation, suffix: str) -> str:
    return f"frechet_pixels{evaluation.config.class_pixels}{suffix}"


def _spread(evaluation: Evaluation) -> list[int]:
    """The held-out pictures whose captions are drawn for the Fréchet distance, all or as many as `drawings` drawn by
    the seed; none where there are too few. The distance of as many train pictures is measured on the way."""
    train = evaluation.train_images
    count = min(evaluation.config.drawings, len(evaluation.captioned), len(train))
    if count < LEAST_PICTURES:
        return []
    rng = np.random.default_rng((evaluation.config.seed, 7))
    chosen = sorted(rng.choice(evaluation.captioned, count, replace=False).tolist())
    real = _features(evaluation, [evaluation.images[i][0] for i in chosen])
    others = _features(evaluation, [train[int(i)][0] for i in rng.choice(len(train), count, replace=False)])
    evaluation.metrics["frechet_pictures"] = count
    evaluation.metrics[_distance_name(evaluation, "_train")] = metrics.frechet(real, others)
    return chosen


def show_videos(evaluation: Evaluation) -> None:
    """Videos from held-out captions, as strips of frames, by each objective."""
    captions = [c for i in range(len(evaluation.videos)) if (c := evaluation.videos.record(i)["caption"])]
    captions = list(dict.fromkeys(captions))[:6]
    if not captions:
        return
    config, size = evaluation.config, evaluation.facts["video_size"]
    for objective in evaluation.objectives:
        videos = evaluation.loom.text_to_video(captions, size=(size, size), num_steps=config.num_steps,
                                               guidance_scale=config.guidance_scale, seeds=config.seed,
                                               objective=objective)
        evaluation.pictures[f"drawn_videos{evaluation.suffix(objective)}"] = report.grid(
            [report.filmstrip(video) for video in videos], 1, captions)
