"""The pipeline's config: one YAML file, `key=value` overrides from its root, pydantic models behind it.

`load` gives a checked `PipelineConfig` or raises `InputError` that names the file, the field and what was expected.
OmegaConf resolves `${...}`; the stages own their part of the schema. An override's value is YAML as in the file; for a
field that holds text and nothing else it is the text as it is written, in quotes or without.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from omniloom.infra import secrets, storage
from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError
from omniloom.infra.tracking import TrackingConfig
from omniloom.pipelines import schema, yaml_dialect
from omniloom.pipelines.explain import explain
from omniloom.pipelines.graph import KNOWN_NAMES, Graph
from omniloom.stages.base import PLACEMENT
from omniloom.stages.evaluate.measures import measured
from omniloom.stages.evaluate.stage import Config as EvaluateConfig
from omniloom.stages.ingest.stage import Config as IngestConfig
from omniloom.stages.pretokenize.stage import Config as PretokenizeConfig
from omniloom.stages.studies.objectives import Config as ObjectiveStudyConfig
from omniloom.stages.studies.quantizers import Config as StudyConfig
from omniloom.stages.tokenizer.stage import Config as TokenizerStageConfig
from omniloom.stages.tokenizer.stage import KLConfig as KLStageConfig
from omniloom.stages.train.stage import Config as TrainConfig

PRESETS = Path(__file__).parent / "presets"


class StagesConfig(BaseModel):
    """A stage that is null is left out, and with it what reads it, unless that is written down too."""

    model_config = ConfigDict(extra="forbid")
    ingest: IngestConfig
    tokenizer_image: TokenizerStageConfig | None = None
    tokenizer_joint: TokenizerStageConfig | None = None
    tokenizer_kl: KLStageConfig | None = None
    quantizer_study: StudyConfig | None = None
    pretokenize: PretokenizeConfig | None = Field(default_factory=PretokenizeConfig)
    objective_study: ObjectiveStudyConfig | None = None
    train: TrainConfig | None = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig | None = Field(default_factory=EvaluateConfig)

    @model_validator(mode="after")
    def _readers_go_with_what_they_read(self) -> StagesConfig:
        written = set(self.model_fields_set)
        for stage, read in (("train", "pretokenize"), ("evaluate", "train")):
            if getattr(self, read) is None and stage not in written:
                setattr(self, stage, None)
        return self

    @model_validator(mode="after")
    def _inputs_are_configured(self) -> StagesConfig:
        names = Graph(self.configured()).names
        if self.train and self.train.trained and not any(name.startswith("tokenizer_") for name in names):
            raise ValueError(
                f"train.objectives: {', '.join(self.train.trained)} needs a visual tokenizer; configure "
                "tokenizer_image and tokenizer_joint, or set train.objectives to {} for a language model "
                "alone"
            )
        return self

    @model_validator(mode="after")
    def _pixels_and_features_are_kept(self) -> StagesConfig:
        studied = self.objective_study.objectives.values() if self.objective_study else ()
        for stage, trained in (("train", self.train.trained if self.train else ()), ("objective_study", studied)):
            if "pixel_diffusion" in trained and not self.pretokenize.pixel_patch:
                raise ValueError(
                    f"{stage}.objectives: pixel_diffusion needs raw pixels; set pretokenize.pixel_patch "
                    "to the side of their patches"
                )
        for stage, training in (
            ("train", self.train),
            ("objective_study.training", self.objective_study and self.objective_study.training),
        ):
            if training and training.alignment and not self.pretokenize.features:
                raise ValueError(
                    f"{stage}.alignment: needs a frozen encoder's features; set pretokenize.features to its folder"
                )
        return self

    @model_validator(mode="after")
    def _gate_is_of_what_is_measured(self) -> StagesConfig:
        if self.evaluate is None:
            return self
        try:
            self.evaluate.gate.check(measured(self.evaluate, self.train.trained))
        except ValueError as error:
            raise ValueError(f"evaluate.gate.{error}") from None
        return self

    @model_validator(mode="after")
    def _one_vocabulary(self) -> StagesConfig:
        if self.train and self.train.init_from and not self.pretokenize.text_tokenizer:
            raise ValueError(
                "train.init_from: the corpus must be in the ids of that folder; set "
                "pretokenize.text_tokenizer to its tokenizer.json"
            )
        return self

    def configured(self) -> list[str]:
        """The stages that this pipeline has."""
        return [name for name in KNOWN_NAMES if getattr(self, name) is not None]


class PipelineConfig(BaseModel):
    """The root. `data` and `seed` have no use of their own: presets refer to them as `${data}` and `${seed}`."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: str = Field(min_length=1, json_schema_extra=PLACEMENT)
    data: str | None = None
    seed: int = 0
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    pins: dict[str, str] = Field(default_factory=dict)
    stages: StagesConfig

    @model_validator(mode="after")
    def _registered_by_its_own_name(self) -> PipelineConfig:
        if "register_as" not in self.tracking.model_fields_set:  # null that is written down means: not at all
            self.tracking.register_as = self.name
        return self

    @model_validator(mode="after")
    def _champions_are_registered(self) -> PipelineConfig:
        evaluate = self.stages.evaluate
        if evaluate and evaluate.gate.better_than_champion and not self.tracking.register_as:
            raise ValueError(
                "stages.evaluate.gate.better_than_champion: only a model registry has a champion; set "
                "tracking.register_as to the name of the model there"
            )
        return self


def load(path: str, overrides: tuple[str, ...] | list[str] = ()) -> PipelineConfig:
    """The config at `path` (a local file, or the name of a preset) with `key=value` overrides applied."""
    file = str(find(path))
    return validate(raw(file, overrides), file, [override.partition("=")[0] for override in overrides])


def raw(path: str, overrides: tuple[str, ...] | list[str] = ()) -> dict:
    """The config as plain literals: overrides applied, interpolations resolved, not yet checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = find(path)
    config = _read(file)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(
                "expected an override of the form key=value, such as seed=1", field=override, file=str(file)
            )
        try:
            given = _override_value(key, value)
            # A mapping goes into the one that is there, but an empty one empties it, and one of another kind, which
            # has other keys, replaces it.
            merge = given != {} and not _of_another_kind(OmegaConf.select(config, key), given, key)
            OmegaConf.update(config, key, given, merge=merge, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, IndexError, TypeError) as error:
            shown = secrets.redact_override(override)
            why = "" if shown.endswith(secrets.MASK) else f": {_one_line(error)}"  # YAML's errors quote the value
            raise InputError(f"override {shown!r}{why}", field=key, file=str(file)) from None
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        field = getattr(error, "full_key", None)
        message = (
            "needs a value; pass it as " + f"{field}=..."
            if "missing" in type(error).__name__.lower()
            else _one_line(error)
        )
        raise InputError(message, field=field, file=str(file)) from None


def identity(path: str) -> tuple[str, str]:
    """The name and the storage of the config at `path`, which may lack all else that a run needs."""
    from omegaconf.errors import OmegaConfBaseException

    config = _read(find(path))
    try:
        return str(config["name"]), storage.absolute(str(config["storage"]))
    except (OmegaConfBaseException, KeyError) as error:
        raise InputError(f"tells no name and storage: {_one_line(error)}", file=str(find(path))) from None


def _override_value(key: str, value: str):
    """What an override says. Text that is in quotes is read as YAML, so that "a\\nb" may hold a line's end."""
    kinds = schema.kinds(PipelineConfig.model_json_schema(), key) if value else set()
    if kinds - {"null"} != {"string"} or value[0] in "'\"":
        return yaml_dialect.load(value)
    return None if "null" in kinds and value in ("null", "~") else value


def _of_another_kind(old, new, key: str) -> bool:
    """Whether two mappings at `key` differ in what says their kind, such as `architecture`."""
    if not isinstance(new, dict) or not hasattr(old, "get"):
        return False
    place = schema.place(PipelineConfig.model_json_schema(), re.findall(r"[^.\[\]]+", key))
    selector = place.own.selector
    return selector in new and new[selector] != old.get(selector, place.own.default)


def _read(file: Path):
    """The file as OmegaConf has it, its interpolations open."""
    from omegaconf import OmegaConf

    try:
        values = yaml_dialect.load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"is not readable YAML: {_one_line(error)}", file=str(file)) from None
    if not isinstance(values, dict):
        raise InputError("expected a mapping at the top", file=str(file))
    return OmegaConf.create(values)


def find(path: str) -> Path:
    """The file at `path`, or the preset of that name."""
    file = Path(path)
    if file.is_file():
        return file
    preset = PRESETS / (path if path.endswith(".yaml") else f"{path}.yaml")
    if file.name == path and preset.is_file():
        return preset
    if preset.name in {p.name for p in PRESETS.glob("*.yaml")} and file.parent.as_posix() == "pipelines/presets":
        return PRESETS / file.name  # an installed package, away from a checkout
    presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
    raise InputError(f"no such config file; the presets are {presets}", file=path)


def validate(values: dict, file: str, overridden: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """The checked config. `file` and the `overridden` keys are what errors point to."""
    for path in schema.booleans_for_numbers(PipelineConfig, values):
        raise InputError("expected a number, got true or false", field=path, file=file)
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error, PipelineConfig, find(file), overridden) from None
    config.storage = storage.absolute(config.storage)
    secrets.hide(config.cluster.env.values())
    secrets.hide_credentials(values)
    return config


def _one_line(error: Exception) -> str:
    # OmegaConf adds lines about its own objects.
    text = str(error).split("\n    full_key:")[0]
    return " ".join(text.split())
