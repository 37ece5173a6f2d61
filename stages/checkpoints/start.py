"""What `train` starts from: a language model's folder as `transformers` saves one, or a trained model of ours. In: the
URI that `init_from` names. Out: configs, checks and a digest, whichever of the two it is.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.contents import read_contents
from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.config import config_from_llama, tower_of
from omniloom.models.unified.llama.families import Names, described
from omniloom.stages.checkpoints import language_model, own_model
from omniloom.stages.checkpoints.language_model import FIELD, FILES
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer


def start_config(
    uri: str, chosen: dict[str, Any], vocab_size: int, sizes: dict[str, int | None], specials: dict[str, int] | None
) -> UnifiedConfig:
    """The model to train, as of `language_model.start_config`; a model of ours keeps its own vocabulary."""
    if folder := own_model.model_folder(uri):
        return own_model.start_config(folder, chosen, sizes)
    return language_model.start_config(uri, chosen, vocab_size, {"latent_dim": None, **sizes}, specials)


def known_config(uri: str, model: UnifiedConfig | None = None) -> UnifiedConfig:
    """The config of what has weights there for `model`, the one to train: of a language model, one without pictures but
    for codes that it has, and for latents where the model has its tower of them."""
    if folder := own_model.model_folder(uri):
        return own_model.own_config(folder)
    where = storage.join(uri, "config.json")
    try:
        values = language_model.folder_values(uri)
        found = described(values, where)
        latents = model.latent_dim if model and tower_of(found.family, model) else None
        codes = found.codes.size if found.codes else None
        return config_from_llama(values, where, latent_dim=latents, codebook_size=codes)
    except (OSError, ValueError) as error:
        raise InputError(f"no checkpoint to start from: {error}", field=FIELD, file=uri) from None


def names_of(uri: str) -> Names:
    """How `transformers` calls the modules of a language model's folder."""
    where = storage.join(uri, "config.json")
    return described(language_model.folder_values(uri), where).family.names[-1]


def check_files(uri: str, text_tokenizer: str) -> None:
    """Check that it has weights, and the text tokenizer that the tokens are made with."""
    if folder := own_model.model_folder(uri):
        own_model.check_files(folder)
    else:
        require_folder_of_weights(uri, FIELD)
    try:
        digest = read_text_tokenizer(text_tokenizer).digest
    except Exception:  # pretokenize says so
        return
    check_text(uri, digest)


def check_text(uri: str, digest: str) -> None:
    """Check that the tokens, sealed with `digest`, are made by its text tokenizer."""
    if folder := own_model.model_folder(uri):
        own_model.check_text(folder, digest)
    else:
        language_model.check_text_tokenizer(uri, digest)


def check_pictures(uri: str, model: UnifiedConfig, tokenizer: Artifact | None) -> None:
    """Check that what `model`, the one to train, goes on with of its pictures is made by the same tokenizer, as far as
    the start tells."""
    if not (folder := own_model.model_folder(uri)):
        language_model.check_latents(uri, model)
    elif tokenizer:
        own_model.check_pictures(folder, model, tokenizer)


def latent_statistics(uri: str | None, model: UnifiedConfig) -> dict[str, list[float]]:
    """The facts about latents that hold for it in place of the tokens' own."""
    folder = own_model.model_folder(uri) if uri else None
    return own_model.latent_statistics(folder, model) if folder else {}


def weights_digest(uri: str) -> str:
    """sha256 over the names and contents of the files that are read of it."""
    found = read_contents(own_model.model_folder(uri) or uri, "folder", FILES)
    return hashlib.sha256(json.dumps([[file.path, file.identity] for file in found]).encode()).hexdigest()
