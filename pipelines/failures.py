"""What the user is told of a stage that died: one line with the stage, the cause, and what to do."""

from __future__ import annotations

from omniloom.infra.errors import InputError, OmniLoomError, join_fields
from omniloom.infra.failures import BodyFailed, is_system_failure, line, root_cause

_GOES_ON = "the next run goes on from here"


class StageFailed(OmniLoomError):
    """A stage's body raised, or what it ran on died; `__cause__` is what Ray raised."""


class Pruned(OmniLoomError):
    """A trial of a sweep was ended on purpose, as its validations are behind others'. Its checkpoint is kept."""


def told(stage: str, error: Exception) -> OmniLoomError:
    """What the user is told of a stage that died of `error`, raised in the driver. A field that a stage names is one of
    its own config; what is told names it from the root of the pipeline's."""
    root = root_cause(error)
    if isinstance(root, InputError):
        return InputError(root.message, field=join_fields("stages", stage, root.field), file=root.file)
    text = str(root) if isinstance(root, OmniLoomError | BodyFailed) else line(root)
    hint = f"; {_GOES_ON}" if is_system_failure(error) else ""
    return StageFailed(f"stage {stage} failed: {text}{hint}")
