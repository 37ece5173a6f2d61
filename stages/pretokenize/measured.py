"""How long pretokenize takes over records on this machine: shards are really tokenized, by a new visual tokenizer of
the sizes that are configured and by text tokens learnt from these shards. In: the stage's config, the tokenizer's
architecture and a folder of shards. Out: seconds and records.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from omniloom.infra.artifacts import Artifact
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.build import build_tokenizer
from omniloom.stages.data import records
from omniloom.stages.pretokenize.config import Config
from omniloom.stages.pretokenize.shard import ShardTokenizer

_SPECIAL_AND_BYTES = 262


def seconds_of(config: Config, model: Any, folder: str) -> tuple[float, int]:
    """Of all shards below `folder`, by one actor, and how many records that is. They are tokenized twice, of which the
    first time warms up."""
    shards = [{"index": n, "uri": uri} for n, uri in enumerate(records.shards(folder))]
    with tempfile.TemporaryDirectory() as scratch:
        words = Path(scratch, "text.json")
        texts = (text for row in records.iterate(folder, columns=("captions", "text")) for text in _texts(row))
        words.write_text(TextTokenizer.train(texts, _SPECIAL_AND_BYTES).to_json())
        visual = _fresh(model, Path(scratch, "visual")) if model else None
        for turn in range(2):
            place = Path(scratch, f"tokens{turn}")
            tokenizer = ShardTokenizer(config, visual, str(words), str(place), str(place / "notes"))
            began = time.perf_counter()
            tokenizer.tokenize(shards)
            seconds = time.perf_counter() - began
    return seconds, sum(1 for _ in records.iterate(folder, columns=("id",)))


def _texts(row: dict) -> list[str]:
    return [*(row["captions"] or ()), *([row["text"]] if row["text"] else ())]


def _fresh(model: Any, folder: Path) -> Artifact:
    """An artifact with a tokenizer that has learnt nothing."""
    (folder / "tokenizer").mkdir(parents=True)
    save_file(build_tokenizer(model).state_dict(), folder / "tokenizer" / "tokenizer.safetensors")
    (folder / "tokenizer" / "config.json").write_text(json.dumps(asdict(model)))
    names = ("tokenizer/tokenizer.safetensors", "tokenizer/config.json")
    files = [{"path": name, "bytes": (folder / name).stat().st_size, "sha256": ""} for name in names]
    return Artifact("measured", "0" * 64, str(folder), {"files": files})
