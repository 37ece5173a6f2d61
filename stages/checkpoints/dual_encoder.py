"""A dual encoder on disk: pictures and texts in one space, from a folder as `transformers` saves a CLIP or a SigLIP,
with its `tokenizer.json`.

In: the URI of the folder, and the field of the stage's config that names it. Out: embeddings as the model's projections
give them. A picture is brought to the model's own side as the family's processor does it, by PIL's bicubic filter,
antialiased: CLIP's scales the shorter side to that of the model and cuts at the centre, SigLIP's squeezes the whole.
Errors: InputError naming the folder or its file, and the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omniloom.infra.errors import InputError
from omniloom.models.features.dual import Dual, load_dual
from omniloom.models.features.siglip import Siglip
from omniloom.models.hf.config_json import Document, read_json
from omniloom.models.scorer.config import MAX_SCALE
from omniloom.stages.checkpoints.clip_folder import WORDS, WORDS_CONFIG
from omniloom.stages.checkpoints.language_model import local_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 32  # texts at once


class DualEncoder:
    """`model` on a device, and `words`, its text tokenizer: None where it has no tower of texts. `logits`: of
    `logit_scale` and `logit_bias` what it was trained with, as far as that is known."""

    def __init__(self, model: Dual, words: Tokenizer | None, logits: Mapping[str, float] | None = None):
        self.model, self.words, self.logits = model, words, dict(logits or {})
        self.side, self.dim = model.config.image_size, model.config.dim
        if words:
            words.encode_special_tokens = True  # else a caption that says "<eos>" would end there
            words.no_padding()
            words.enable_truncation(model.config.length)
        self._mean, self._std = (torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))

    @property
    def scale(self) -> float:
        """What cosines are multiplied by for the logits; the greatest that there is where nobody knows."""
        return math.exp(self.logits["logit_scale"]) if "logit_scale" in self.logits else MAX_SCALE

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
        square = covering if self.model.crops else squeezed
        small = np.stack([square(picture, self.side) for picture in batch])
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
    """The model and its words, on the device; InputError where the folder holds neither a CLIP nor a SigLIP, or words
    that are not the model's."""
    try:
        folder = Path(local_folder(uri))
        model, logits = load_dual(folder)
    except Exception as error:  # storage that cannot be reached raises classes of its own
        raise InputError(f"no CLIP, and no SigLIP: {error}", field=field, file=uri) from None
    if not model.config.text:
        return DualEncoder(model.to(device), None, logits)
    from tokenizers import Tokenizer

    where = str(folder / WORDS)
    try:
        words = Tokenizer.from_file(where)
    except Exception as error:  # the reader's own class
        raise InputError(f"cannot be read: {error}", field=field, file=where) from None
    if isinstance(model, Siglip):
        _fill_with(model, _pad(folder, words, field), field, where)
    encoder = DualEncoder(model.to(device), words, logits)
    (ids,) = encoder.ids(["a picture"])
    end, size = model.config.eos, model.config.vocab_size
    if not ids or max(ids) >= size or (end is not None and ids[-1] != end):
        expected = f"such below {size}" + (f" that end in {end}" if end is not None else "")
        raise InputError(f"gives a text the ids {ids}; expected {expected}", field=field, file=where)
    return encoder


def _pad(folder: Path, words: Tokenizer, field: str) -> int | None:
    """The token that texts are filled up with, as the tokenizer has it: configs of SigLIP 2 do not say it."""
    where = folder / WORDS_CONFIG
    if not where.exists():
        return None
    try:
        said = Document(read_json(where), str(where)).values.get("pad_token")
    except ValueError as error:
        raise InputError(str(error), field=field, file=str(where)) from None
    return words.token_to_id(said["content"] if isinstance(said, dict) else said) if said else None


def _fill_with(model: Siglip, pad: int | None, field: str, where: str) -> None:
    """Texts are filled up with `pad`; None: as the model's config says."""
    pad = model.config.pad if pad is None else pad
    if pad >= model.config.vocab_size:
        raise InputError(f"fills texts with the id {pad}, beyond the model's vocabulary", field=field, file=where)
    model.config = replace(model.config, pad=pad)
    model.text_model.pad = pad


def covering(picture: np.ndarray, side: int) -> np.ndarray:
    """As CLIP's own processor: the shorter side scaled to `side`, and a square of it cut at the centre."""
    h, w = (side * edge // min(picture.shape[:2]) for edge in picture.shape[:2])
    top, left = (h - side) // 2, (w - side) // 2
    return resized(picture, (h, w))[top : top + side, left : left + side]


def squeezed(picture: np.ndarray, side: int) -> np.ndarray:
    """As SigLIP's own processor."""
    return resized(picture, (side, side))


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By PIL's bicubic filter, antialiased where it shrinks, to (height, width)."""
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))
