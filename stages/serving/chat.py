"""POST /v1/chat/completions, as OpenAI has it: messages of text and pictures in, text out, with `stream` by tokens.

A trained model goes on from a text. One message of a user is that text as it stands; of several the turns are written
as ingest writes conversations ("User: ...", "Assistant: ..."), and the assistant's next is opened. Pictures stand
before the text, in order. With `modalities: ["text", "image"]` the model draws where it opens a picture; these are
`images` of the message, `[{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from omniloom.stages.inference.sampling import freely
from omniloom.stages.ingest.annotations import conversations
from omniloom.stages.serving.errors import wrong
from omniloom.stages.serving.events import DONE, server_sent
from omniloom.stages.serving.fields import (
    DRAWING,
    check_count,
    check_model,
    check_prompt,
    choice,
    chosen,
    decode_data_url,
    first_seed,
    option_fields,
)
from omniloom.stages.serving.images import encoded
from omniloom.stages.serving.jobs import Job, Made, Written
from omniloom.stages.serving.service import Service

if TYPE_CHECKING:
    import numpy as np

_STRICT = ConfigDict(extra="forbid", strict=True)
_ROLES = {"developer": "system"}  # OpenAI's newer name
_WRITING = ("temperature", "top_k", "top_p")


class Url(BaseModel):
    model_config = _STRICT
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Part(BaseModel):
    model_config = _STRICT
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Url | None = None


class Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(BaseModel):
    model_config = _STRICT
    include_usage: bool = False


class _Fields(BaseModel):
    model_config = _STRICT

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    modalities: list[Literal["text", "image"]] = ["text"]
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None


ChatRequest: Any = create_model("ChatRequest", __base__=_Fields, **option_fields((*DRAWING, *_WRITING)))


@dataclass
class _Asked:
    """Of a request: its text, and its pictures."""

    text: str = ""
    images: list[np.ndarray] = field(default_factory=list)


def jobs(request: Any, service: Service) -> list[Job]:
    """Those of a request, which `ApiError` tells what is wrong with."""
    limits = service.limits
    check_model(request.model, service.facts)
    check_count(request.n, limits, request.stream)
    asked = _read(request.messages, service)
    draws = "image" in request.modalities
    if "text" not in request.modalities:
        raise wrong("modalities", 'expected "text", with or without "image"; pictures alone: /v1/images/generations')
    if request.stream_options and not request.stream:
        raise wrong("stream_options", "goes with stream")
    sampling = chosen(request.model_dump(), (*DRAWING, *_WRITING), limits) | _length(request, service)
    for name in DRAWING:
        if name in sampling and not draws and not (name == "objective" and asked.images):
            raise wrong(next(iter(option_fields([name]))), 'goes with modalities ["text", "image"]')
    described = bool(asked.images) and not draws
    sampling = dict(freely(sampling, described, request.n))
    job = Job("interleave" if draws else "text", asked.text, tuple(asked.images), sampling=sampling)
    seed = first_seed(request.seed, request.n)
    return [replace(job, seed=seed + number, stream=request.stream) for number in range(request.n)]


def _length(request: Any, service: Service) -> dict[str, int]:
    given = [name for name in ("max_tokens", "max_completion_tokens") if getattr(request, name) is not None]
    if len(given) > 1:
        raise wrong("max_tokens", "is max_completion_tokens by its older name; give one of them")
    if not given:
        return {}
    return {"max_new_tokens": choice("max_new_tokens", given[0], getattr(request, given[0]), service.limits)}


def _read(messages: Sequence[Message], service: Service) -> _Asked:
    asked = _Asked()
    said = []
    for number, message in enumerate(messages):
        said.append("".join(_texts(message, f"messages.{number}.content", asked, service)))
    if len(messages) == 1 and messages[0].role == "user":
        asked.text = said[0]
    else:
        roles = [_ROLES.get(message.role, message.role) for message in messages]
        turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        asked.text = "".join(map(str, conversations.parts(turns, "messages", pictures=False))) + "\nAssistant:"
    check_prompt("messages", asked.text, service.limits)
    if not asked.text and not asked.images:
        raise wrong("messages", "are empty: there is nothing to go on from")
    return asked


def _texts(message: Message, where: str, asked: _Asked, service: Service) -> Iterable[str]:
    """The texts of a message; its pictures are added to `asked`."""
    if isinstance(message.content, str):
        yield message.content
        return
    for number, part in enumerate(message.content):
        value = part.text if part.type == "text" else part.image_url
        if value is None or None not in (part.text, part.image_url):
            raise wrong(f"{where}.{number}", f"expected {part.type} and nothing else beside type")
        if isinstance(value, str):
            yield value
            continue
        if len(asked.images) == service.limits.max_pictures:
            raise wrong("messages", f"show more than {service.limits.max_pictures} pictures", 413)
        asked.images.append(decode_data_url(f"{where}.{number}.image_url.url", value.url, service.limits))


async def answer(request: Any, service: Service) -> dict[str, Any]:
    asked = jobs(request, service)
    made = await service.make(asked)
    choices = [
        {"index": number, "message": _message(job, one, service), "finish_reason": one.finish, "logprobs": None}
        for number, (job, one) in enumerate(zip(asked, made, strict=True))
    ]
    # The prompt is counted once, as OpenAI counts it.
    usage = _usage(made[0].prompt_tokens, sum(one.tokens for one in made))
    return {**_head("chat.completion", service), "choices": choices, "usage": usage}


async def stream(request: Any, service: Service) -> AsyncIterator[bytes]:
    """Server-sent events; what is wrong with the request is raised before the first."""
    (job,) = jobs(request, service)
    head = _head("chat.completion.chunk", service)

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return server_sent({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    begins: dict[str, Any] = {"role": "assistant"}
    async for event in service.run(job):
        if isinstance(event, Written):
            yield chunk(begins | _delta(event.part, job, service))
            begins = {}
        elif isinstance(event, Made):
            yield chunk({**begins, **({"content": ""} if begins else {})}, event.finish)
            if request.stream_options and request.stream_options.include_usage:
                yield server_sent({**head, "choices": [], "usage": _usage(event.prompt_tokens, event.tokens)})
    yield DONE


def _delta(part: Any, job: Job, service: Service) -> dict[str, Any]:
    return {"content": part} if isinstance(part, str) else {"images": [_image(part, job, service)]}


def _message(job: Job, made: Made, service: Service) -> dict[str, Any]:
    text = "".join(part for part in made.parts if isinstance(part, str))
    images = [_image(part, job, service, made) for part in made.parts if not isinstance(part, str)]
    return {"role": "assistant", "content": text, "refusal": None, **({"images": images} if images else {})}


def _image(picture: Any, job: Job, service: Service, made: Made | None = None) -> dict[str, Any]:
    png = encoded(picture, service.facts.made_by, job, made)
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}


def _head(kind: str, service: Service) -> dict[str, Any]:
    made = {"object": kind, "created": int(time.time()), "model": service.facts.name}
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", **made}


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
