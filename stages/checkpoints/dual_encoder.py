"""A dual encoder on disk: pictures and texts in one space, from a folder as `transformers` saves a CLIP, with its
`tokenizer.json`.

In: the URI of the folder, and the field of the stage's config that names it. Out: embeddings as the model's projections
give them. A picture is brought to the model's own side as CLIP's processor does it: PIL's bicubic filter, antialiased,
the shorter side to that of the model, cut at the centre.
Errors: InputError naming the folder or its file, and the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omniloom.infra.errors import InputError
from omniloom.models.features.clip import MEAN, STD, Clip, load_clip
from omniloom.models.hf.weights import open_checkpoint
from omniloom.models.scorer.config import MAX_SCALE
from omniloom.stages.checkpoints.clip_folder import WORDS
from omniloom.stages.checkpoints.language_model import local_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 32  # texts at once


class DualEncoder:
    """`model` on a device, and `words`, its text tokenizer: None where it has no tower of texts. `scale` is what its
    cosines are multiplied by for the logits that it was trained by."""

    def __init__(self, model: Clip, words: Tokenizer | None, scale: float = MAX_SCALE):
        self.model, self.words, self.scale = model, words, scale
        self.side, self.dim = model.config.image_size, model.config.dim
        if words:
            words.encode_special_tokens = True  # else a caption that says "<eos>" would end there
            words.no_padding()
            words.enable_truncation(model.config.length)
        self._mean, self._std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], float (B, 3, H, W), as the model sees them."""
        return (pixels - self._mean.to(pixels.device)) / self._std.to(pixels.device)

    @torch.no_grad()
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, dim) of pixels in [0, 1] of the model's side."""
        return self.model.of_pictures(self.normalised(pixels.to(self.device)))

    def pictures(self, batch: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Embeddings (B, dim) of pictures, uint8 (H, W, 3) of any sizes."""
        small = np.stack([covering(picture, self.side) for picture in batch])
        return self.of_pixels(torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, each with its end; what is longer than the model reads is cut before it."""
        if self.words is None:
            raise ValueError("the model has no tower of texts")
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]  # lone surrogates
        return [encoding.ids for encoding in self.words.encode_batch(clean)]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, dim) of texts."""
        ids = self.ids(texts)
        parts = [self.model.of_texts(ids[at : at + BATCH]).float() for at in range(0, len(ids), BATCH)]
        return torch.cat([torch.empty(0, self.dim, device=self.device), *parts])


def load_dual_encoder(uri: str, field: str, device: str = "cpu") -> DualEncoder:
    """The model and its words, on the device; InputError where the folder holds no CLIP, or words that are not the
    model's."""
    try:
        folder = Path(local_folder(uri))
        model, scale = load_clip(folder).to(device), _scale(folder)
    except Exception as error:  # storage that cannot be reached raises classes of its own
        raise InputError(f"no CLIP: {error}", field=field, file=uri) from None
    if not model.config.text:
        return DualEncoder(model, None)
    from tokenizers import Tokenizer

    where = str(folder / WORDS)
    try:
        words = Tokenizer.from_file(where)
    except Exception as error:  # the reader's own class
        raise InputError(f"cannot be read: {error}", field=field, file=where) from None
    encoder = DualEncoder(model, words, scale)
    (ids,) = encoder.ids(["a picture"])
    if not ids or ids[-1] != model.config.eos or max(ids) >= model.config.vocab_size:
        message = f"gives a text the ids {ids}; expected such below {model.config.vocab_size} that end in "
        raise InputError(f"{message}{model.config.eos}", field=field, file=where)
    return encoder


def _scale(folder: Path) -> float:
    """Of a folder that has none, as one of a tower of pictures alone, the greatest that there is."""
    with open_checkpoint(folder) as checkpoint:
        return float(checkpoint.read("logit_scale", ()).exp()) if "logit_scale" in checkpoint else MAX_SCALE


def covering(picture: np.ndarray, side: int) -> np.ndarray:
    """As CLIP's own processor: the shorter side scaled to `side`, and a square of it cut at the centre."""
    h, w = (side * edge // min(picture.shape[:2]) for edge in picture.shape[:2])
    top, left = (h - side) // 2, (w - side) // 2
    return resized(picture, (h, w))[top : top + side, left : left + side]


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By PIL's bicubic filter, antialiased where it shrinks, to (height, width)."""
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))
