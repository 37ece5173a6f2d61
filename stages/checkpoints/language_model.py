"""The checkpoint of a language model that `train` starts from. In: the URI of a folder as `transformers` saves one.
Out: the architecture that it has, whether the tokens are made by its tokenizer, and a local folder to load it from.

Errors: InputError naming the folder and the field of the stage's config.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.once import once
from omniloom.models.unified.config import SpecialIds, UnifiedConfig
from omniloom.models.unified.llama.config import architecture, config_from_llama, tower_of
from omniloom.models.unified.llama.families import described, read_values
from omniloom.models.unified.llama.tensors import LATENTS_IN
from omniloom.stages.checkpoints.outside import files_of_folder, opened
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer

FIELD = "init_from"
# Beside them a folder may hold the same weights in other formats.
FILES = ("*.json", "*.safetensors")


def start_config(
    uri: str, chosen: dict[str, Any], vocab_size: int, sizes: dict[str, int | None], specials: dict[str, int] | None
) -> UnifiedConfig:
    """The model that the checkpoint becomes with a vocabulary of `vocab_size` tokens at least and the `sizes` of its
    representations of pictures, fields of `UnifiedConfig`. `chosen` holds the fields of train's `model` that the
    user has set."""
    where = storage.join(uri, "config.json")
    try:
        values = folder_values(uri)
        decided = architecture(values, where)
        for name, value in chosen.items():
            if name in decided and value != decided[name]:
                raise InputError(
                    f"the checkpoint has {decided[name]!r}, got {value!r}; leave it out",
                    field=f"model.{name}",
                    file=where,
                )
        codes, asked = described(values, where).codes, sizes.get("codebook_size")
        if codes and asked not in (None, codes.size):
            raise InputError(
                f"the checkpoint has {codes.size} codes of pictures, the tokens have {asked}: they are made by another "
                "visual tokenizer than the checkpoint's",
                field=FIELD,
                file=uri,
            )
        return config_from_llama(
            values,
            where,
            vocab_size=max(vocab_size, decided["vocab_size"]),
            specials=SpecialIds(**specials) if specials else None,
            **sizes,
            **chosen,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"no checkpoint to start from: {error}", field=FIELD, file=uri) from None


def folder_values(uri: str) -> Any:
    """What the folder says that it is, by the files that say so; OSError and ValueError as of reading them."""

    def read(name: str) -> Any:
        where = storage.join(uri, name)
        return json.loads(storage.read_bytes(where)) if name == "config.json" or storage.exists(where) else None

    return read_values(read)


def check_latents(uri: str, model: UnifiedConfig) -> None:
    """Check that the latents of `model`, the one to train, have as many numbers as those of the checkpoint's tower of
    them, where the model has that."""
    if not tower_of(described(folder_values(uri), storage.join(uri, "config.json")).family, model):
        return
    for file in files_of_folder(uri, FIELD):
        found = _shapes(file).get(f"{LATENTS_IN}.weight", (model.latent_dim,))[-1]
        if found != model.latent_dim:
            raise InputError(
                f"the checkpoint's latents have {found} numbers a position, the tokens' have {model.latent_dim}: they "
                "are made by another visual tokenizer than the checkpoint's; another model.rope_scheme than one_place "
                "starts pictures anew",
                field=FIELD,
                file=uri,
            )


def _shapes(uri: str) -> dict[str, tuple[int, ...]]:
    """By name the shapes of the tensors of a safetensors file."""
    with opened(uri, FIELD) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(about["shape"]) for name, about in header.items() if name != "__metadata__"}


def check_text_tokenizer(uri: str, digest: str) -> None:
    """Check that the tokens, sealed with `digest`, are made by the checkpoint's text tokenizer."""
    file = storage.join(uri, "tokenizer.json")
    try:
        own = read_text_tokenizer(file).digest
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer to know the checkpoint's tokens by: {error}", field=FIELD, file=file) from None
    if own != digest:
        raise InputError(
            "the tokens are made by another text tokenizer than the checkpoint's; set "
            f"stages.pretokenize.text_tokenizer to {file}",
            field=FIELD,
            file=uri,
        )


def _copy(uri: str, file: Path) -> None:
    storage.copy_file(uri, str(file))


def local_folder(uri: str) -> Path:
    """The folder itself where it is local, else a copy of its configs and weights, made once per machine."""
    if (path := storage.local_path(uri)) is not None:
        return path
    fs, root = storage.filesystem(uri)
    names = [name for name in storage.list_files(uri) if "/" not in name and any(fnmatchcase(name, g) for g in FILES)]
    versions = [(name, str(fs.checksum(f"{root.rstrip('/')}/{name}"))) for name in names]
    digest = hashlib.sha256(json.dumps([uri, versions]).encode()).hexdigest()
    target = storage.cache_folder() / f"start-{digest[:32]}"
    for name in names:
        once(target / name, partial(_copy, storage.join(uri, name)))
    return target
