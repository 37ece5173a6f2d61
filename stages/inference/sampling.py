"""Sampling from a trained model on disk: text, images and videos from text and images, apart or in turn.

In: a train artifact (or its `model` folder, on any filesystem), requests and options. Out: lines of text, files that
carry the mark of what a model made, which ingest reads, and JSON lines that say in order what was made:
{"prompt", "images" where there were any, "seed", "segments": [{"text": ...} | {"image": FILE} | {"video": FILE}]}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniloom.infra import storage
from omniloom.infra.artifacts import check_folder
from omniloom.infra.errors import InputError
from omniloom.stages.inference.loops import without_loop
from omniloom.stages.inference.requests import Options, Request

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom

RECORDS = "samples.jsonl"
_STEM_BYTES = 120  # of a name, which may have 255 with its numbers and its ending
# Of text that is not described: its likeliest tokens go round in circles.
_FREELY = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Sample:
    """One sample to make; `name` is its files' without their endings."""

    request: Request
    task: str
    seed: int
    name: str


def load(model: str, device: str | None = None) -> OmniLoom:
    """The model in a train artifact or model folder."""
    import torch

    from omniloom.models.model import OmniLoom

    uri = storage.absolute(model)
    for candidate in (uri, storage.join(uri, "model")):
        weights = storage.join(candidate, "unified.safetensors")
        if storage.exists(weights):
            # A model that is trained again under the same name is another: the copy is named by place and state.
            fs, path = storage.filesystem(weights)
            digest = hashlib.sha256(f"{candidate} {fs.checksum(path)}".encode()).hexdigest()
            folder = storage.localize(candidate, f"model-{digest[:32]}")
            check_folder(candidate, str(folder))
            return OmniLoom.load(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    raise InputError("holds no model; expected a train artifact or its model folder", field="MODEL", file=model)


def sample(
    model: str, requests: Sequence[Request], options: Options, out: Path, records: Path | None = None
) -> Iterator[str]:
    """Do what the requests ask; gives a line for each text, and the path of each file that was written. `records`: the
    file of JSON lines; by default `RECORDS` in `out` for several requests, and for text and pictures in turn."""
    for request in requests:
        request.pictures()  # a bad one is told before anything is made
    with_images = any(request.images for request in requests)
    if options.image_guidance_scale is not None and not with_images:
        raise InputError(
            "guides by the pictures before the prompt, of which there are none; goes with --image",
            field="--image-guidance",
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder, {out} is a file", field="--out")
    samples = _samples(requests, options)
    loom = load(model)
    how = Sampler(loom, options, {made.task for made in samples}, with_images)
    if records is None and (len(requests) > 1 or options.task == "interleave"):
        records = unused(out / RECORDS)
    if records:
        records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("w", encoding="utf-8") if records else nullcontext() as log:
        for (task, described), group in groupby(samples, lambda made: (made.task, bool(made.request.images))):
            group = list(group)
            for at in range(0, len(group), loom.batch_size):
                part = group[at : at + loom.batch_size]
                for made, segments in zip(part, how.make(task, part, described), strict=True):
                    written = [
                        _write(segment, made, number if len(segments) > 1 else None, out, loom.config.fps)
                        for number, segment in enumerate(segments)
                    ]
                    yield from _lines(made, written)
                    if log:
                        print(json.dumps(_record(made, written), ensure_ascii=False), file=log, flush=True)


def _samples(requests: Sequence[Request], options: Options) -> list[Sample]:
    samples = []
    for number, request in enumerate(requests):
        stem = re.sub(r"[^\w]+", "-", request.prompt.lower()).strip("-")[:60]
        stem = stem.encode()[:_STEM_BYTES].decode(errors="ignore") or "sample"
        if len(requests) > 1:
            stem = f"{number:04d}-{stem}"
        first = options.seed + number * options.count if request.seed is None else request.seed
        task = options.task or ("text" if request.images else "draw")
        samples += [Sample(request, task, seed, f"{stem}-{seed}") for seed in range(first, first + options.count)]
    return samples


class Sampler:
    """The options as the model takes them; `InputError` naming the option that does not fit it."""

    def __init__(self, loom: OmniLoom, options: Options, tasks: set[str], with_images: bool):
        self.loom = loom
        how = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
        given = {name: value for name, value in how.items() if value is not None}
        self.options, self.writing = options, {"max_new_tokens": options.max_new_tokens, **given}
        self.pictures: dict[str, Any] = {}  # how they are shown and drawn; a model of text alone knows neither
        if tasks == {"text"} and not with_images:
            return
        objective = check_objective(loom, options.objective)
        check_size(loom, objective, options.size, options.num_frames)
        self.pictures, self.frames = {"objective": objective, "size": options.size}, options.num_frames
        self.drawing = {
            "num_steps": options.num_steps,
            "guidance_scale": options.guidance_scale,
            "image_guidance_scale": options.image_guidance_scale,
            "sampler": options.sampler,
            "predictor": _predictor(loom, objective, options),
            **given,
        }
        try:
            loom.sampling(objective, **self.drawing)
        except ValueError as error:
            name, _, message = str(error).partition(": ")
            raise InputError(message, field=f"--{name}") from None

    def make(self, task: str, samples: Sequence[Sample], with_images: bool) -> list[list[str | np.ndarray]]:
        """What each sample consists of: texts, images (H, W, 3), videos (T, H, W, 3). `with_images`: whether the
        requests have pictures, all of them or none."""
        made = self._make(task, samples, with_images)
        if self.options.temperature is not None:
            return made
        return [
            [without_loop(segment) if isinstance(segment, str) else segment for segment in segments]
            for segments in made
        ]

    def _make(self, task: str, samples: Sequence[Sample], with_images: bool) -> list[list[str | np.ndarray]]:
        likeliest = task == "text" and with_images and self.options.count == 1
        writing = self.writing if likeliest or self.options.temperature is not None else {**_FREELY, **self.writing}
        prompts, seeds = [made.request.prompt for made in samples], [made.seed for made in samples]
        shared = {"images": [made.request.pictures() for made in samples], "seeds": seeds, **self.pictures}
        if task == "text":
            return [[text] for text in self.loom.text_to_text(prompts, **writing, **shared)]
        if task == "interleave":
            return self.loom.interleaved(prompts, **writing, **shared, num_frames=self.frames, sampling=self.drawing)
        if task == "video":
            return [[video] for video in self.loom.text_to_video(prompts, self.frames, **shared, **self.drawing)]
        return [[image] for image in self.loom.text_to_image(prompts, **shared, **self.drawing)]


def check_objective(loom: OmniLoom, objective: str | None) -> str:
    if not loom.config.objectives:
        raise InputError("was trained on text alone and knows no pictures; ask it with --text", field="MODEL")
    if objective not in (None, *loom.config.objectives):
        raise InputError(
            f"expected one of {', '.join(loom.config.objectives)}, which the model was trained with, got {objective!r}",
            field="--objective",
        )
    return objective or loom.config.objectives[0]


def check_size(loom: OmniLoom, objective: str, size: tuple[int, int] | None, num_frames: int | None) -> None:
    for field, frames in (("--size", 1), ("--frames", num_frames or 1)):
        try:
            loom.grid(frames, *(size or loom.config.image_size), objective)
        except ValueError as error:
            raise InputError(f"does not fit the model: {error}", field=field) from None


def _predictor(loom: OmniLoom, objective: str, options: Options):
    if options.predictor is None:
        return None
    from omniloom.models.unified.diffusion.amed import AmedPredictor

    if (diffusion := loom.diffusion(objective)) is None:
        raise InputError(f"{objective} is no diffusion, which amed is for", field="--sampler")
    try:
        predictor = AmedPredictor.load(options.predictor)
        predictor.check(diffusion)
    except ValueError as error:
        raise InputError(str(error).removeprefix("predictor: "), field="--predictor") from None
    return predictor


def unused(path: Path) -> Path:
    """`path`, or one beside it with a number at its end: what an earlier call has made is kept."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.stem.removesuffix(f'_{number - 1}')}_{number}{path.suffix}")
    return path


def _write(segment: str | np.ndarray, made: Sample, number: int | None, out: Path, fps: float) -> dict[str, str]:
    """A text as it is; a picture as a marked file."""
    from omniloom.stages.data.media.decode import encode_mp4, encode_png

    if isinstance(segment, str):
        return {"text": segment}
    mark = {"model": "omniloom", "prompt": made.request.prompt}
    kind, suffix = ("image", "png") if segment.ndim == 3 else ("video", "mp4")
    out.mkdir(parents=True, exist_ok=True)
    path = unused(out / f"{made.name}{'' if number is None else f'-{number}'}.{suffix}")
    path.write_bytes(encode_png(segment, mark) if kind == "image" else encode_mp4(segment, fps, mark))
    return {kind: str(path)}


def _lines(made: Sample, written: list[dict[str, str]]) -> Iterator[str]:
    for number, segment in enumerate(written):
        ((kind, value),) = segment.items()
        goes_on = kind == "text" and not number and not made.request.images
        yield made.request.prompt + value if goes_on else value


def _record(made: Sample, written: list[dict[str, str]]) -> dict[str, Any]:
    images = [str(image) for image in made.request.images]
    return {
        "prompt": made.request.prompt,
        **({"images": images} if images else {}),
        "seed": made.seed,
        "segments": written,
    }
