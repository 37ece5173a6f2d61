"""A Hugging Face repository, and the visual tokenizer as an autoencoder folder of `diffusers`' layout. In: a model.
Out: a folder; `models.hf.repository` says what is in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from omniloom.pipelines.exporting.models import Exported
from omniloom.stages.reporting.model_card import card

AUTOENCODER = "visual_tokenizer"  # the folder in the repository


def export(model: Exported, folder: Path) -> None:
    from omniloom.models.hf.repository import write_repository

    write_repository(model.parts, folder)
    if model.loom.tokenizer is not None:
        _autoencoder(model, folder / AUTOENCODER)
    told = card(model.title, dataclasses.asdict(model.loom.config), model.training, model.made_of, model.figures)
    (folder / "README.md").write_text(told, encoding="utf-8")


def _autoencoder(model: Exported, folder: Path) -> None:
    """config.json and diffusion_pytorch_model.safetensors, as `diffusers` lays an autoencoder out."""
    from safetensors.torch import save_file

    tokenizer, config = model.loom.visual_tokenizer, model.loom.config
    folder.mkdir()
    state = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert config.tokenizer
    own: dict[str, Any] = {
        "_class_name": "OmniLoomAutoencoder",
        "latent_channels": config.tokenizer.latent_dim,
        "latents_mean": list(config.latent_mean),
        "latents_std": list(config.latent_std),
        "sample_size": list(config.image_size or ()),
        "omniloom": dataclasses.asdict(config.tokenizer),
    }
    (folder / "config.json").write_text(json.dumps(own, indent=2), encoding="utf-8")
