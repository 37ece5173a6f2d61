"""What is asked of a trained model. In: the command line's options, and a file of requests. Out: `Request`s and
`Options`, checked as far as that needs no model; `InputError` names the option, or the file and line.

A file of requests holds one JSON object a line: {"prompt": TEXT, "image": FILE or [FILE, ...], "seed": NUMBER}, each of
them optional as on the command line; files are found from the folder that the file lies in.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omniloom.infra.errors import InputError

Task = Literal["draw", "video", "text", "interleave"]
_FIELDS = ("prompt", "image", "seed")
SEEDS = 2**53  # below it a seed is the same number in every file format


@dataclass(frozen=True)
class Request:
    """`where` it stands, for errors: the field and the file of an `InputError`."""

    prompt: str = ""
    images: tuple[Path, ...] = ()
    seed: int | None = None
    where: tuple[str, str | None] = ("--prompt", None)

    def __post_init__(self) -> None:
        if not self.images and not self.prompt:
            raise InputError("is missing: what to draw or to go on from", field=self.where[0], file=self.where[1])

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
    """How it is done, as on the command line. task: None describes where there are images, and draws an image where
    there are none; temperature: None takes the likeliest tokens where one description is asked for, 0.8 within 0.95 of
    the probability for any other text, and draws codes at 1."""

    task: Task | None = None
    count: int = 1
    seed: int = 0
    objective: str | None = None
    num_steps: int = 20
    guidance_scale: float = 2.0
    image_guidance_scale: float | None = None
    sampler: str = "euler"
    predictor: Path | None = None
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        from omniloom.models.unified.diffusion.samplers import SAMPLERS
        from omniloom.models.unified.representations import OBJECTIVES

        # What is known without the model is told before it is loaded.
        for field, value, known in (("--sampler", self.sampler, SAMPLERS), ("--objective", self.objective, OBJECTIVES)):
            if value is not None and value not in known:
                raise InputError(f"expected one of {', '.join(known)}, got {value!r}", field=field)
        if self.seed + self.count > SEEDS:
            raise InputError(f"expected a number below 2**53, less --count, got {self.seed}", field="--seed")
        if (self.sampler == "amed") != (self.predictor is not None):
            raise InputError(
                "goes with --sampler amed, and amed with the file that `omniloom sampler` wrote", field="--predictor"
            )
        if self.num_frames is not None and self.task not in ("video", "interleave"):
            raise InputError("goes with --video or --interleave", field="--frames")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"expected a probability above 0, got {self.top_p}", field="--top-p")


def chosen_task(**flags: bool) -> Task | None:
    """The one that is set."""
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in chosen)} exclude each other")
    return chosen[0] if chosen else None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "HxW" -> (height, width)."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise InputError(f"expected height x width in pixels, such as 256x384, got {text!r}", field="--size")
    return int(found[1]), int(found[2])


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
    prompt, image, seed = (values.get(name) for name in _FIELDS)
    if not isinstance(prompt, str | None):
        raise wrong(f"expected text, got {prompt!r}", "prompt")
    if not isinstance(seed, int | None) or isinstance(seed, bool):
        raise wrong(f"expected an integer, got {seed!r}", "seed")
    if seed is not None and not 0 <= seed < SEEDS:
        raise wrong(f"expected a number from 0 to 2**53, got {seed}", "seed")
    images = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) for name in images):
        raise wrong(f"expected a file or a list of files, got {image!r}", "image")
    return Request(prompt or "", tuple(path.parent / name for name in images), seed, (where, str(path)))
