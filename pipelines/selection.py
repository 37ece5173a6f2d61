"""Which stages of a pipeline a run takes in: `only S` runs S alone, again if it is cached; `from_ S` runs S and every
stage after it again; `until S` brings S and what it needs up to date; `force` runs stages again from the beginning.
Outside a selection nothing runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omniloom.infra.errors import InputError

if TYPE_CHECKING:
    from omniloom.pipelines.graph import Graph


@dataclass(frozen=True)
class Selection:
    only: str | None = None
    from_: str | None = None
    until: str | None = None
    force: tuple[str, ...] = ()

    def __post_init__(self):
        from omniloom.pipelines import graph  # every stage's config: `omniloom --help` does without

        named = {"--only": self.only, "--from": self.from_, "--until": self.until}
        given = [option for option, stage in named.items() if stage]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other")
        for option, stage in [*named.items(), *(("--force", s) for s in self.force)]:
            if stage and stage not in graph.KNOWN_NAMES:
                raise InputError(graph.no_stage(stage), field=option)

    def arguments(self) -> list[str]:
        """The options of the command that make this selection."""
        named = (("--only", self.only), ("--from", self.from_), ("--until", self.until))
        given = [*named, *(("--force", stage) for stage in self.force)]
        return [part for option, stage in given if stage for part in (option, stage)]

    def stages(self, pipeline: Graph) -> set[str]:
        """The names that the selection takes in; InputError where it names a stage that the pipeline has not."""
        named = {"--only": self.only, "--from": self.from_, "--until": self.until}
        for option, stage in [*named.items(), *(("--force", s) for s in self.force)]:
            if stage and stage not in pipeline.names:
                raise InputError(f"{stage} is not configured in this pipeline (stages.{stage})", field=option)
        if self.only:
            found = {self.only}
        elif self.from_:
            found = set(pipeline.names[pipeline.names.index(self.from_) :])
        elif self.until:
            found = {self.until} | pipeline.ancestors(self.until)
        else:
            found = set(pipeline.names)
        for stage in self.force:
            if stage not in found:
                option = next(option for option, given in named.items() if given)
                raise InputError(f"{stage} is outside the selection ({option})", field="--force")
        return found

    def again(self, stage: str, selected: set[str]) -> str | None:
        """Why the stage runs even if it is cached."""
        if stage in self.force:
            return "forced"
        if stage == self.only:
            return "asked for: --only"
        if self.from_ and stage in selected:
            return f"asked for: --from {self.from_}"
        return None
