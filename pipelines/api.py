"""A pipeline from Python: what `omniloom run` does, without its lines on the terminal's stdout."""

from __future__ import annotations

from collections.abc import Sequence

from omniloom.infra.artifacts import Artifact
from omniloom.pipelines.config import load
from omniloom.pipelines.display import Display
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.runner import run as execute
from omniloom.pipelines.selection import Selection


def run(
    config: str,
    overrides: Sequence[str] = (),
    *,
    only: str | None = None,
    from_: str | None = None,
    until: str | None = None,
    force: Sequence[str] = (),
) -> dict[str, Artifact]:
    """Bring the pipeline of `config` (a file or a preset's name) up to date, as far as the selection says.

    `overrides` are `key=value` from the config's root; the selection is that of `omniloom run --only S | --from S |
    --until S` and `--force S`. Progress goes to stderr. Gives the artifacts that are there at the end, by stage.
    Raises `InputError` where the request is wrong, before anything started, and `OmniLoomError` where a stage failed.
    """
    plan = make_plan(load(config, list(overrides), files=True), Selection(only, from_, until, tuple(force)))
    execute(plan, Display())
    return {planned.name: planned.artifact for planned in plan.stages if planned.artifact}
