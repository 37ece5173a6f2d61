"""A model in the layout of what it started from, which `transformers` loads. In: a model. Out: a folder;
`models.unified.llama.write` says what is in it. Errors: InputError naming the option or the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.unified.llama.families import OF_AUTHORS
from omniloom.pipelines.catalog import places
from omniloom.pipelines.exporting.models import Exported
from omniloom.pipelines.trained import training_of
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.checkpoints.own_model import model_folder

OPTION = "--start"


def start_of(model: Exported, named: str | None) -> str:
    """The folder that the model started from: as named, or as its training says, or what that one started from."""
    uri, training = named, model.training
    while uri is None or model_folder(uri):
        if uri is not None:
            training = _training_at(uri)
        uri = training.manifest["config"].get("init_from") if training else None
        if uri is None:
            raise InputError(
                f"is missing: {model.name} names no folder of transformers that it started from", field=OPTION
            )
    return uri


def _training_at(uri: str) -> Artifact | None:
    try:
        return training_of(places.artifact(uri))
    except InputError:  # a folder by itself
        return None


def export(model: Exported, folder: Path, start: str | None) -> list[str]:
    """Write the folder; lines that say what it is."""
    from omniloom.models.unified.llama.load import folder_values
    from omniloom.models.unified.llama.write import left_out, write_back

    uri = start_of(model, start)
    local = local_folder(uri)
    try:
        values = folder_values(local)
        missing = left_out(model.loom.config.unified, values, str(local / "config.json"))
        write_back(model.loom.model, local, folder)
    except ValueError as error:
        raise InputError(f"cannot be written as {uri}: {error}", field="MODEL", file=model.name) from None
    _write_text(model, local, folder)
    (name,) = values["architectures"]
    loaded = f"transformers.{name}.from_pretrained({str(folder)!r})"
    lines = [f"{folder}: {'the layout of its authors' if name in OF_AUTHORS else loaded}"]
    if missing:
        lines.append(f"{', '.join(missing)}: left out, as that architecture has no place for them")
    return lines


def _write_text(model: Exported, local: Path, folder: Path) -> None:
    """The text tokenizer, where tokens were added to the start's."""
    import json

    from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer

    own: dict[str, Any] = json.loads(model.loom.text.to_json())
    own.pop("omniloom_specials", None)  # other readers of a tokenizer.json know no such key
    file = local / "tokenizer.json"
    if not file.exists() or read_text_tokenizer(str(file)).added:
        (folder / "tokenizer.json").write_text(json.dumps(own, indent=2, ensure_ascii=False), encoding="utf-8")
