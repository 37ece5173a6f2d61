"""A text tokenizer of somebody else's. In: the URI of a tokenizer.json, as a checkpoint's folder holds one. Out: the
`TextTokenizer`, its <bos> and <eos> those that the configs beside the file name.

Errors: OSError, or ValueError naming the file.
"""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage

if TYPE_CHECKING:
    from omniloom.models.text import TextTokenizer

# What the model was trained with goes before what the tokenizer's class was told.
CONFIGS = ("tokenizer_config.json", "config.json")


def read_text_tokenizer(uri: str) -> TextTokenizer:
    from omniloom.models.text import TextTokenizer

    checkpoint: dict[str, Any] = {}
    for name in CONFIGS:
        file = storage.join(posixpath.dirname(uri), name)
        if not storage.exists(file):
            continue
        try:
            values = json.loads(storage.read_bytes(file))
        except ValueError as error:
            raise ValueError(f"{file}: is no JSON: {error}") from None
        if isinstance(values, dict):
            checkpoint |= {key: value for key, value in values.items() if value is not None}
    return TextTokenizer.load(storage.read_bytes(uri).decode(), checkpoint)
