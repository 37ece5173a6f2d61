"""Fields that requests to several endpoints share. In: what a request says, as parsed by its schema. Out: choices of
sampling, pictures, seeds; `ApiError` naming the field that is wrong or beyond a limit.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from omniloom.stages.inference.options import OPTIONS
from omniloom.stages.inference.requests import SEEDS
from omniloom.stages.serving.errors import ApiError, field_of, wrong
from omniloom.stages.serving.jobs import Facts
from omniloom.stages.serving.limits import Limits

if TYPE_CHECKING:
    import numpy as np

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_DRAWN = 4  # times the model's own size, of a picture that is drawn
# Options that a request states in a field of its own, by another name or notation, or that no client may choose.
_OWN = ("size", "num_frames", "predictor", "max_new_tokens")
DRAWING = ("objective", "num_steps", "guidance_scale", "sampler", "confidence_noise")


def option_fields(names: Iterable[str]) -> dict[str, Any]:
    """For `pydantic.create_model`: a field for each option, None where nothing is chosen."""
    return {field_of(name): (OPTIONS[name].knob.kind | None, None) for name in names if name not in _OWN}


def chosen(values: Mapping[str, Any], names: Iterable[str], limits: Limits) -> dict[str, Any]:
    """The choices by option among a request's `values`."""
    given = {name: (field_of(name), values.get(field_of(name))) for name in names}
    return {name: choice(name, field, value, limits) for name, (field, value) in given.items() if value is not None}


def choice(name: str, field: str, value: Any, limits: Limits) -> Any:
    """The value of an option, that a request states in a field."""
    try:
        parsed = OPTIONS[name].parse(value)
    except ValueError as error:
        raise wrong(field, str(error).partition(": ")[2]) from None
    most = {"num_steps": limits.max_steps, "max_new_tokens": limits.max_tokens}.get(name)
    if most is not None and parsed > most:
        raise wrong(field, f"expected at most {most}, got {parsed}")
    return parsed


def check_model(asked: str | None, facts: Facts) -> None:
    if asked is not None and asked != facts.name:
        message = f"model: there is no {asked!r}; this server has {facts.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def check_count(n: int, limits: Limits, stream: bool) -> None:
    if not 1 <= n <= limits.max_n:
        raise wrong("n", f"expected 1 to {limits.max_n}, got {n}")
    if stream and n > 1:
        raise wrong("n", f"expected 1 with stream, got {n}")


def check_prompt(field: str, prompt: str, limits: Limits) -> None:
    if len(prompt) > limits.max_prompt:
        raise wrong(field, f"expected at most {limits.max_prompt} characters, got {len(prompt)}")


def first_seed(seed: int | None, n: int) -> int:
    """Of n answers, whose seeds count up from it; any where none is asked for."""
    if seed is None:
        return secrets.randbelow(2**31)
    if not 0 <= seed <= SEEDS - n:
        raise wrong("seed", f"expected a number from 0, below 2**53 with those of all answers, got {seed}")
    return seed


def drawn_size(size: str | None, facts: Facts, limits: Limits) -> tuple[int, int] | None:
    """ "WxH" as OpenAI writes it -> (height, width); None for the model's own."""
    if size in (None, "auto"):
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", size or "")
    if match is None:
        raise wrong("size", f"expected WIDTHxHEIGHT in pixels or auto, got {size!r}")
    width, height = int(match[1]), int(match[2])
    own = facts.size or (0, 0)
    most = limits.max_drawn_pixels or _DRAWN * own[0] * own[1]
    if width * height > most:
        raise wrong("size", f"expected at most {most} pixels in all, got {size}")
    return height, width


def decode_data_url(field: str, url: str, limits: Limits) -> np.ndarray:
    """A picture in a data URL: uint8 (H, W, 3)."""
    match = _DATA_URL.match(url)
    if match is None:
        shown = url if len(url) < 40 else url[:40] + "..."
        raise wrong(field, f"expected data:image/...;base64,..., got {shown!r}; this server fetches nothing")
    try:
        data = base64.b64decode(url[match.end() :], validate=True)
    except binascii.Error as error:
        raise wrong(field, f"is no base64: {error}") from None
    return decode_sent(field, data, limits)


def decode_sent(field: str, data: bytes, limits: Limits) -> np.ndarray:
    """A picture that was sent, decoded as ingest decodes files: uint8 (H, W, 3)."""
    from omniloom.stages.data.media.decode import DEFAULT_LIMITS, MediaError, decode_image

    pixels = min(limits.max_picture_pixels, DEFAULT_LIMITS.max_pixels)
    allowed = dataclasses.replace(DEFAULT_LIMITS, max_bytes=limits.max_picture_bytes, max_pixels=pixels)
    try:
        return decode_image(data, allowed)
    except MediaError as error:
        too_much = error.code in ("too_large", "too_costly")
        raise wrong(field, str(error), 413 if too_much else 400) from None
