"""The pipeline's config: one YAML file, `key=value` overrides from its root, pydantic models behind it.

`load` gives a checked `PipelineConfig` or raises `InputError` that names the file, the field and what was expected.
OmegaConf resolves `${...}`; the stages own their part of the schema. An override's value is YAML as in the file; for a
field that holds text and nothing else it is the text as it is written, in quotes or without.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, model_validator

from omniloom.infra import secrets, storage
from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError, together
from omniloom.infra.fields import PATH, PLACEMENT
from omniloom.infra.tracking import TrackingConfig
from omniloom.pipelines import absent, schema, yaml_dialect
from omniloom.pipelines.explain import explain
from omniloom.pipelines.forecasting.config import ForecastConfig
from omniloom.pipelines.graph import KNOWN, KNOWN_NAMES, Graph
from omniloom.pipelines.origin import Origin
from omniloom.pipelines.paths import make_absolute
from omniloom.pipelines.preset_files import PRESETS, preset_names
from omniloom.pipelines.prices import PricesConfig
from omniloom.pipelines.sweeps.config import SweepConfig
from omniloom.pipelines.sweeps.fields import flat, nested
from omniloom.stages.base import Stage


class _Stages(BaseModel):
    """A field for every stage that there is; the pipeline has those that are written down and not null."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def configured(self) -> list[str]:
        """The stages that this pipeline has."""
        return [name for name in KNOWN_NAMES if getattr(self, name) is not None]


def _purpose(stage: Stage) -> str:
    """The purpose of a stage: the first paragraph of its module."""
    return " ".join((stage.module.__doc__ or stage.name).split("\n\n")[0].split())


if TYPE_CHECKING:
    StagesConfig = _Stages
else:
    StagesConfig = create_model(
        "StagesConfig",
        __base__=_Stages,
        __doc__=_Stages.__doc__,
        **{stage.name: (stage.config_type | None, Field(None, description=_purpose(stage))) for stage in KNOWN},
    )


class PipelineConfig(BaseModel):
    """The root. `data` and `seed` have no use of their own: presets refer to them as `${data}` and `${seed}`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The pipeline's name: letters, digits, `.`, `_` and `-`."""
    storage: str = Field(min_length=1, json_schema_extra=PATH | PLACEMENT)
    """Folder or URI below which everything that runs make is kept."""
    data: str | None = None
    """Has no use of its own: presets refer to it as `${data}`."""
    seed: int = 0
    """Has no use of its own: presets refer to it as `${seed}`."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """How runs are logged to MLflow."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """The Ray cluster that runs."""
    prices: PricesConfig = Field(default_factory=PricesConfig)
    """What the machines cost, for `plan` to tell of a pipeline."""
    sweep: SweepConfig | None = None
    """Trials: the pipeline once for each of several values of its fields. null: the pipeline as it stands."""
    forecast: ForecastConfig | None = None
    """The small trainings that `omniloom forecast` learns from; null: those that follow from stages.train."""
    pins: dict[str, str] = Field(default_factory=dict)
    """Stage -> URI of a finished artifact that stands in for what the stage would make."""
    stages: StagesConfig
    """The stages of the pipeline."""
    _origin: Origin | None = PrivateAttr(None)

    @property
    def graph(self) -> Graph:
        """The stages of this pipeline. InputError where one of them reads what no stage makes."""
        configured = self.stages.configured()
        own = {stage: getattr(self.stages, stage.name) for stage in KNOWN if stage.name in configured}
        return Graph(configured, self.pins, {stage.name: stage.unread(config) for stage, config in own.items()})

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


def placed(config: PipelineConfig, error: InputError) -> InputError:
    """An error about a field of the config with the file and the line that it was read from; any other as it is."""
    if config._origin is None or (error.field or "").split(".")[0] not in PipelineConfig.model_fields:
        return error
    return config._origin.placed(error)


@contextlib.contextmanager
def naming(config: PipelineConfig) -> Iterator[None]:
    """Errors that are raised inside about fields of the config name its file and the line too."""
    try:
        yield
    except InputError as error:
        raise placed(config, error) from error.__cause__


def load(path: str, overrides: tuple[str, ...] | list[str] = (), files: bool = False) -> PipelineConfig:
    """The config at `path` (a local file, or the name of a preset) with `key=value` overrides applied. `files` as of
    `validate`."""
    file = str(find(path))
    return validate(raw(file, overrides), file, [override.partition("=")[0] for override in overrides], files)


def raw(path: str, overrides: tuple[str, ...] | list[str] = ()) -> dict:
    """The config as plain literals: overrides applied, interpolations resolved, not yet checked."""
    return draft(path, overrides).values()


def draft(path: str, overrides: tuple[str, ...] | list[str] = ()) -> Draft:
    """The config with overrides applied, its interpolations still open."""
    from omegaconf.errors import OmegaConfBaseException

    file = find(path)
    found = Draft(str(file), _read(file))
    errors: list[InputError] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            says = "expected an override of the form key=value, such as seed=1"
            errors.append(InputError(says, field=override, file=str(file)))
            continue
        try:
            found.put(key, _override_value(key, value))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, IndexError, TypeError) as error:
            shown = secrets.redact_override(override)
            why = "" if shown.endswith(secrets.MASK) else f": {_one_line(error)}"  # YAML's errors quote the value
            errors.append(InputError(f"override {shown!r}{why}", field=key, file=str(file)))
    if errors:
        raise together(errors)
    return found


@dataclass
class Draft:
    """A config whose interpolations are still open, so that what refers to a value follows it."""

    file: str
    config: Any  # of OmegaConf
    left_out: set[str] = field(default_factory=set)  # stages that are null: what others take over from them stays known

    def put(self, key: str, given: Any, whole: bool = False) -> None:
        """Set a value by its path. A mapping goes into the one that is there, but an empty one empties it, and one of
        another kind, which has other keys, replaces it, as each does that is a `whole`."""
        from omegaconf import OmegaConf

        self.left_out.discard(".".join(key.split(".")[:2]))
        if given is None and re.fullmatch(r"stages\.\w+", key):
            self.left_out.add(key)
            return
        old = OmegaConf.select(self.config, key)
        mappings = isinstance(given, dict) and OmegaConf.is_dict(old)
        whole = whole or key.startswith("sweep.fields.")
        merge = mappings and given != {} and not whole and not _of_another_kind(old, given, key)
        OmegaConf.update(self.config, key, given, merge=merge, force_add=True)

    def values(self) -> dict:
        """Plain literals, interpolations resolved."""
        from omegaconf import OmegaConf
        from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

        try:
            values: Any = OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)
            if self.left_out:
                values["stages"] = (values.get("stages") or {}) | {key.split(".")[1]: None for key in self.left_out}
            return flat(values)
        except MissingMandatoryValue:
            needed = _needed(OmegaConf.to_container(self.config, resolve=False))
            says = "needs a value; pass it as {}=..."
            raise together(InputError(says.format(key), field=key, file=self.file) for key in needed) from None
        except OmegaConfBaseException as error:
            raise InputError(_one_line(error), field=getattr(error, "full_key", None), file=self.file) from None


def _needed(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The keys whose value is `???`."""
    if value == "???":
        yield ".".join(path)
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _needed(inner, (*path, str(key)))


def identity(path: str) -> tuple[str, str, set[str]]:
    """The name, the storage and the names of the stages of the config at `path`, which may lack all else that a run
    needs."""
    from omegaconf.errors import OmegaConfBaseException

    config = _read(find(path))
    try:
        stages = {str(name) for name, own in (config.get("stages") or {}).items() if own is not None}
        return str(config["name"]), storage.absolute(str(config["storage"])), stages
    except (OmegaConfBaseException, KeyError, AttributeError) as error:
        raise InputError(f"tells no name and storage: {_one_line(error)}", file=str(find(path))) from None


def _override_value(key: str, value: str):
    """What an override says. Text that is in quotes is read as YAML, so that "a\\nb" may hold a line's end."""
    kinds = schema.kinds(schema.document(PipelineConfig), key) if value else set()
    if kinds - {"null"} != {"string"} or value[0] in "'\"":
        return yaml_dialect.load(value)
    return None if "null" in kinds and value in ("null", "~") else value


def _of_another_kind(old, new, key: str) -> bool:
    """Whether two mappings at `key` differ in what says their kind, such as `architecture`."""
    place = schema.place(schema.document(PipelineConfig), re.findall(r"[^.\[\]]+", key))
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
    return OmegaConf.create(nested(values))


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
    raise InputError(f"no such config file; the presets are {', '.join(preset_names())}", file=path)


def _hide_secrets(values: dict) -> None:
    """Keep credentials in URIs, and the values of `cluster.env` whatever their shape, out of all later text."""
    secrets.hide_credentials(values)
    cluster = values.get("cluster")
    secrets.hide(_texts(cluster.get("env") if isinstance(cluster, dict) else None))


def _texts(value: Any) -> Iterator[str]:
    """The scalars in nested mappings and lists, as text."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)


def validate(
    values: dict, file: str, overridden: list[str] | tuple[str, ...] = (), files: bool = False
) -> PipelineConfig:
    """The checked config, its paths absolute. `file` and the `overridden` keys are what errors point to; with `files`
    an error tells too what is not there of the outside files of those stages that can be read."""
    return checked(values, Origin.of(file, overridden), files)


def checked(values: dict, origin: Origin, files: bool = False) -> PipelineConfig:
    """As `validate`, of values that come from `origin`."""
    _hide_secrets(values)  # first: errors quote what clients and checks say of the values
    errors: list[InputError] = [
        InputError("expected a number, got true or false", field=path)
        for path in schema.booleans_for_numbers(PipelineConfig, values)
    ]
    try:
        config = PipelineConfig.model_validate(values)
        infinite = schema.non_finite(config)
        errors += [InputError(f"expected a finite number, got {value}", field=path) for path, value in infinite]
    except ValidationError as error:
        errors.append(explain(error, PipelineConfig, origin))
    if errors:
        raise together(origin.placed(error) for error in [*errors, *(absent.of_literals(values) if files else ())])
    config._origin = origin
    make_absolute(config)
    with naming(config):
        _ = config.graph
    return config


def _one_line(error: Exception) -> str:
    # OmegaConf adds lines about its own objects.
    text = str(error).split("\n    full_key:")[0]
    return " ".join(text.split())
