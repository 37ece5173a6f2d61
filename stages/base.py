"""What a stage is: a name, a module, its inputs; and the context that its `run` gets.

A stage's module has
    Config      a pydantic model, `extra="forbid"`; a field marked `PLACEMENT` says only how or where the stage runs
    VERSION     an int, raised when the stage's output changes meaning
    run(context) -> dict of metrics; writes the artifact's files under `context.output`
    needs(config) -> Needs: CPUs and GPUs (optional; none by default, for a body that only waits for others)
    listing(config) -> list of facts about outside sources that stand in for inputs (optional)
    check(config, upstream, files) raises InputError for what cannot fit, as far as configs tell; with `files`, for
        outside files that are not there too (optional)
    check_counts(config, upstream, counts) -> warnings; raises InputError for what cannot fit the corpus that the
        counts, ingest's metrics, are of (optional)
    resolved(config, upstream) -> the config with what it takes from upstream in it, as later stages' checks see it
        (optional)
    summary(metrics) -> the line that says what the stage did (optional; by default its first metrics)
`upstream` maps a role (records, tokenizer, tokens, model; of a study its stage's name) to the config of the stage that
makes it: None where that is not known, as of a pinned artifact, and no key where no stage makes it. Checks run before
anything starts: they read configs and look at files, and import nothing heavy. An InputError of a stage names a field
from the root of its own config; the pipeline adds the stage, the file and the line.

Its top level imports nothing heavy: planning imports every stage's module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.progress import Progress

PLACEMENT = {"placement": True}
# How often Ray Data may do a shard again whose worker was killed. By default it tries for ever, and a shard that does
# not fit into memory would never let the stage end.
RETRIES = 3


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs: of the stage's own body, and of the workers and actors that it starts beside it."""

    cpus: float = 0
    gpus: float = 0
    worker_cpus: float = 0
    worker_gpus: float = 0


@dataclass(frozen=True)
class Stage:
    name: str
    module_name: str
    inputs: tuple[str, ...] = ()
    optional: bool = False

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.module_name)

    def needs(self, config: Any) -> Needs:
        function = getattr(self.module, "needs", None)
        return function(config) if function else Needs()

    def restarts(self, config: Any) -> int:
        """How often the body may be started again after its process was killed: as often as its ranks."""
        return getattr(getattr(config, "workers", None), "max_failures", 1)

    def check(self, config: Any, upstream: Mapping[str, Any], files: bool = True) -> None:
        if function := getattr(self.module, "check", None):
            function(config, upstream, files)

    def check_counts(self, config: Any, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> list[str]:
        function = getattr(self.module, "check_counts", None)
        return list(function(config, upstream, counts) or ()) if function else []

    def resolved(self, config: Any, upstream: Mapping[str, Any]) -> Any:
        function = getattr(self.module, "resolved", None)
        return function(config, upstream) if function else config

    def summary(self, metrics: dict) -> str | None:
        function = getattr(self.module, "summary", None)
        return function(metrics) if function else None


def last_tokenizer(inputs: dict[str, Artifact]) -> Artifact | None:
    """The tokenizer among a stage's inputs, whichever stage it came from; None in a pipeline of text alone."""
    return next((artifact for name, artifact in inputs.items() if name.startswith("tokenizer_")), None)


@dataclass
class StageContext:
    """All that a stage body may use. Picklable: the runner sends it to where the stage is placed.

    `inputs` maps a stage's name to its artifact; `work` is the URI of this stage's work folder: `output` becomes the
    artifact, `state` is kept for a resume and dropped after publication. `tracker` is the stage's MLflow run.
    """

    stage: str
    fingerprint: str
    config: Any
    inputs: dict[str, Artifact]
    work: str
    progress: Progress
    tracker: Any

    @property
    def tokenizer(self) -> Artifact | None:
        """The visual tokenizer that the corpus is encoded with: the last one that the pipeline trains, if any."""
        return last_tokenizer(self.inputs)

    @property
    def output(self) -> str:
        return storage.join(self.work, "output")

    @property
    def state(self) -> str:
        return storage.join(self.work, "state")
