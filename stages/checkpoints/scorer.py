"""A scorer: dual encoders that judge how well pictures and captions go together. In: the artifact of a stage that makes
the role `scorer`. Out: embeddings, and cosines.

`scorer/N/` of the artifact is a folder as `transformers` saves a CLIP, with its tokenizer.json, and `scorer.json` says
how many there are. With several each was trained on the records outside its own fold (`fold_of`): what a scorer has
learnt by heart tells nothing, so a record of the train split is scored by the one encoder that has not seen it, and all
else by the mean of all (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.checkpoints.dual_encoder import DualEncoder, load_dual_encoder

FACTS = "scorer.json"
_BATCH = 64  # pictures at once


def fold_of(record_id: str, folds: int) -> int:
    """The fold, from 0, that a record is in, by digits of its id that nothing else goes by."""
    return int(record_id[32:48], 16) % folds


class Scorer:
    """`encoders` by fold; `digest` is that of the artifact they are from."""

    def __init__(self, encoders: Sequence[DualEncoder], digest: str):
        self.encoders, self.digest = list(encoders), digest

    @property
    def folds(self) -> int:
        return len(self.encoders)

    @property
    def scales(self) -> list[float]:
        """By fold, what cosines are multiplied by for the logits of the loss."""
        return [encoder.scale for encoder in self.encoders]

    @property
    def side(self) -> int:
        """Pixels a side of the largest square that one of them sees."""
        return max(encoder.side for encoder in self.encoders)

    def pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings of length 1 by each encoder, float32 (N, folds, dim), of pictures, uint8 (H, W, 3)."""
        parts = [pictures[at : at + _BATCH] for at in range(0, len(pictures), _BATCH)]
        return np.concatenate([np.stack([_unit(e.pictures(part)) for e in self.encoders], 1) for part in parts])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """The same of texts."""
        return np.stack([_unit(encoder.texts(texts)) for encoder in self.encoders], 1)

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings of all encoders as one, of length 1, float32 (N, folds * dim): products of such are the mean of
        the encoders' cosines."""
        return as_one(self.pictures(pictures))


def as_one(embeddings: np.ndarray) -> np.ndarray:
    """(N, folds, dim), each of length 1 -> (N, folds * dim), of length 1."""
    return embeddings.reshape(len(embeddings), -1) / np.sqrt(embeddings.shape[1])


def _unit(rows) -> np.ndarray:
    found = rows.float().cpu().numpy()
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def load_scorer(artifact: Artifact, device: str = "cpu") -> Scorer:
    folds = storage.load_json(artifact.file(FACTS))["folds"]
    folder = artifact.local()
    encoders = [load_dual_encoder(str(folder / "scorer" / str(fold)), "scorer", device) for fold in range(folds)]
    return Scorer(encoders, artifact.digest)
