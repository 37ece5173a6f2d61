"""The contract of a stage: a name, a module, the roles that it reads and makes; and the context that its `run` gets.

A role is what an artifact is for: `records`, `scorer`, `tokenizer`, `tokens`, `model`, `evaluation`. A stage that makes
none of them makes the role of its own name. For each role that it reads a stage gets the artifact of the nearest stage
before it that makes that role, so that a stage which reads and makes `records` stands between two others.

A stage's module has
    Config      a pydantic model, `extra="forbid"`; its fields carry the marks of `infra.fields`: `PLACEMENT` where one
                says only how or where the stage runs, `PATH` or `path_to(...)` where it names an outside file or
                folder; an attribute `enters_fingerprint`, a mapping of texts, counts beside them
    VERSION     an int, raised when the stage's output changes meaning
    run(context) -> dict of metrics; writes the artifact's files under `context.output`; a stage that makes `records`
                returns `stages.data.records.counts` of them among its metrics, which later stages read
    unread(config) -> the optional roles that it has no use for under this config: they are no inputs of the stage then
        (optional)
    needs(config) -> Needs: CPUs and GPUs (optional; none by default, for a body that only waits for others)
    listing(config) -> a sequence of facts about outside sources that stand in for inputs (optional)
    check(config, upstream, files) raises InputError for what cannot fit, as far as configs tell; with `files`, for
        outside files that are not there too (optional)
    check_counts(config, upstream, counts) -> warnings; raises InputError for what cannot fit the corpus that the
        counts, the metrics of the records that the stage reads, are of (optional)
    resolved(config, upstream) -> the config with what it takes from upstream in it, as later stages' checks see it
        (optional; without it they see nothing of a stage that another distribution adds)
    BUILDS_ON  names of config fields that may be others in an earlier artifact of the stage for `run` to build on it:
        the context's `predecessor` is the last one whose version, other fields, outside files and inputs but the
        records are as now (optional; without it `run` makes everything anew)
    summary(metrics) -> the line that says what the stage did (optional; by default its first metrics)
`upstream` maps a role (records, scorer, tokenizer, tokens, model; of a study its stage's name) to the config of the
stage that makes it: None where that is not known, as of a pinned artifact or an added stage, and no key where no stage
makes it.
Checks run before anything starts: they read configs and look at files, and import nothing heavy. An InputError of a
stage names a field from the root of its own config; the pipeline adds the stage, the file and the line.

Its top level imports nothing heavy: planning imports every stage's module.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.fields import LATER, PATH, PLACEMENT, path_to
from omniloom.infra.progress import Progress
from omniloom.infra.training.config import WorkersConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["LATER", "PATH", "PLACEMENT", "RETRIES", "Needs", "Stage", "StageContext", "path_to"]

# How often Ray Data may do a shard again whose worker was killed. By default it tries for ever, and a shard that does
# not fit into memory would never let the stage end.
RETRIES = 3


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs: of the stage's own body, and in all of the workers and actors that it starts beside it.

    `workers` is the number of workers that share these evenly, each of which has to find its part on one machine; 0
    where that is not known. `accelerator`: Ray's name of the workers' GPUs, where others will not do.
    """

    cpus: float = 0
    gpus: float = 0
    worker_cpus: float = 0
    worker_gpus: float = 0
    workers: int = 0
    accelerator: str | None = None

    @classmethod
    def of(cls, workers: WorkersConfig) -> Needs:
        """Resources of a group of training workers, with a body that only waits for it."""
        return cls(
            worker_cpus=workers.least * workers.cpus,
            worker_gpus=workers.least * workers.gpus,
            workers=workers.least,
            accelerator=workers.accelerator_type,
        )


@dataclass(frozen=True)
class Stage:
    """A stage as the pipeline knows it. Another distribution adds one by an entry point of the group `omniloom.stages`.

    `reads` are roles; one that ends in `?` may be missing. `makes` is a role, by default the stage's own name.
    `config_name` is the class in the module. `after` names the stage that an added one stands behind; by default the
    last that makes something it reads.
    """

    name: str
    module_name: str
    reads: tuple[str, ...] = ()
    makes: str = ""
    config_name: str = "Config"
    after: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "makes", self.makes or self.name)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.module_name)

    @property
    def config_type(self) -> type[BaseModel]:
        return getattr(self.module, self.config_name)

    def unread(self, config: Any) -> Collection[str]:
        function = getattr(self.module, "unread", None)
        return function(config) if function else ()

    def needs(self, config: Any) -> Needs:
        function = getattr(self.module, "needs", None)
        return function(config) if function else Needs()

    def run(self, context: StageContext) -> dict:
        """The metrics of the stage's body. InputError where one that makes records does not count them."""
        metrics = self.module.run(context)
        if self.makes == "records" and "records_train" not in metrics:
            raise InputError(
                f"{self.module_name}.run makes records and returns no counts of them, which later stages read; return "
                "stages.data.records.counts(context.output) among its metrics"
            )
        return metrics

    def restarts(self, config: Any) -> int:
        """How often in a row the body may be started again after its process was killed: as often as its ranks."""
        return getattr(_workers(config), "max_failures", RETRIES)

    def grace(self, config: Any) -> float:
        """How many seconds the body gets to keep what is done, where it is told to end; only a training needs some."""
        return getattr(_workers(config), "grace_seconds", 0.0)

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


def _workers(config: Any) -> Any:
    """Where a stage's own training runs, or that of its study; something without these settings where it has none."""
    return getattr(config, "workers", None) or getattr(getattr(config, "training", None), "workers", None)


@dataclass(frozen=True)
class Continued:
    """What a training goes on from: the earlier one's `ledger` (`stages.train.ledger`), the URI of a folder that has
    its `checkpoints`, that of its curves, and the tokens of all periods in the ledger."""

    ledger: dict
    state: str
    history: str
    corpora: tuple[Artifact, ...]


@dataclass
class StageContext:
    """All that a stage body may use. Picklable: the runner sends it to where the stage is placed.

    `inputs` maps each role that the stage reads to its artifact; an optional one may be missing. `work` is the URI of
    this stage's work folder: `output` becomes the artifact, `state` is kept for a resume and dropped after publication.
    `written_to` is where the output lies, where that is not in the work folder. `logs` is the URI of the folder of the
    logs of the stage's processes (`infra.worker_log`).
    `tracker` is the stage's MLflow run. `continued` is there where the config asks to go on from an earlier training,
    `predecessor` where there is an earlier artifact that the stage's module builds on.
    """

    stage: str
    fingerprint: str
    config: Any
    inputs: dict[str, Artifact]
    work: str
    progress: Progress
    tracker: Any
    pipeline: str = ""
    continued: Continued | None = None
    predecessor: Artifact | None = None
    written_to: str | None = None
    logs: str | None = None

    @property
    def records(self) -> Artifact:
        """The corpus as the stages between ingest and this one left it."""
        return self.inputs["records"]

    @property
    def tokenizer(self) -> Artifact | None:
        """The visual tokenizer that the stages before this one trained last; None in a pipeline of text alone."""
        return self.inputs.get("tokenizer")

    @property
    def tokens(self) -> Artifact:
        return self.inputs["tokens"]

    @property
    def model(self) -> Artifact:
        return self.inputs["model"]

    @property
    def output(self) -> str:
        return self.written_to or storage.join(self.work, "output")

    @property
    def state(self) -> str:
        return storage.join(self.work, "state")
