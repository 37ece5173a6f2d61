"""POST /v1/images/edits, as OpenAI has it: a form with pictures and a prompt in, answers as of /v1/images/generations.

The pictures stand before the prompt, as with `omniloom sample --draw --image`; `image_guidance` guides by them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from omniloom.stages.serving.errors import wrong
from omniloom.stages.serving.fields import decode_sent
from omniloom.stages.serving.images import EditsRequest
from omniloom.stages.serving.limits import Limits

if TYPE_CHECKING:
    import numpy as np

_PICTURES = ("image", "image[]")
_TEXTS = ("prompt", "model", "size", "response_format", "output_format", "user", "objective", "sampler")


async def read(request: Request, limits: Limits) -> tuple[Any, tuple[np.ndarray, ...]]:
    """The request of a form, and its pictures; `ApiError` or RequestValidationError tell what is wrong with it."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise wrong(None, "expected a form, multipart/form-data")
    values: dict[str, Any] = {}
    sent: list[tuple[str, bytes]] = []
    async with request.form(max_files=limits.max_pictures + 1, max_part_size=limits.max_picture_bytes + 1) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in _PICTURES:
                    raise wrong(name, "is no picture of this endpoint")
                sent.append((name, await value.read()))
            else:
                values[name] = value if name in _TEXTS else _plain(value)
    if not sent:
        raise wrong("image", "is missing")
    if len(sent) > limits.max_pictures:
        raise wrong("image", f"expected at most {limits.max_pictures} pictures", 413)
    try:
        parsed = EditsRequest.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    return parsed, tuple(decode_sent(name, data, limits) for name, data in sent)


def _plain(value: str) -> Any:
    """A number or truth value of a form, which has texts alone."""
    try:
        return json.loads(value)
    except ValueError:
        return value
