"""Looks at the folder of a CLIP or a SigLIP before anything starts: that it holds what the network reads.

In: the URI, and the field of the config that names it. Out: its shape; InputError naming the file, the field and the
key. Headers and configs are read, no tensor: nothing heavy is imported.
"""

from __future__ import annotations

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.features import layouts
from omniloom.models.features.clip_config import ClipConfig, clip_config
from omniloom.stages.checkpoints.outside import opened
from omniloom.stages.checkpoints.tensors import read_json, require_tensors

WORDS = "tokenizer.json"
WORDS_CONFIG = "tokenizer_config.json"


def check_clip_folder(uri: str, field: str) -> ClipConfig:
    config = read_clip_config(uri, field)
    require_tensors(uri, field, layouts.dual_tensors(config))
    if config.text:
        require_words(uri, field, config)
    return config


def read_clip_config(uri: str, field: str) -> ClipConfig:
    where = storage.join(uri, "config.json")
    values = read_json(where, field)
    try:
        return clip_config(values, where)
    except ValueError as error:
        raise InputError(f"no CLIP, and no SigLIP: {error}", field=field, file=uri) from None


def require_words(uri: str, field: str, config: ClipConfig) -> None:
    """The tokenizer of a folder whose model reads texts."""
    where = storage.join(uri, WORDS)
    with opened(where, field):
        pass
    try:
        added = {word["content"]: word["id"] for word in read_json(where, field).get("added_tokens", ())}
    except (AttributeError, KeyError, TypeError):
        raise InputError("is no tokenizer of the library tokenizers", field=field, file=where) from None
    if config.eos is not None and config.eos not in added.values():
        raise InputError(
            f"has no special token of the id {config.eos}, which ends a text by config.json", field=field, file=where
        )
