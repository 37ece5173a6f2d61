"""A step and a validation of a TiTok's warm-up (arXiv 2406.07550)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omniloom.stages.tokenizer.trainer import TokenizerTrainer


class WarmUpTrainer(TokenizerTrainer):
    """The generator is a `titok.ProxyObjective`, which has no critic. What is validated and shown are the pictures that
    the proxy's decoder makes of the codes that the TiTok predicts."""

    def _train_step(self, step: int, pixels: Tensor, share: float) -> tuple[dict[str, float | Tensor], float]:
        loss, logs = self.generator(pixels)
        self.generator.backward(loss * share)
        logs = {name: value * share for name, value in logs.items()}
        return self.named("image", logs | self.generator.step(step)), len(pixels)

    def loss_of(self, step: int, pixels: Tensor) -> Tensor:
        return self.generator.module(pixels, update_codebook=False)[0]

    def reconstruct(self, module: Any, pixels: Tensor) -> tuple[Tensor, Any]:
        return module.reconstruct(pixels)
