"""A trained model of ours that `train` starts from. In: the URI of a `train` artifact or of its folder `model`. Out:
the architecture that it has, whether tokens and pictures mean the same to it, and how it normalises latents.

Errors: InputError naming the folder and the field of the stage's config. Nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.representations import REPRESENTATIONS

FIELD = "init_from"
_FILES = ("unified.safetensors", "text.json")
_SIZES = {row.size: name for name, row in REPRESENTATIONS.items()}
# Of a model without diffusions nothing was made by these.
_OF_DIFFUSIONS = (
    *("time_dim", "pixel_bottleneck", "latent_patchifier", "pixel_patchifier", "unet_width", "unet_depth"),
    *("flow_head_layers", "flow_head_width", "patch_mask_low", "patch_mask_high", "modulation", "time_scale"),
)
_ADDED = ("modality_experts",)  # where a model has none, it starts as a copy and computes the same
_PIECE = 1 << 24  # bytes that are hashed at once


def model_folder(uri: str) -> str | None:
    """The URI of the model folder at `uri`, itself or that of the artifact there; None where there is none of ours."""
    for place in (uri, storage.join(uri, "model")):
        if (document := _document(place)) is not None:
            return place if "unified" in document else None
    return None


def _document(folder: str) -> dict[str, Any] | None:
    """The folder's config.json; None where there is none that could be a model's."""
    try:
        found = json.loads(storage.read_bytes(storage.join(folder, "config.json")))
    except Exception:  # what a store says of an address that it cannot have is of no type: those who read on name it
        return None
    return found if isinstance(found, dict) else None


def own_config(folder: str) -> UnifiedConfig:
    """The config of the model in the folder that `model_folder` gave."""
    document = _document(folder) or {}
    try:
        return UnifiedConfig(**document["unified"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config.json is not that of a model: {error}", field=FIELD, file=folder) from None


def start_config(folder: str, chosen: dict[str, Any], sizes: dict[str, int | None]) -> UnifiedConfig:
    """The model that the folder's becomes with these `sizes` of its representations of pictures. `chosen` holds the
    fields of train's `model` that the user has set."""
    own = own_config(folder)
    # It is told steps where it is distilled alone: what is trained on goes on with the diffusion that it is at size 0.
    known = {field.name: getattr(own, field.name) for field in fields(own)} | {"step_sizes": None}
    is_open = _OF_DIFFUSIONS if own.latent_dim is None and own.pixel_dim is None else ()
    for name, value in chosen.items():
        if name in _ADDED and known[name] is None:
            continue
        if name not in is_open and value != known[name]:
            raise InputError(
                f"the model has {known[name]!r}, got {value!r}; leave it out",
                field=f"model.{name}",
                file=storage.join(folder, "config.json"),
            )
    for name, size in sizes.items():
        if size and known[name] and size != known[name]:
            raise InputError(
                f"the model knows {_SIZES[name]} by {name} {known[name]}, the tokens have {size}: they are made by "
                "another visual tokenizer than the model's",
                field=FIELD,
                file=folder,
            )
    return UnifiedConfig(**{**known, **dict.fromkeys(_SIZES), **sizes, **chosen})


def check_files(folder: str) -> None:
    """Check that the folder holds what is read of it."""
    for name in _FILES:
        if not storage.exists(storage.join(folder, name)):
            raise InputError(f"holds no {name}", field=FIELD, file=folder)


def check_text(folder: str, digest: str) -> None:
    """Check that the tokens, sealed with `digest`, are made by the model's text tokenizer."""
    if (_document(folder) or {}).get("text_digest") != digest:
        raise InputError(
            "the tokens are made by another text tokenizer than the model's; set stages.pretokenize.text_tokenizer to "
            f"{storage.join(folder, 'text.json')}",
            field=FIELD,
            file=folder,
        )


def check_pictures(folder: str, model: UnifiedConfig, tokenizer: Artifact) -> None:
    """Check that latents and codes are made by the model's visual tokenizer, as far as `model`, what is trained, goes
    on with them."""
    shared = {"latents", "codes"} & {*model.representations} & {*own_config(folder).representations}
    if shared and _tensors(storage.join(folder, "tokenizer.safetensors")) != _tensors(
        tokenizer.file("tokenizer", "tokenizer.safetensors")
    ):
        raise InputError(
            f"the model's {' and '.join(sorted(shared))} are of another visual tokenizer than {tokenizer.stage} "
            f"{tokenizer.fingerprint[:12]}; pin the tokenizer that the model was trained with",
            field=FIELD,
            file=folder,
        )


def latent_statistics(folder: str, model: UnifiedConfig) -> dict[str, list[float]]:
    """`latent_mean` and `latent_std`, which the model's latents are normalised by, where `model`, what is trained, goes
    on with them; else nothing."""
    if "latents" not in {*model.representations} & {*own_config(folder).representations}:
        return {}
    return {name: (_document(folder) or {})[name] for name in ("latent_mean", "latent_std")}


def _tensors(uri: str) -> dict[str, tuple[Any, ...]]:
    """By name the type, shape and sha256 of the tensors of a safetensors file, in whatever order it has them."""
    fs, path = storage.filesystem(uri)
    found = {}
    try:
        with fs.open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = about["data_offsets"]
                file.seek(8 + size + begin)
                digest = hashlib.sha256()
                while begin < end:
                    digest.update(piece := file.read(min(_PIECE, end - begin)))
                    begin += len(piece) or end
                found[name] = (about["dtype"], tuple(about["shape"]), digest.hexdigest())
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot be read: {error}", field=FIELD, file=uri) from None
    return found
