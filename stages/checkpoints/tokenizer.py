"""Visual tokenizers: that of a tokenizer stage's artifact, and released checkpoints."""

from __future__ import annotations

from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.tokenizer import load_official
from omniloom.models.tokenizer.base import VisualTokenizer
from omniloom.models.tokenizer.build import build_tokenizer, config_from_dict
from omniloom.models.tokenizer.vqgan_checkpoint import load_vqgan
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.checkpoints.outside import is_folder, read_copy
from omniloom.stages.checkpoints.picture_tokenizer import FIELD


def load_tokenizer(artifact: Artifact) -> VisualTokenizer:
    """The trained tokenizer of a tokenizer stage's artifact, in eval mode on the CPU."""
    folder = artifact.local() / "tokenizer"
    file = str(folder / "config.json")
    model = build_tokenizer(config_from_dict(storage.load_json(file), file))
    model.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return model.eval()


def read_official(uri: str) -> VisualTokenizer:
    """A released checkpoint, which the config's `official` names: a file, or the folder of an open model."""
    if not is_folder(uri, FIELD):
        return read_copy(uri, load_official, FIELD)
    try:
        return load_vqgan(local_folder(uri))
    except ValueError as error:
        raise InputError(f"no picture tokenizer: {error}", field=FIELD, file=uri) from None
