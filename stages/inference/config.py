"""How the stages draw: the fields of their configs that are choices of sampling, made from `VisualSampling`."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, create_model

from omniloom.models.docstrings import field_docstrings
from omniloom.models.unified.generation.sampling import VisualSampling, knobs


def _field(name: str) -> tuple[Any, Any]:
    knob = knobs(VisualSampling)[name]
    described = field_docstrings(VisualSampling)[name].rstrip(".")
    limits = {"ge": knob.at_least, "gt": knob.above, "le": knob.at_most}
    told: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    return knob.kind, Field(getattr(VisualSampling, name), description=described, **told)


# Every one is part of the fingerprints of the stages that have it: one more makes finished stages run again.
_CHOSEN = ("num_steps", "guidance_scale")


_FIELDS: dict[str, Any] = {name: _field(name) for name in _CHOSEN}
_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_Fields: Any = create_model("DrawingFields", __config__=_SETTINGS, **_FIELDS)


class DrawingConfig(_Fields):
    """How the pictures are drawn that a stage shows or measures."""

    def chosen(self, **more: Any) -> dict[str, Any]:
        """The fields that are written down, with `more`: what is not is the model's own (`OmniLoom.sampling`)."""
        return {name: getattr(self, name) for name in _CHOSEN if name in self.model_fields_set} | more
