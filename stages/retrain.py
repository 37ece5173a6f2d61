"""When a tokenizer is trained again as data grow: the option `retrain` of what learns a tokenizer from the records."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from omniloom.stages.base import PLACEMENT

_SHARE = "when_changed_by "
NEVER, ALWAYS = "never", "always"

Retrain = Annotated[
    str,
    Field(
        pattern=rf"^({NEVER}|{ALWAYS}|{_SHARE}(100|\d{{1,2}}(\.\d+)?)%)$",
        json_schema_extra=PLACEMENT,
    ),
]


def allows(retrain: str, new: float, gone: float) -> bool:
    """Whether a tokenizer may be kept of whose corpus this share is new now, and of which this share is gone."""
    if retrain == ALWAYS:
        return False
    most = 0.5 if retrain == NEVER else float(retrain.removeprefix(_SHARE).rstrip("%")) / 100
    return gone <= most and (retrain == NEVER or new <= most)
