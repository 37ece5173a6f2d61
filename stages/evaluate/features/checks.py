"""What a config's feature networks cannot be, as far as configs and the files' headers tell. In: a `MeasureConfig` and
the objectives that the model is trained by. Out: nothing; InputError naming the field, and the file and key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omniloom.infra.errors import InputError
from omniloom.stages.evaluate.config import MeasureConfig
from omniloom.stages.evaluate.features.files import check_files, reads_texts
from omniloom.stages.evaluate.figure import LEAST_PICTURES
from omniloom.stages.evaluate.measures import measured


def check_features(
    config: MeasureConfig, objectives: Sequence[str] | None, files: bool, gated: Iterable[str] = ()
) -> None:
    """`objectives` are None where they are not known; `gated` are names of figures that a gate asks for."""
    if config.features is None:
        return
    if objectives is not None:
        if not objectives:
            raise InputError("has no effect: the model is of text alone", field="features")
        used = {figure.network for figure in measured(config, objectives).values()}
        for name in config.features.networks:
            if name not in used:
                raise InputError(f"has no effect: {_ASKS[name]}", field=f"features.{name}")
    if files:
        check_files(config.features, "features")
        gated = [name for name in gated if name.startswith("clip_score")]
        if gated and not reads_texts(config.features, "features"):
            raise InputError("is of the score of CLIP, whose folder has no tower of texts", field=f"gate.{gated[0]}")


_LEAST = f"of at least {LEAST_PICTURES}"
_ASKS = {
    "inception": f"its figures are {_LEAST} drawings or reconstructions",
    "dinov2": f"its figures are {_LEAST} drawings",
    "clip": f"its figures are {_LEAST} drawings",
    "i3d": f"its figure is {_LEAST} videos",
    "lpips": "its figures are of reconstructions, of which none are made",
}
