"""The commands from Python: what `omniloom init`, `plan`, `run`, `sample`, `lineage`, `diff` and `export` do, with
values in place of lines on the terminal. Progress goes to stderr. `InputError` where a request is wrong, before
anything started; `OmniLoomError` where a stage failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra.artifacts import Artifact
from omniloom.pipelines.config import load as load_config
from omniloom.pipelines.plan import Plan, make_plan
from omniloom.pipelines.selection import Selection

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom


def init(folder: str, out: str | Path | None = None, size: str | None = None) -> Path:
    """Look at a folder and write the config that trains on it to `out`, by default NAME.yaml here; its path. `size`:
    tiny, small or base, by default by this machine and how much data there is."""
    from omniloom.pipelines.starting.init import init as start

    return start(folder, out, size).file


def plan(config: str, overrides: Sequence[str] = ()) -> Plan:
    """What is cached, what would run, and why: `plan(...).stages`, each with `name`, `status`, `reason`. Starts
    nothing."""
    return make_plan(load_config(str(config), list(overrides), files=True))


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
    --until S` and `--force S`. Gives the artifacts that are there at the end, by stage; of a config with a sweep those
    of the best trial.
    """
    from omniloom.pipelines.display import Display
    from omniloom.pipelines.runner import run as execute

    loaded, selection = load_config(str(config), list(overrides), files=True), Selection(only, from_, until, (*force,))
    if loaded.sweep:
        from omniloom.pipelines.sweeps.command import run as run_sweep

        best = run_sweep(str(config), list(overrides), loaded, selection)
        return {planned.name: planned.artifact for planned in best.stages if planned.artifact} if best else {}
    made = make_plan(loaded, selection)
    execute(made, Display())
    return {planned.name: planned.artifact for planned in made.stages if planned.artifact}


def load(model: str, device: str | None = None) -> OmniLoom:
    """A trained model, by what `omniloom sample` takes: a pipeline's config or preset that was run, a train artifact or
    its model folder, or models:/NAME@ALIAS. `device`: by default a GPU where there is one."""
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.sampling import load as load_model

    return load_model(find_model(str(model)), device)


def sample(
    model: str, prompts: Sequence[str], out: str | Path = "samples", *, count: int = 1, seed: int = 0, **sampling: Any
) -> list[Path]:
    """Draw pictures from prompts into files that say how they were made. `sampling`: the fields of `VisualSampling`,
    such as num_steps. Nothing is written over."""
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.requests import Options, Request
    from omniloom.stages.inference.sampling import sample as make

    requests = [Request(prompt) for prompt in prompts]
    options = Options(task="draw", count=count, seed=seed, sampling=sampling)
    return [Path(line) for line in make(find_model(str(model)), requests, options, Path(out))]


def lineage(artifact: str) -> dict[str, Any]:
    """What an artifact came from and what was made from it: {"root", "nodes", "edges"}. `artifact`: its folder,
    CONFIG:STAGE, CONFIG:DIGITS or models:/NAME@ALIAS."""
    from omniloom.pipelines.catalog import places
    from omniloom.pipelines.catalog.lineage import lineage as graph
    from omniloom.pipelines.catalog.lineage import registered_of

    found = places.artifact(str(artifact))
    return graph(found, registered_of(found, str(artifact)))


def diff(a: str, b: str) -> dict[str, Any]:
    """How two artifacts, runs or pipelines differ: {"stages": [...], "same"}."""
    from omniloom.pipelines.catalog.comparison import diff as compare

    return compare(str(a), str(b))


def export(model: str, to: str, out: str | Path, prompts: str | Path | None = None) -> Path:
    """The model as a folder for tools of others; `to`: hf, lmms-eval, transformers, or geneval, which needs a file of
    prompts."""
    from omniloom.pipelines.exporting.export import export as write

    write(str(model), to, out, Path(prompts) if prompts else None)
    return Path(out)
