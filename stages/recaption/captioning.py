"""Captions that a trained model writes for pictures. In: a model's folder and how to draw. Out: texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniloom.infra.errors import InputError
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.stages.inference import marks
from omniloom.stages.inference.sampling import load, resolve
from omniloom.stages.recaption.config import Config


class Captioner:
    """The model that the config names. `made_by` says which it is, as its marks do."""

    def __init__(self, config: Config, device: str):
        if config.model is None:
            raise ValueError("model: there is none")
        self.config = config
        self.loom = load(config.model, device)
        self.made_by = marks.identity(config.model)
        try:
            self.visual = resolve(self.loom, VisualSampling())
        except InputError as error:
            raise InputError(error.message, field="model", file=config.model) from None
        self.text = TextSampling(max_new_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p)

    def write(self, pictures: Sequence[np.ndarray], seeds: Sequence[int]) -> list[list[str]]:
        """For each picture, uint8 (H, W, 3), what is written of it by as many seeds from its own on, each once."""
        found: list[list[str]] = [[] for _ in pictures]
        for number in range(self.config.captions):
            texts = self.loom.image_to_text(
                pictures, text=self.text, visual=self.visual, seeds=[seed + number for seed in seeds]
            )
            for own, text in zip(found, texts, strict=True):
                caption = " ".join(text.split())
                if caption and caption not in own:
                    own.append(caption)
        return found
