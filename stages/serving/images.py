"""POST /v1/images/generations and edits, as OpenAI has them: prompts, and pictures that stand before them, in; PNG in
base64 out, interim pictures as server-sent events.

What OpenAI's has not: `seed` in requests and answers, and the choices of sampling that `omniloom sample` has, by its
options' names (`steps`, `guidance`, `objective`, `sampler`...).
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from omniloom.stages.inference import marks
from omniloom.stages.serving.errors import wrong
from omniloom.stages.serving.events import server_sent
from omniloom.stages.serving.fields import (
    DRAWING,
    check_count,
    check_model,
    check_prompt,
    chosen,
    drawn_size,
    first_seed,
    option_fields,
)
from omniloom.stages.serving.jobs import Event, Interim, Job, Made
from omniloom.stages.serving.service import Service

if TYPE_CHECKING:
    import numpy as np

MOST_INTERIM = 3  # as OpenAI's
CODES = ("temperature", "top_k", "top_p")  # of codes, which some objectives draw
_OPTIONS = (*DRAWING, *CODES)
_BEFORE = "image_guidance_scale"  # guides by the pictures before the prompt


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = 1
    size: str | None = None
    seed: int | None = None
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=MOST_INTERIM)
    user: str | None = None


ImagesRequest: Any = create_model("ImagesRequest", __base__=_Fields, **option_fields(_OPTIONS))
EditsRequest: Any = create_model("EditsRequest", __base__=ImagesRequest, **option_fields([_BEFORE]))


def jobs(request: Any, service: Service, images: tuple[np.ndarray, ...] = ()) -> list[Job]:
    """Those of a request, which `ApiError` tells what is wrong with."""
    facts, limits = service.facts, service.limits
    check_model(request.model, facts)
    check_count(request.n, limits, request.stream)
    check_prompt("prompt", request.prompt, limits)
    if request.partial_images and not request.stream:
        raise wrong("partial_images", "goes with stream")
    sampling = chosen(request.model_dump(), (*_OPTIONS, _BEFORE), limits)
    if size := drawn_size(request.size, facts, limits):
        sampling["size"] = size
    job = Job("draw", request.prompt, images, sampling=sampling, interim=request.partial_images)
    seed = first_seed(request.seed, request.n)
    return [replace(job, seed=seed + number) for number in range(request.n)]


async def answer(request: Any, service: Service, images: tuple[np.ndarray, ...] = ()) -> dict[str, Any]:
    asked = jobs(request, service, images)
    made = await service.make(asked)
    return {
        "created": int(time.time()),
        "data": [{"b64_json": _png(job, one, service), "seed": job.seed} for job, one in zip(asked, made, strict=True)],
        "output_format": "png",
        "size": _size(made[0].parts[0]),
        "usage": _usage(sum(one.prompt_tokens for one in made), sum(one.tokens for one in made)),
    }


async def stream(request: Any, service: Service, images: tuple[np.ndarray, ...] = ()) -> AsyncIterator[bytes]:
    """Server-sent events; what is wrong with the request is raised before the first."""
    (job,) = jobs(request, service, images)
    doing, number = "image_edit" if images else "image_generation", 0
    async for event in service.run(job):
        kind, fields = _told(event, job, service, number)
        number += isinstance(event, Interim)
        yield server_sent({"type": f"{doing}.{kind}", "created_at": int(time.time()), **fields}, named=True)


def _told(event: Event, job: Job, service: Service, number: int) -> tuple[str, dict[str, Any]]:
    about = {"output_format": "png", "quality": "auto", "background": "opaque"}
    if isinstance(event, Interim):
        png = encoded(event.picture, service.facts.made_by, job)
        return "partial_image", {"b64_json": png, "partial_image_index": number, "size": _size(event.picture), **about}
    assert isinstance(event, Made)
    usage = _usage(event.prompt_tokens, event.tokens)
    fields = {"b64_json": _png(job, event, service), "seed": job.seed, "size": _size(event.parts[0]), "usage": usage}
    return "completed", {**fields, **about}


def _png(job: Job, made: Made, service: Service) -> str:
    return encoded(made.parts[0], service.facts.made_by, job, made)


def encoded(picture: Any, made_by: Any, job: Job, made: Made | None = None) -> str:
    """A PNG with the mark of what a model made, in base64."""
    return base64.b64encode(marked_png(picture, made_by, job, made)).decode()


def marked_png(picture: Any, made_by: Any, job: Job, made: Made | None = None) -> bytes:
    """As `omniloom sample` writes it."""
    from omniloom.stages.data.media.decode import encode_png

    return encode_png(picture, marks.mark(made_by, job.prompt, job.seed, made.visual if made else None))


def _size(picture: Any) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _usage(prompt: int, drawn: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"text_tokens": prompt, "image_tokens": 0},
        "output_tokens": drawn,
        "total_tokens": prompt + drawn,
    }
