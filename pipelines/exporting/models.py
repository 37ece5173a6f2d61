"""The model that is exported. In: what a user calls it. Out: a loaded model, with the facts that its card tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines.catalog import places
from omniloom.pipelines.trained import find_model

if TYPE_CHECKING:
    from omniloom.models.folder import Parts
    from omniloom.models.model import OmniLoom


@dataclass(frozen=True)
class Exported:
    """`name` as the user wrote it; `training` None where its folder is in no artifact; `made_by`: `marks.identity`."""

    name: str
    loom: OmniLoom
    training: Artifact | None
    made_by: dict[str, str]

    @property
    def parts(self) -> Parts:
        from omniloom.models.folder import Parts

        loom = self.loom
        return Parts(loom.config, loom.model, loom.tokenizer, loom.text)

    @property
    def title(self) -> str:
        return self.training.manifest["pipeline"] if self.training else "omniloom model"


def load(name: str) -> Exported:
    """InputError naming MODEL where there is none."""
    from omniloom.stages.inference.marks import identity
    from omniloom.stages.inference.sampling import load as load_model

    uri = find_model(name)
    try:
        training: Artifact | None = places.artifact(name if name.startswith("models:/") else storage.absolute(uri))
    except InputError:  # a folder by itself
        training = None
    return Exported(name, load_model(uri, "cpu"), training, identity(uri))


def new_folder(out: str | Path) -> Path:
    """InputError naming --out where something is there: nothing is written over."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is there already; name a folder that is empty or new", field="--out", file=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
