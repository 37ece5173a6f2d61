"""The table of steps: ours, and those of entry points of the group `omniloom.curation`.

An entry point's name is the step's kind, its value a `steps.base.Step`:

    [project.entry-points."omniloom.curation"]
    faces = "faces_step:Faces"
"""

from __future__ import annotations

from typing import Any

from omniloom.models import extensions
from omniloom.stages import by_kind
from omniloom.stages.curate.steps.base import Comparison, Filter, Step, StepConfig
from omniloom.stages.curate.steps.blur import Blur
from omniloom.stages.curate.steps.captions import Captions
from omniloom.stages.curate.steps.exact_duplicates import ExactDuplicates
from omniloom.stages.curate.steps.function import Function
from omniloom.stages.curate.steps.language import Language
from omniloom.stages.curate.steps.length import Length
from omniloom.stages.curate.steps.near_pictures import NearPictures
from omniloom.stages.curate.steps.near_texts import NearCaptions, NearTexts
from omniloom.stages.curate.steps.scenes import Scenes
from omniloom.stages.curate.steps.size import Size
from omniloom.stages.curate.steps.still import Still
from omniloom.stages.curate.steps.text_quality import TextQuality

GROUP = "omniloom.curation"


def _problem(name: str, part: Any) -> str | None:
    """The reason why an entry point cannot be a step."""
    base = "omniloom.stages.curate.steps"
    return by_kind.problem(
        name,
        part,
        {f"{base}.Filter": Filter, "Comparison": Comparison},
        (f"{base}.StepConfig", StepConfig),
        has="kinds, those of the records that it looks at",
    )


_OURS: tuple[type[Step], ...] = (
    ExactDuplicates,
    NearPictures,
    NearTexts,
    NearCaptions,
    Size,
    Length,
    Blur,
    Still,
    Scenes,
    Captions,
    Language,
    TextQuality,
    Function,
)
_OTHERS, UNUSABLE = extensions.load(GROUP, [step.name() for step in _OURS], _problem)
STEPS: dict[str, type[Step]] = {**{step.name(): step for step in _OURS}, **_OTHERS}
