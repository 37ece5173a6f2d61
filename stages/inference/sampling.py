"""Sampling from a trained model on disk: text, images and videos from text and images, apart or in turn.

In: a train artifact (or its `model` folder, on any filesystem), requests and options. Out: lines of text, files that
carry the mark of what a model made, which ingest reads, and JSON lines that say in order what was made:
{"prompt", "images" where there were any, "seed", "segments": [{"text": ...} | {"image": FILE} | {"video": FILE}]}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omniloom.infra import storage
from omniloom.infra.artifacts import check_folder, require_finished
from omniloom.infra.errors import InputError
from omniloom.stages.inference import marks
from omniloom.stages.inference.loops import without_loop
from omniloom.stages.inference.options import text_sampling, visual_sampling
from omniloom.stages.inference.requests import Options, Request

if TYPE_CHECKING:
    from omniloom.models.model import OmniLoom
    from omniloom.models.unified.generation.sampling import VisualSampling

RECORDS = "samples.jsonl"
_STEM_BYTES = 120  # of a name, which may have 255 with its numbers and its ending
# Of text that is not described: its likeliest tokens go round in circles.
_FREELY = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Sample:
    """One sample to make, by the choices in `sampling`; `name` is its files' without their endings."""

    request: Request
    task: str
    seed: int
    name: str
    sampling: Mapping[str, Any]

    @property
    def together(self) -> tuple:
        """The options that samples of one batch have in common."""
        return self.task, bool(self.request.images), sorted(self.sampling.items())


def load(model: str, device: str | None = None) -> OmniLoom:
    """The model in a train artifact or model folder."""
    import torch

    from omniloom.models.model import OmniLoom

    return OmniLoom.load(locate(model), device or ("cuda" if torch.cuda.is_available() else "cpu"))


def locate(model: str) -> Path:
    """The folder on this machine of the model in a train artifact or model folder; InputError where there is none."""
    uri = storage.absolute(model)
    for candidate in (uri, storage.join(uri, "model")):
        weights = storage.join(candidate, "unified.safetensors")
        if storage.exists(weights):
            require_finished(candidate)
            # A model that is trained again under the same name is another: the copy is named by place and state.
            fs, path = storage.filesystem(weights)
            digest = hashlib.sha256(f"{candidate} {fs.checksum(path)}".encode()).hexdigest()
            folder = storage.localize(candidate, f"model-{digest[:32]}")
            check_folder(candidate, str(folder))
            return folder
    raise InputError("holds no model; expected a train artifact or its model folder", field="MODEL", file=model)


def sample(
    model: str, requests: Sequence[Request], options: Options, out: Path, records: Path | None = None
) -> Iterator[str]:
    """Do what the requests ask; gives a line for each text, and the path of each file that was written. `records`: the
    file of JSON lines; by default `RECORDS` in `out` for several requests, and for text and pictures in turn."""
    for request in requests:
        request.pictures()  # a bad one is told before anything is made
    samples = _samples(requests, options)
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder, {out} is a file", field="--out")
    loom, made_by = load(model), marks.identity(model)
    groups = [list(group) for _, group in groupby(samples, lambda made: made.together)]
    samplers = [Sampler(loom, group[0], options.count) for group in groups]
    if records is None and (len(requests) > 1 or options.task == "interleave"):
        records = unused(out / RECORDS)
    if records:
        records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("w", encoding="utf-8") if records else nullcontext() as log:
        for group, sampler in zip(groups, samplers, strict=True):
            for at in range(0, len(group), loom.batch_size):
                part = group[at : at + loom.batch_size]
                for made, segments in zip(part, sampler.make(part), strict=True):
                    written = [
                        _write(
                            segment,
                            made,
                            number if len(segments) > 1 else None,
                            out,
                            loom.config.fps,
                            marks.mark(made_by, made.request.prompt, made.seed, sampler.visual),
                        )
                        for number, segment in enumerate(segments)
                    ]
                    yield from _lines(made, written)
                    if log:
                        print(json.dumps(_record(made, written), ensure_ascii=False), file=log, flush=True)


def _samples(requests: Sequence[Request], options: Options) -> list[Sample]:
    samples, with_images = [], any(request.images for request in requests)
    for number, request in enumerate(requests):
        stem = re.sub(r"[^\w]+", "-", request.prompt.lower()).strip("-")[:60]
        stem = stem.encode()[:_STEM_BYTES].decode(errors="ignore") or "sample"
        if len(requests) > 1:
            stem = f"{number:04d}-{stem}"
        first = options.seed + number * options.count if request.seed is None else request.seed
        task, chosen = options.task or ("text" if request.images else "draw"), options.chosen(request)
        own = "image_guidance_scale" in request.sampling
        if "image_guidance_scale" in chosen and not (request.images if own else with_images):
            message = "guides by the pictures before the prompt, of which there are none; goes with --image"
            raise request.error(ValueError(f"image_guidance_scale: {message}"))
        seeds = range(first, first + options.count)
        samples += [Sample(request, task, seed, f"{stem}-{seed}", chosen) for seed in seeds]
    return samples


class Sampler:
    """Makes samples like `like`, of `count` a request; `InputError` naming the choice that does not fit the model."""

    def __init__(self, loom: OmniLoom, like: Sample, count: int):
        self.loom, self.task, chosen = loom, like.task, like.sampling
        # Text that is told no temperature is free to repeat itself, at 0 more so than at any other.
        self.cut = "temperature" not in chosen
        self.text = text_sampling(freely(chosen, like.task == "text" and bool(like.request.images), count))
        self.visual = visual_sampling(chosen, loom)
        if like.task != "text" or like.request.images:  # a model of text alone knows no pictures
            self.visual = resolve(loom, self.visual, like.request)

    def make(self, samples: Sequence[Sample]) -> list[list[str | np.ndarray]]:
        """The parts of each sample: texts, images (H, W, 3), videos (T, H, W, 3)."""
        return [
            [without_loop(part) if self.cut and isinstance(part, str) else part for part in parts]
            for parts in self._make(samples)
        ]

    def _make(self, samples: Sequence[Sample]) -> list[list[str | np.ndarray]]:
        loom, prompts = self.loom, [made.request.prompt for made in samples]
        shared: dict[str, Any] = {
            "images": [made.request.pictures() for made in samples],
            "seeds": [made.seed for made in samples],
        }
        if self.task == "text":
            return [[text] for text in loom.text_to_text(prompts, self.text, self.visual, **shared)]
        if self.task == "interleave":
            return loom.interleaved(prompts, self.text, self.visual, **shared)
        draw = loom.text_to_video if self.task == "video" else loom.text_to_image
        return [[picture] for picture in draw(prompts, self.visual, **shared)]


def freely(chosen: Mapping[str, Any], described: bool, count: int) -> Mapping[str, Any]:
    """The choices of sampling a text, with those that count where no temperature is chosen: the likeliest tokens for
    a single description of pictures."""
    return chosen if "temperature" in chosen or described and count == 1 else {**_FREELY, **chosen}


def resolve(loom: OmniLoom, visual: VisualSampling, request: Request = Request("-")) -> VisualSampling:
    """As `OmniLoom.resolve`; `InputError` naming MODEL where it knows no pictures, or what made the choice."""
    if not loom.config.objectives:
        raise InputError("was trained on text alone and knows no pictures; ask it with --text", field="MODEL")
    try:
        return loom.resolve(visual)
    except ValueError as error:
        raise request.error(error) from None


def unused(path: Path) -> Path:
    """`path`, or one beside it with a number at its end: what an earlier call has made is kept."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.stem.removesuffix(f'_{number - 1}')}_{number}{path.suffix}")
    return path


def _write(
    segment: str | np.ndarray, made: Sample, number: int | None, out: Path, fps: float, mark: dict[str, Any]
) -> dict[str, str]:
    """A text as it is; a picture as a marked file."""
    from omniloom.stages.data.media.decode import encode_mp4, encode_png

    if isinstance(segment, str):
        return {"text": segment}
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
