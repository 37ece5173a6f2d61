"""Small untrained models, and the artifacts around one that an evaluation reads: what tests share that need a model and
do not ask what it has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpora
import numpy as np
import torch

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.model import UnifiedModel
from omniloom.stages.checkpoints.tokenizer import load_tokenizer


def scattered(objectives: tuple[str, ...], num_frames: int = 1, **more: Any) -> OmniLoom:
    """A model of 16x16 pictures whose weights are so large that what it draws depends on the prompt. `more`: of
    OmniLoom."""
    torch.manual_seed(0)
    text = TextTokenizer.train(["a handwritten seven", "a handwritten two moving left"] * 20, 280)
    sizes: dict[str, Any] = {"latent_dim": 4, "codebook_size": 32} if objectives else {}
    if "next_latent" in objectives:
        sizes["density"] = {"components": 3}
    config = BundleConfig(
        unified=UnifiedConfig(vocab_size=text.vocab_size, **sizes, width=48, layers=2, heads=4),
        diffusion=DiffusionConfig(),
        tokenizer=corpora.small_tokenizer("tw"),
        latent_mean=(0.0,) * 4,
        latent_std=(1.0,) * 4,
        image_size=(16, 16),
        num_frames=num_frames,
        objectives=objectives,
    )
    tokenizer = OmniTokenizer(config.tokenizer)
    tokenizer.train().encode(torch.rand(16, 3, 16, 16) - 0.5, update_codebook=True)
    model = UnifiedModel(config.unified)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return OmniLoom(config, model, tokenizer, text, **more)


def of_squares(
    folder: Path, records: Artifact, videos: int = 1, noise: float = 0.0, codebook: int | None = None, **bundle: Any
) -> dict[str, Artifact]:
    """Artifacts by role, below `folder`: the records of squares, a tokenizer of theirs, tokens, and a model of 24x24
    pictures. `noise` is added to its weights: untrained it predicts 0 everywhere. `bundle`: more of BundleConfig."""
    visual, text, rng = corpora.tokenizer(folder / "joint"), corpora.text_tokenizer(), np.random.default_rng(0)
    storage.write_bytes(str(folder / "joint" / "report" / "history.jsonl"), b"")
    rows = [corpora.token_rows(text, rng, images=2, videos=videos, texts=2, documents=0)]
    tokens = corpora.pretokenize(folder / "tokens", {"validation": rows}, text, visual_digest=visual.digest)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_dim": 4, "codebook_size": codebook, "time_dim": 16}
    model = UnifiedModel(
        UnifiedConfig(vocab_size=text.vocab_size, width=32, layers=1, heads=2, specials=text.specials, **sizes)
    )
    with torch.no_grad():
        for value in model.parameters() if noise else ():
            value.add_(noise * torch.randn_like(value))
    tokenizer = load_tokenizer(visual)
    config = BundleConfig(
        unified=model.config,
        diffusion=DiffusionConfig(),
        tokenizer=tokenizer.config,
        latent_mean=(0.1,) * 4,
        latent_std=(0.5,) * 4,
        image_size=(24, 24),
        **bundle,
    )
    OmniLoom(config, model, tokenizer, text).save(folder / "train" / "model")
    storage.write_bytes(str(folder / "train" / "report" / "history.jsonl"), b"")
    trained = corpora.seal(folder / "train", "train")
    trained.manifest.update(pipeline="squares", metrics={"parameters": 1}, times={"seconds": 1.0}, code=None)
    return {"records": records, "tokenizer": visual, "tokens": tokens, "model": trained}
