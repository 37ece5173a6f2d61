"""Scores of captions by a scorer that has not learnt them. In: records, a scorer. Out: per shard embeddings, and what
turns them into scores.

A score is the product of the embeddings of a picture and a caption, less their means over the corpus, in units of its
deviation over pictures and other pictures' captions: about 0 of a caption that is not the picture's, above it of one
that is. Taking the means off makes up for captions and pictures that are near to everything. A record of a fold is seen
by that fold's encoder alone (`stages.checkpoints.scorer`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omniloom.infra import storage
from omniloom.stages.checkpoints.scorer import Scorer, fold_of
from omniloom.stages.data import records
from omniloom.stages.data.clips import decode_record

_BATCH = 64  # records at once
_COLUMNS = ("id", "kind", "media", "frames", "captions", "source", "path")
REFERENCES = 20_000  # captions of a fold that others' scores are drawn from, at most
_EACH = 16  # others' captions a picture is held against


@dataclass
class Embedded:
    """Of a shard's train images: their `rows` in it (n,), `folds` (n,), `pictures` (n, dim); and of their captions, in
    order, the `words`, the place of the picture among these, `of` (m,), and `texts` (m, dim)."""

    rows: np.ndarray
    folds: np.ndarray
    pictures: np.ndarray
    of: np.ndarray
    texts: np.ndarray
    words: list[str]

    def save(self, uri: str) -> None:
        sink, words = io.BytesIO(), np.frombuffer(json.dumps(self.words).encode(), np.uint8)
        np.savez(sink, **{**vars(self), "words": words})
        storage.write_bytes(uri, sink.getvalue())

    @classmethod
    def load(cls, uri: str) -> Embedded:
        with np.load(io.BytesIO(storage.read_bytes(uri))) as held:
            found = {name: held[name] for name in held.files}
        return cls(**{**found, "words": json.loads(found["words"].tobytes())})


def train_images(shard: str) -> Iterator[list[tuple[int, dict]]]:
    """(row, record) of a shard's images to train on, some at a time."""
    part: list[tuple[int, dict]] = []
    for number, row in enumerate(records.iterate_shard(shard, columns=("split", *_COLUMNS), batch_size=_BATCH)):
        if row["kind"] == "image" and row["split"] == "train":
            part.append((number, row))
        if len(part) == _BATCH:
            yield part
            part = []
    if part:
        yield part


def embed(shard: str, scorer: Scorer) -> Embedded:
    found: list[Embedded] = []
    for part in train_images(shard):
        folds = np.array([fold_of(row["id"], scorer.folds) for _, row in part])
        clips = [decode_record(row, (scorer.side, scorer.side), 1)[0] for _, row in part]
        captions = [(place, caption) for place, (_, row) in enumerate(part) for caption in row["captions"] or ()]
        of = np.array([place for place, _ in captions], np.int64)
        texts = of_folds(scorer.texts([caption for _, caption in captions]), folds[of])
        pictures = of_folds(scorer.pictures(clips), folds)
        before = sum(len(one.rows) for one in found)
        words = [caption for _, caption in captions]
        found.append(Embedded(np.array([number for number, _ in part]), folds, pictures, of + before, texts, words))
    nothing, rows = np.zeros(0, np.int64), np.zeros((0, scorer.encoders[0].dim), np.float32)
    found = [Embedded(nothing, nothing, rows, nothing, rows, []), *found]
    joined = {name: np.concatenate([getattr(one, name) for one in found]) for name in vars(found[0]) if name != "words"}
    return Embedded(**joined, words=[word for one in found for word in one.words])


def of_folds(embeddings: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(N, folds, dim) -> (N, dim): each by the encoder of its own fold."""
    return embeddings[np.arange(len(embeddings)), folds]


@dataclass(frozen=True)
class Scale:
    """What makes a score of products, by fold: the means of `pictures` and `texts` (folds, dim), and the `deviation`
    (folds,)."""

    pictures: np.ndarray
    texts: np.ndarray
    deviation: np.ndarray

    def scores(self, pictures: np.ndarray, texts: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Of pairs, (N, dim) both, (N,)."""
        products = ((pictures - self.pictures[folds]) * (texts - self.texts[folds])).sum(-1)
        return products / self.deviation[folds]


def scale_of(shards: Sequence[Embedded], folds: int, seed: int) -> tuple[Scale, np.ndarray]:
    """The scale, and the scores of captioned pictures with others' captions, (M,): of each some that are not its
    own."""
    dim = shards[0].texts.shape[1]
    means = np.zeros((2, folds, dim))
    found: list[np.ndarray] = []
    deviation, rng = np.ones(folds), np.random.default_rng((seed, 51))
    for fold in range(folds):
        pictures, texts, words, own = _of_fold(shards, fold)
        if len(pictures) < 2:
            continue
        means[:, fold] = pictures.mean(0), texts.mean(0)
        chosen = rng.permutation(len(texts))[:REFERENCES]
        others = [[i for i in rng.choice(chosen, _EACH) if words[i] not in said] for said in own]
        centred = pictures - means[0, fold]
        products = np.concatenate([(texts[o] - means[1, fold]) @ row for o, row in zip(others, centred, strict=True)])
        deviation[fold] = max(float(products.std()), 1e-12) if len(products) else 1.0
        found.append(products / deviation[fold])
    return Scale(means[0], means[1], deviation), np.concatenate([np.zeros(0), *found])


def _of_fold(shards: Sequence[Embedded], fold: int) -> tuple[np.ndarray, np.ndarray, list[str], list[set[str]]]:
    """Of a fold's captioned pictures the embeddings (n, dim); of their captions these, (m, dim), and the words; and
    what is said of each picture."""
    pictures: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    words: list[str] = []
    own: list[set[str]] = []
    for shard in shards:
        held: dict[int, set[str]] = {}
        for place, text, word in zip(shard.of.tolist(), shard.texts, shard.words, strict=True):
            if shard.folds[place] == fold:
                held.setdefault(place, set()).add(word)
                texts.append(text)
                words.append(word)
        pictures += [shard.pictures[place] for place in held]
        own += held.values()
    dim = shards[0].texts.shape[1]
    return np.array(pictures).reshape(-1, dim), np.array(texts).reshape(-1, dim), words, own
