"""Checks: that the stages of a config fit each other, their outside files and the corpus, before anything is spent.

In: a pipeline's config; ingest's counts where they are known. Out: nothing, or warnings; InputError with the file, the
field and the line for what does not fit, several told at once. Each stage checks its own part (`stages.base`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from omniloom.infra.errors import InputError, together, within
from omniloom.pipelines import absent
from omniloom.pipelines.config import PipelineConfig, placed
from omniloom.pipelines.graph import BUILT_IN
from omniloom.stages.base import Stage


def check_stages(config: PipelineConfig, settled: Collection[str] = (), files: bool = True) -> None:
    """InputError for what the configs tell not to fit. Stages that are `settled`, cached or pinned, are not checked;
    with `files` outside files are looked at too."""
    refuse(misfits(config, settled, files))


def misfits(
    config: PipelineConfig, settled: Collection[str] = (), files: bool = True, unknown: Collection[str] = ()
) -> list[InputError]:
    """What `check_stages` refuses, one error a stage. Nothing is said of what `unknown` stages make, whose sources are
    not there."""
    return _ask_all(config, settled, lambda stage, own, upstream: stage.check(own, upstream, files), unknown)


def check_all(config: PipelineConfig) -> None:
    """InputError for what does not fit, and for all outside files that are not there, of stages that are not pinned."""
    stages = [stage for stage in config.graph.stages if stage.name not in config.pins]
    missing = {stage.name: list(absent.of_stage(stage, getattr(config.stages, stage.name))) for stage in stages}
    unknown = {name for name, errors in missing.items() if errors}
    errors = [placed(config, error) for found in missing.values() for error in found]
    refuse([*misfits(config, unknown=unknown), *errors])


def refuse(errors: Collection[InputError]) -> None:
    """Raise what there is, together."""
    if errors:
        raise together(errors)


def check_counts(config: PipelineConfig, counts: Mapping[str, dict], settled: Collection[str] = ()) -> list[str]:
    """Warnings, each with its stage's name before it; InputError for what cannot fit the corpus. `counts` are those of
    records by the stage that made them, as far as they are known."""
    warnings: list[str] = []

    def ask(stage: Stage, own: Any, upstream: Mapping[str, Any]) -> None:
        if corpus := counts.get(config.graph.upstream(stage.name).get("records", "")):
            warnings.extend(f"{stage.name}: {text}" for text in stage.check_counts(own, upstream, corpus))

    refuse(_ask_all(config, settled, ask))
    return warnings


def _ask_all(
    config: PipelineConfig,
    settled: Collection[str],
    ask: Callable[[Stage, Any, dict], None],
    unknown: Collection[str] = (),
) -> list[InputError]:
    errors = []
    for stage, own, upstream in with_upstream(config, unknown):
        if stage.name in settled or stage.name in config.pins:
            continue
        try:
            with within(f"stages.{stage.name}"):
                ask(stage, own, upstream)
        except InputError as error:
            errors.append(placed(config, error))
    return errors


def with_upstream(config: PipelineConfig, unknown: Collection[str] = ()) -> Iterator[tuple[Stage, Any, dict[str, Any]]]:
    """Each stage in order with its config and, by role, the configs of the stages before it, but of those that
    are pinned or `unknown`."""
    graph = config.graph
    known: dict[str, Any] = {}
    for stage in graph.stages:
        own = getattr(config.stages, stage.name)
        upstream = {role: known[name] for role, name in graph.upstream(stage.name).items()}
        yield stage, own, upstream
        known[stage.name] = None if stage.name in {*config.pins, *unknown} else _resolved(stage, own, upstream)


def _resolved(stage: Stage, own: Any, upstream: dict[str, Any]) -> Any:
    if stage not in BUILT_IN and not hasattr(stage.module, "resolved"):
        return None  # a config of a type that the stages here do not know
    try:
        return stage.resolved(own, upstream)
    except (InputError, ValueError):  # its own check says so
        return None
