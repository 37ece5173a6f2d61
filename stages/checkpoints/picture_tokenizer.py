"""The picture tokenizer in an open model's folder, as planning sees it. In: the folder's URI, which a tokenizer stage
names as `official`. Out: its shape, from config.json alone. Errors: InputError naming the folder and the field.
"""

from __future__ import annotations

import json

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.config import VQGANConfig
from omniloom.models.tokenizer.vqgan_checkpoint import vqgan_config

FIELD = "official"


def folder_config(uri: str) -> VQGANConfig:
    where = storage.join(uri, "config.json")
    try:
        return vqgan_config(json.loads(storage.read_bytes(where)), where)
    except (OSError, ValueError) as error:
        raise InputError(f"no picture tokenizer: {error}", field=FIELD, file=uri) from None
