"""Scores of captions by a scorer that has not learnt them. In: records, a scorer. Out: per shard embeddings, and what
turns them into scores.

A score is what the picture says for the caption: log p(caption | picture) - log p(caption), by the softmax that a
scorer is trained to, over captions of the corpus drawn at random: scale x . z less the log of the mean of
exp(scale x . z_j). It is in nats, and 0 of a caption that the picture makes neither likelier nor less likely. The
cosine alone would not do: some pictures are near to every caption. A record of a fold is seen by that fold's encoder
alone (`stages.checkpoints.scorer`).
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
_AT_ONCE = 4096  # pictures that are held against all references
_COLUMNS = ("id", "kind", "media", "frames", "captions", "source", "path")
REFERENCES = 1000  # captions of a fold that each of its pictures is held against, at most
_EACH = 16  # of them those whose scores with it are kept


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

    def said(self) -> dict[int, set[str]]:
        """What is said of each captioned picture, by its place."""
        found: dict[int, set[str]] = {}
        for place, word in zip(self.of.tolist(), self.words, strict=True):
            found.setdefault(place, set()).add(word)
        return found

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
class Judge:
    """What makes a score of embeddings, by fold: the `references`, captions drawn from it (r, dim), with their `words`,
    and the `scales` of the products."""

    references: Sequence[np.ndarray]
    words: Sequence[np.ndarray]
    scales: Sequence[float]

    def scores(self, pictures: np.ndarray, texts: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Of pairs, (N, dim) both, (N,)."""
        found = np.zeros(len(pictures))
        for fold, (references, scale) in enumerate(zip(self.references, self.scales, strict=True)):
            mine = np.flatnonzero(folds == fold)
            for at in range(0, len(mine), _AT_ONCE):
                part = mine[at : at + _AT_ONCE]
                products = scale * (pictures[part] * texts[part]).sum(1)
                found[part] = products - _log_mean_exp(scale * pictures[part] @ references.T)
        return found

    def of_others(self, shards: Sequence[Embedded], rng: np.random.Generator) -> np.ndarray:
        """Scores of captioned pictures with some of the references that are not said of them, (M,)."""
        found = [np.zeros(0)]
        for shard in shards:
            said = shard.said()
            folds = shard.folds
            chosen = [(p, int(i)) for p in said for i in rng.integers(0, len(self.words[folds[p]]), _EACH)]
            chosen = [(p, i) for p, i in chosen if self.words[folds[p]][i] not in said[p]]
            if chosen:
                places = np.array([p for p, _ in chosen])
                texts = np.stack([self.references[folds[p]][i] for p, i in chosen])
                found.append(self.scores(shard.pictures[places], texts, folds[places]))
        return np.concatenate(found)


def judge_of(shards: Sequence[Embedded], scales: Sequence[float], rng: np.random.Generator) -> Judge:
    """With references drawn from the captions of each fold."""
    references, words = [], []
    for fold in range(len(scales)):
        held = [shard.folds[shard.of] == fold for shard in shards]
        texts = np.concatenate([shard.texts[mine] for shard, mine in zip(shards, held, strict=True)])
        said = [word for shard, mine in zip(shards, held, strict=True) for word, is_ in zip(shard.words, mine) if is_]
        chosen = rng.permutation(len(texts))[:REFERENCES]
        references.append(texts[chosen])
        words.append(np.array(said, dtype=object)[chosen])
    return Judge(references, words, scales)


def _log_mean_exp(rows: np.ndarray) -> np.ndarray:
    """(N, r) -> (N,); 0 without any."""
    if not rows.shape[1]:
        return np.zeros(len(rows))
    most = rows.max(1)
    return most + np.log(np.exp(rows - most[:, None]).mean(1))
