"""The model that is exported. In: what a user calls it. Out: a loaded model, with the facts that its card tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines.catalog import places
from omniloom.pipelines.catalog.lineage import Key, ancestors
from omniloom.pipelines.graph import KNOWN_NAMES
from omniloom.pipelines.trained import find_model, training_of

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

    @cached_property
    def _known(self) -> dict[Key, Artifact]:
        """What lies in the training's storage."""
        found = places.store_of(self.training).all() if self.training else []
        return {(artifact.stage, artifact.fingerprint): artifact for artifact in found}

    @property
    def made_of(self) -> list[Artifact]:
        """What the model was made from, and its training, in the order of the pipeline."""
        if self.training is None:
            return []
        found = [self._known[key] for key in ancestors([self.training], self._known) if key in self._known]
        order = {name: number for number, name in enumerate(KNOWN_NAMES)}
        return sorted(found, key=lambda artifact: (order.get(artifact.stage, len(order)), artifact.fingerprint))

    @property
    def figures(self) -> dict[str, Any]:
        """Of its newest evaluation."""
        if self.training is None:
            return {}
        training = self.training
        evaluations = [
            found
            for found in self._known.values()
            if found.manifest["inputs"].get(training.stage) == training.fingerprint
            and any(entry["path"] == "metrics.json" for entry in found.manifest["files"])
        ]
        newest = max(evaluations, key=lambda found: found.manifest["times"]["ended_unix"], default=None)
        return newest.metrics if newest else {}

    @property
    def title(self) -> str:
        return self.training.manifest["pipeline"] if self.training else "omniloom model"


def load(name: str) -> Exported:
    """InputError naming MODEL where there is none."""
    from omniloom.stages.inference.marks import identity
    from omniloom.stages.inference.sampling import load as load_model

    uri = find_model(name)
    try:
        training: Artifact | None = training_of(
            places.artifact(name if name.startswith("models:/") else storage.absolute(uri))
        )
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
