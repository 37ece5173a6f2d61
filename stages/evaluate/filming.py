"""Measures drawn videos: whether they show what was asked, move as the held-out ones of their captions do, and hold
together from frame to frame. In: an `Evaluation`, which gets the figures and strips of frames.

Frames are compared as they are shrunken (`class_pixels`). Motion is the mean absolute difference of a frame and the
next, consistency their correlation; a still video is consistent, and one of noise moves, so that neither says anything
without the other.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import numpy as np

from omniloom.stages.data.clips import ClipStore
from omniloom.stages.data.media.videos import encode_mp4
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import measuring
from omniloom.stages.evaluate.items import label_weights
from omniloom.stages.reporting import report

_SHOWN = 6
_FPS = 8.0  # of a video in the report


def film(evaluation: Evaluation) -> None:
    """Videos from held-out captions, by each objective."""
    clips, config = evaluation.videos, cast(EvaluateConfig, evaluation.config)
    captions = clips.table["caption"].to_pylist()
    order = [i for i in clips.spread(config.seed).tolist() if captions[i]]
    shown = list({captions[i]: i for i in reversed(order)}.values())[::-1][:_SHOWN]
    asked = list(dict.fromkeys([*shown, *order[: config.videos]]))
    for objective in evaluation.objectives if asked else ():
        drawn = _drawn(evaluation, asked, objective)
        strips = [report.filmstrip(drawn[asked.index(i)]) for i in shown]
        suffix = evaluation.suffix(objective)
        evaluation.pictures[f"drawn_videos{suffix}"] = report.grid(strips, 1, [captions[i] for i in shown])
        evaluation.cards.setdefault("drawn_videos", []).extend(
            {"mp4": encode_mp4(_enlarged(drawn[asked.index(i)]), _FPS), "lines": [captions[i], suffix[1:]]}
            for i in shown
        )
        if config.videos:
            _judge(evaluation, asked[: config.videos], drawn[: config.videos], suffix)


def _drawn(evaluation: Evaluation, asked: list[int], objective: str) -> list[np.ndarray]:
    """A video for the caption of each held-out one, in its shape; the seeds count up."""
    config, clips = evaluation.config, evaluation.videos
    captions = clips.table["caption"].to_pylist()
    drawn: dict[int, np.ndarray] = {}
    for shape, places in evaluation.by_shape(clips, asked).items():
        videos = evaluation.loom.text_to_video(
            [captions[asked[place]] for place in places],
            evaluation.visual(objective=objective, size=shape),
            seeds=[config.seed + place for place in places],
        )
        drawn |= dict(zip(places, videos, strict=True))
    return [drawn[place] for place in range(len(asked))]


def _judge(evaluation: Evaluation, asked: list[int], drawn: list[np.ndarray], suffix: str) -> None:
    clips, side = evaluation.videos, evaluation.config.class_pixels
    ids = [clips.record(i)["id"] for i in asked]
    made = [metrics.shrink(list(video), side) for video in drawn]
    if min(map(len, made)) > 1:
        real = [metrics.shrink(list(clips[i]), side) for i in asked]
        moved = [metrics.less_over_more(motion(a), motion(b)) for a, b in zip(made, real, strict=True)]
        evaluation.add(f"video_motion{suffix}", ids, moved)
        evaluation.add(f"video_consistency{suffix}", ids, [consistency(video) for video in made])
        measuring.of_videos(evaluation, asked, drawn, suffix)
        evaluation.metrics["video_consistency_real"] = float(np.mean([consistency(video) for video in real]))
    if (classifier := _classifier(evaluation)) is not None:
        labels = {i: clips.record(i)["label"] for i in asked}
        told = [(n, i) for n, i in enumerate(asked) if labels[i] in classifier.labels]
        if told:
            right = [np.mean([name == labels[i] for name in classifier(made[n])]) for n, i in told]
            weights = label_weights([labels[i] for _, i in told])
            evaluation.add(f"video_class_agreement{suffix}", [ids[n] for n, _ in told], right, weights)


def _classifier(evaluation: Evaluation) -> metrics.PixelClassifier | None:
    """Of single frames, trained on those of train videos; None where there are not two labels with `class_examples` of
    them."""
    train, config = evaluation.train_videos, evaluation.config
    labels = train.table["label"].to_pylist()
    counts = Counter(label for label in labels if label)
    classes = {label for label, count in counts.items() if count >= config.class_examples}
    if len(classes) < 2:
        return None
    rows = [i for i in train.spread(config.seed).tolist() if labels[i] in classes]
    frames, named = _frames(train, rows, labels, config.class_pixels)
    return metrics.PixelClassifier(frames, named)


def _frames(clips: ClipStore, rows: list[int], labels: list[str], side: int) -> tuple[np.ndarray, list[str]]:
    looks = [metrics.shrink(list(clips[i]), side) for i in rows]
    return np.concatenate(looks), [labels[i] for i, frames in zip(rows, looks, strict=True) for _ in frames]


def motion(frames: np.ndarray) -> float:
    """Mean absolute difference of one frame and the next; frames (T, D)."""
    return float(abs(np.diff(frames, axis=0)).mean())


def consistency(frames: np.ndarray) -> float:
    """Mean correlation of one frame and the next, (T, D). Two frames of one grey are as consistent as can be."""
    centred = frames - frames.mean(axis=1, keepdims=True)
    sizes = np.sqrt((centred**2).sum(axis=1))
    together = (centred[:-1] * centred[1:]).sum(axis=1)
    size = sizes[:-1] * sizes[1:]
    both_plain = (sizes[:-1] == 0) & (sizes[1:] == 0)
    return float(np.where(both_plain, 1.0, together / np.where(size > 0, size, 1.0)).mean())


def _enlarged(video: np.ndarray) -> np.ndarray:
    """The video, uint8 (T, H, W, 3), enlarged fourfold without smoothing, so that H.264 does not blur its pixels."""
    return np.ascontiguousarray(video.repeat(4, axis=1).repeat(4, axis=2))
