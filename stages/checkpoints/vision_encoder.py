"""A frozen vision encoder that a config names: the URI of a folder as `transformers` saves one.

In: the URI, and the field of the stage's config that holds it. Out: the encoder's shape, or the encoder itself.
Errors: InputError naming the folder and the field.
"""

from __future__ import annotations

import json
from typing import Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.vit_config import ViTConfig, vit_config
from omniloom.stages.checkpoints.language_model import local_folder

PREPROCESSOR = "preprocessor_config.json"


def encoder_config(uri: str, field: str) -> ViTConfig:
    """The encoder's shape, from its config alone."""
    where, preprocessor = storage.join(uri, "config.json"), storage.join(uri, PREPROCESSOR)
    try:
        given = _read(preprocessor) if storage.exists(preprocessor) else None
        return vit_config(_read(where), where, given, preprocessor)
    except Exception as error:  # storage that cannot be reached raises classes of its own
        raise _no_encoder(error, uri, field) from None


def load_encoder(uri: str, field: str):
    """The encoder, a `models.tokenizer.vit.ViT` in eval mode on the CPU."""
    from omniloom.models.tokenizer.vit import load_vit

    try:
        return load_vit(local_folder(uri))
    except Exception as error:  # as above
        raise _no_encoder(error, uri, field) from None


def _read(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: cannot be read: {error}") from error


def _no_encoder(error: Exception, uri: str, field: str) -> InputError:
    return InputError(f"no vision encoder: {error}", field=field, file=uri)
