"""What is missing on this machine or on the cluster that a config names, and what its pipeline needs
(`pipelines.sizing`)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from omniloom.infra import cluster, storage
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.pipelines import fitting, measuring, measuring_data, room
from omniloom.pipelines.checks import check_all
from omniloom.pipelines.config import PipelineConfig, load, naming, placed
from omniloom.pipelines.sizing import sizes

_NEEDED = (
    "torch",
    "ray",
    "deepspeed",
    "mlflow",
    "pyarrow",
    "fsspec",
    "pydantic",
    "av",
    "pillow",
    "tokenizers",
    "torchmetrics",
    "safetensors",
    "scikit-learn",
)


def examine(config: str | None, overrides: list[str], measure: bool = False) -> dict:
    """{"checks": [{"name", "ok", "needed", "says"}], "sizes": {...} or None}; InputError for a wrong config. `measure`
    adds to the sizes of what is trained what its steps take on this machine. Of a sweep the sizes are those of all
    trials, what several have alike once."""
    loaded = load(config, overrides, files=True) if config else None
    sized = None
    checks = [_python(), *(_package(name) for name in _NEEDED), _compiler(), _memory(), _accelerators()]
    if loaded:
        checks.append(_storage(loaded.storage))
        checks.append(_tracking(loaded))
        sized = {}
        for own, labels in _pipelines(str(config), overrides, loaded):
            found = sizes(own)
            lacking, place = _room(own, found)
            checks += [check for check in lacking if check not in checks]
            with naming(own):
                taken = _taken(own, labels, found) if measure else {}
            for name in [name for name in own.graph.names if name in labels and name in {*found, *taken}]:
                size = found[name] | _on_gpu(own, name, place) if name in found else {}
                sized[labels[name]] = size | taken.get(name, {})
    return redact({"checks": checks, "sizes": sized})


def _taken(config: PipelineConfig, labels: Mapping[str, str], found: Mapping[str, dict]) -> dict[str, dict]:
    """What was measured of those of the stages that are told of: steps of trainings, and samples of sources."""
    trained = measuring.measure(config) if set(labels) & set(found) else {}
    reads = {stage.name for stage in config.graph.stages if hasattr(stage.module, "listing")}
    return trained | (measuring_data.measure(config) if set(labels) & reads else {})


def _pipelines(path: str, overrides: list[str], loaded: PipelineConfig) -> Iterator[tuple[PipelineConfig, dict]]:
    """The config, or those of its trials, each with the stages that are told of there by the names that they have."""
    if not loaded.sweep:
        check_all(loaded)
        yield loaded, {name: name for name in loaded.graph.names}
        return
    from omniloom.pipelines.sweeps.trial_stages import trial_stages, trials_of

    trials = trials_of(path, overrides, loaded)
    found = list(trial_stages(trials))
    for trial in trials:  # what several have is told of the first of them
        yield trial.config, {one.planned.name: one.label for one in found if one.trials[0] is trial}


def render(report: dict) -> str:
    lines = [
        f"{'ok  ' if c['ok'] else 'MISS' if c['needed'] else 'note'}  {c['name']}: {c['says']}"
        for c in report["checks"]
    ]
    for stage, size in (report["sizes"] or {}).items():
        lines.append(f"\n{stage}")
        lines += [f"  {name}: {_readable(name, value)}" for name, value in size.items()]
    return "\n".join(lines)


def _readable(name: str, value) -> str:
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _check(name: str, ok: bool, says: str, needed: bool = True) -> dict:
    return {"name": name, "ok": ok, "needed": needed, "says": says}


def _python() -> dict:
    return _check("python", sys.version_info >= (3, 11), sys.version.split()[0])


def _package(name: str) -> dict:
    try:
        return _check(name, True, version(name))
    except PackageNotFoundError:
        return _check(name, False, f"not installed; pip install {name}")


def _compiler() -> dict:
    found = shutil.which("g++")
    return _check("g++", bool(found), found or "not found; engine.compile builds with it on CPUs", needed=False)


def _memory() -> dict:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _check("memory", size >= 4 * 2**30, f"{size / 2**30:.0f} GiB, {os.cpu_count()} CPUs", needed=False)


def _accelerators() -> dict:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _check("GPUs", bool(names), ", ".join(names) or "none; training runs on CPU with gloo", needed=False)


def _storage(uri: str) -> dict:
    try:
        fs, path = storage.filesystem(uri)
        fs.exists(path)
        return _check("storage", True, f"{uri} ({type(fs).__name__})")
    except Exception as error:  # each filesystem raises classes of its own for what is missing or refused
        return _check("storage", False, f"{uri}: {type(error).__name__}: {error}")


def _tracking(config: PipelineConfig) -> dict:
    """A store that is away stops no run, so it is only noted; one that no run may name is refused by `run` too."""
    from omniloom.infra.tracking import probe, resolve_tracking

    try:
        settings = resolve_tracking(config.tracking, config.storage)
    except InputError as error:
        return _check("tracking", False, str(error))
    usable, answer = probe(settings)
    lost = settings.database and not storage.is_local(config.storage)
    says = f"{settings.shown}: {answer}" + ("; a cluster's jobs lose it: set tracking.uri" if lost else "")
    return _check("tracking", usable and not lost, says, needed=False)


def _on_gpu(config: PipelineConfig, name: str, place: room.Room | None) -> dict:
    """Whether a worker fits its GPU, of one whose kind or memory is known."""
    workers = getattr(config.stages, name).workers
    nodes = place.nodes if place else cluster.with_autoscaling((), config.cluster)
    gpu, memory = room.accelerator_of(workers, nodes), place.gpu_memory if place else None
    if not workers.gpus or not (gpu or memory):
        return {}
    fit = fitting.of_stage(config, name, gpu or "this machine's GPU", memory)
    return {"on_a_gpu": str(fit), **fit.to_dict()} if fit else {}


def _room(config: PipelineConfig, sized: dict[str, dict]) -> tuple[list[dict], room.Room | None]:
    """What the stages lack on this machine, or on the cluster that the config names, which is asked; and what that
    has."""
    names = config.graph.names
    if cluster.starts_here(config.cluster):
        place = room.of_this_machine(config.cluster, room.wants_gpus(config, names))
    else:
        try:
            connected = cluster.connect_to(config.cluster)
        except InputError as error:
            return [_check("cluster", False, str(placed(config, error)))], None
        place = room.of_cluster(connected.nodes)
        if connected.opened:
            cluster.shutdown()
    lacking = [placed(config, error) for error in room.missing(config, names, place, sized)]
    if not lacking:
        return [_check("room", True, f"{place.name} has the CPUs, GPUs and memory that the stages ask for")], place
    return [_check(error.field or "room", False, error.message) for error in lacking], place
