"""Measures in the features of the networks that the config names. In: an `Evaluation`, which gets the figures; where no
network is given there are none. What each figure means stands in `stages.evaluate.measures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from omniloom.stages.data.clips import ClipStore
from omniloom.stages.evaluate import metrics
from omniloom.stages.evaluate.features import distances
from omniloom.stages.evaluate.features.distances import Distance
from omniloom.stages.evaluate.features.networks import Network, real_features
from omniloom.stages.evaluate.figure import LEAST_PICTURES

if TYPE_CHECKING:
    from omniloom.stages.evaluate.evaluation import Evaluation

FRECHET = {"inception": "fid", "dinov2": "fd_dinov2"}
_KERNEL = {"clip": "cmmd", "scorer": "scorer_mmd"}
_SCALE = 100.0


def of_drawn(evaluation: Evaluation, asked: Sequence[int], drawn: Sequence[np.ndarray], suffix: str) -> None:
    """Pictures drawn for the captions of the held-out ones `asked`, against these."""
    if (networks := evaluation.networks) is None:
        return
    ids = evaluation.ids(asked)
    for net in filter(None, (networks.inception, networks.dinov2, networks.clip, networks.scorer)):
        real, made = of_real(evaluation, net, evaluation.images, asked), net(drawn)
        found, spreads = _between(evaluation, net, real, made)
        for name, distance in found.items():
            evaluation.add(f"{name}{suffix}", ids, items(distance))
        evaluation.metrics |= {f"{name}{suffix}": spread for name, spread in spreads.items()}
        if net.name in FRECHET:
            _manifolds(evaluation, ids, net, real, made, suffix)
    if networks.scored and networks.texts:
        texts = distances.unit(networks.texts([evaluation.caption(i) for i in asked]))
        evaluation.add(f"clip_score{suffix}", ids, _scores(texts, networks.scored(drawn)))
        real = of_real(evaluation, networks.scored, evaluation.images, asked)
        evaluation.metrics["clip_score_real"] = float(_scores(texts, real).mean())
    if networks.scorer and networks.scorer_texts:
        _by_scorer(evaluation, networks.scorer, networks.scorer_texts, asked, drawn, suffix)


def _by_scorer(
    evaluation: Evaluation,
    net: Network,
    texts_of: Callable[[Sequence[str]], np.ndarray],
    asked: Sequence[int],
    drawn: Sequence[np.ndarray],
    suffix: str,
) -> None:
    """`scorer_score` of the drawn pictures, beside that of the held-out ones and of these with others' captions."""
    captions = [evaluation.caption(i) for i in asked]
    texts, real = texts_of(captions), of_real(evaluation, net, evaluation.images, asked)
    evaluation.add(f"scorer_score{suffix}", evaluation.ids(asked), _SCALE * (texts * net(drawn)).sum(1))
    evaluation.metrics["scorer_score_real"] = float(_SCALE * (texts * real).sum(1).mean())
    cosines, own = real @ texts.T, np.array(captions)
    evaluation.metrics["scorer_score_shuffled"] = float(_SCALE * cosines[own[:, None] != own[None]].mean())


def retrieved(evaluation: Evaluation, captions: Sequence[str], chosen: Sequence[int], asked: np.ndarray) -> None:
    """`scorer_recall_at_1` of the chosen held-out pictures, each among the captions asked of it, its own first: int
    (pictures, captions) numbers of `captions`."""
    networks = evaluation.networks
    if not (networks and networks.scorer and networks.scorer_texts):
        return
    texts = networks.scorer_texts(captions)
    real = of_real(evaluation, networks.scorer, evaluation.images, chosen)
    ranks = [metrics.rank(texts[held] @ row) for row, held in zip(real, asked, strict=True)]
    evaluation.add("scorer_recall_at_1", evaluation.ids(chosen), np.array(ranks) <= 1)


def floors(evaluation: Evaluation, held_out: Sequence[int], train: Sequence[int]) -> None:
    """The distances of as many train pictures from the held-out ones."""
    if (networks := evaluation.networks) is None:
        return
    for net in filter(None, (networks.inception, networks.dinov2, networks.clip, networks.scorer)):
        sides = (
            of_real(evaluation, net, evaluation.images, held_out),
            of_real(evaluation, net, evaluation.train_images, train),
        )
        for name, distance in _between(evaluation, net, *sides)[0].items():
            evaluation.metrics[f"{name}_train"] = distance.value


def of_reconstructed(evaluation: Evaluation, indices: Sequence[int], made: np.ndarray) -> None:
    """`rfid` of the features of reconstructed pictures, (N, D), of the held-out ones by their indices."""
    net = evaluation.networks and evaluation.networks.inception
    if net and len(indices) >= LEAST_PICTURES:
        real = of_real(evaluation, net, evaluation.images, indices)
        evaluation.add("rfid", evaluation.ids(indices), items(frechet(real, made)))


def of_videos(evaluation: Evaluation, asked: Sequence[int], drawn: Sequence[np.ndarray], suffix: str) -> None:
    """`fvd` of videos drawn for the captions of the held-out ones `asked`."""
    net = evaluation.networks and evaluation.networks.i3d
    if net and len(asked) >= LEAST_PICTURES:
        real = of_real(evaluation, net, evaluation.videos, asked)
        ids = [evaluation.videos.record(i)["id"] for i in asked]
        evaluation.add(f"fvd{suffix}", ids, items(frechet(real, net(drawn))))


def of_real(evaluation: Evaluation, net: Network, clips: ClipStore, indices: Sequence[int]) -> np.ndarray:
    """Features of real clips, each computed once."""
    facts = evaluation.facts
    place = (
        evaluation.inputs["records"].digest,
        *(facts[name] for name in ("image_size", "video_size", "frames")),
        evaluation.aspects,
        net.name == "i3d",
    )
    known = evaluation.seen.setdefault((net.digest, id(clips)), {})
    return real_features(net, clips, list(indices), place, known)


def _between(
    evaluation: Evaluation, net: Network, real: np.ndarray, made: np.ndarray
) -> tuple[dict[str, Distance], dict[str, float]]:
    """The distances that are measured in a network's features, and the deviations of such as are means, by name."""
    if net.name in _KERNEL:
        return {_KERNEL[net.name]: distances.cmmd(real, made)}, {}
    found, spreads = {FRECHET[net.name]: frechet(real, made)}, {}
    if net.name == "inception" and (features := evaluation.config.features):
        rng = np.random.default_rng((evaluation.config.seed, 31))
        found["kid"], each = distances.kid(real, made, features.kid_subsets, features.kid_subset_size, rng)
        spreads = {"kid_std": float(each.std())} if len(each) > 1 else {}
    return found, spreads


def frechet_in_networks(
    evaluation: Evaluation, asked: Sequence[int], drawn: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """FID and FD-DINOv2 of pictures drawn for the captions of the held-out ones `asked`, as far as their networks are
    given, as the values of items."""
    networks = evaluation.networks
    return {
        FRECHET[net.name]: items(frechet(of_real(evaluation, net, evaluation.images, asked), net(drawn)))
        for net in (filter(None, (networks.inception, networks.dinov2)) if networks else ())
    }


def frechet(real: np.ndarray, made: np.ndarray) -> Distance:
    return Distance(*metrics.frechet_parts(real, made))


def items(found: Distance) -> np.ndarray:
    """A distance as the values of pairs of a real and a drawn row, whose mean it is."""
    return found.value + found.of_real + found.of_drawn


def _manifolds(
    evaluation: Evaluation, ids: Sequence[str], net: Network, real: np.ndarray, made: np.ndarray, suffix: str
) -> None:
    evaluation.add(f"precision_{net.name}{suffix}", ids, distances.precision(real, made))
    evaluation.add(f"recall_{net.name}{suffix}", ids, distances.precision(made, real))
    evaluation.add(f"density_{net.name}{suffix}", ids, distances.density(real, made))
    if len(np.unique(real, axis=0)) > distances.DENSITY_NEIGHBOURS:
        found = metrics.covered(real, made, distances.DENSITY_NEIGHBOURS)
        evaluation.add(f"coverage_{net.name}{suffix}", ids, found)


def _scores(texts: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """100 max(cos, 0) of each picture and its text (Hessel et al., arXiv 2104.08718, by torchmetrics' scale)."""
    return _SCALE * np.maximum((texts * distances.unit(pictures)).sum(1), 0)
