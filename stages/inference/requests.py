"""Requests to a trained model. In: the command line's options, and a file of requests. Out: `Request`s and
`Options`, checked as far as that needs no model; `InputError` names the option, or the file and line.

A file of requests holds one JSON object a line: {"prompt": TEXT, "image": FILE or [FILE, ...], "seed": NUMBER} and
any of `stages.inference.options.OPTIONS` by its name ("num_steps": 8), each of them optional as on the command line,
which holds for what a line does not say; files are found from the folder that the file lies in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from omniloom.infra.errors import InputError
from omniloom.stages.inference.options import OPTIONS, option_error, text_sampling, visual_sampling

Task = Literal["draw", "video", "text", "interleave"]
_FIELDS = ("prompt", "image", "seed", *OPTIONS)
SEEDS = 2**53  # below it a seed is the same number in every file format


@dataclass(frozen=True)
class Request:
    """`sampling` are the choices that it makes itself, by option; `where` it stands, for errors: the field and the file
    of an `InputError`."""

    prompt: str = ""
    images: tuple[Path, ...] = ()
    seed: int | None = None
    where: tuple[str, str | None] = ("--prompt", None)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.images and not self.prompt:
            raise InputError("is missing: what to draw or to go on from", field=self.where[0], file=self.where[1])

    def error(self, error: ValueError) -> InputError:
        """A "name: message" about a choice of sampling, with the line or the option that made it."""
        return self.own_error(error) if str(error).partition(": ")[0] in self.sampling else option_error(error)

    def own_error(self, error: ValueError) -> InputError:
        """A "name: message" about the choices in `sampling`."""
        name, _, message = str(error).partition(": ")
        return InputError(message, field=f"{self.where[0]}: {name}", file=self.where[1])

    def pictures(self) -> list[np.ndarray]:
        """The images, decoded: uint8 (H, W, 3)."""
        from omniloom.stages.data.media.decode import MediaError, decode_image

        decoded = []
        for image in self.images:
            try:
                decoded.append(decode_image(image.read_bytes()))
            except (OSError, MediaError) as error:
                field, file = self.where if self.where[1] else ("--image", None)
                raise InputError(f"{image} is no readable picture: {error}", field=field, file=file) from None
        return decoded


@dataclass(frozen=True)
class Options:
    """Options that all requests share, as on the command line.

    task      None describes where there are images, and draws an image where there are none
    sampling  choices by option, of which each request may make others. Without a temperature the likeliest tokens are
              taken where one description is asked for, and 0.8 within 0.95 of the probability for any other text
    """

    task: Task | None = None
    count: int = 1
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed + self.count > SEEDS:
            raise InputError(f"expected a number below 2**53, less --count, got {self.seed}", field="--seed")
        try:
            self._check(self.sampling)
        except ValueError as error:
            raise option_error(error) from None

    def chosen(self, request: Request) -> dict[str, Any]:
        """The request's choices by option, over those that all share. What is wrong without a model is told here."""
        chosen = {**self.sampling, **request.sampling}
        try:
            self._check(chosen)
        except ValueError as error:  # without the request's there is none
            raise request.own_error(error) from None
        return chosen

    def _check(self, chosen: Mapping[str, Any]) -> None:
        text_sampling(chosen)
        visual_sampling(chosen)
        if "num_frames" in chosen and self.task not in ("video", "interleave"):
            raise ValueError("num_frames: goes with --video or --interleave")


def chosen_task(**flags: bool) -> Task | None:
    """The one that is set."""
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in chosen)} exclude each other")
    return cast(Task, chosen[0]) if chosen else None


def read_requests(path: Path) -> list[Request]:
    """The requests of a file, in order."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # prompts may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", field="--prompts", file=str(path)) from None
    requests = [_request(line, f"line {number}", path) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise InputError("holds no requests", field="--prompts", file=str(path))
    return requests


def _request(line: str, where: str, path: Path) -> Request:
    def wrong(message: str, field: str | None = None) -> InputError:
        return InputError(message, field=f"{where}: {field}" if field else where, file=str(path))

    try:
        values: Any = json.loads(line)
    except ValueError as error:
        raise wrong(f"is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise wrong(f"expected an object with {', '.join(_FIELDS)}, got {values!r}")
    if unknown := set(values) - set(_FIELDS):
        raise wrong(f"unknown field; the fields are {', '.join(_FIELDS)}", min(unknown))
    prompt, image, seed = (values.pop(name, None) for name in ("prompt", "image", "seed"))
    if not isinstance(prompt, str | None):
        raise wrong(f"expected text, got {prompt!r}", "prompt")
    if not isinstance(seed, int | None) or isinstance(seed, bool):
        raise wrong(f"expected an integer, got {seed!r}", "seed")
    if seed is not None and not 0 <= seed < SEEDS:
        raise wrong(f"expected a number from 0 to 2**53, got {seed}", "seed")
    images = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) for name in images):
        raise wrong(f"expected a file or a list of files, got {image!r}", "image")
    try:
        sampling = {
            name: OPTIONS[name].parse(value, path.parent) for name, value in values.items() if value is not None
        }
    except ValueError as error:
        name, _, message = str(error).partition(": ")
        raise wrong(message, name) from None
    return Request(prompt or "", tuple(path.parent / name for name in images), seed, (where, str(path)), sampling)
