"""Sampling from a trained model on disk: text to image or video, image to text, text to text.

In: a train artifact (or its `model` folder, on any filesystem) and a request. Out: lines of text, or files that carry
the mark of what a model made, which ingest reads.
"""
from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import InputError


@dataclass(frozen=True)
class Request:
    prompt: str = ""
    image: Path | None = None
    video: bool = False
    text: bool = False
    count: int = 1
    num_steps: int = 20
    guidance_scale: float = 2.0
    objective: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        chosen = [name for name, given in (("--image", self.image), ("--video", self.video), ("--text", self.text))
                  if given]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} exclude each other")
        if not self.image and not self.prompt:
            raise InputError("is missing: what to draw or to go on from", field="--prompt")


def load(model: str, device: str | None = None):
    """The model in a train artifact or model folder."""
    import torch

    from models.bundle import OmniLoom

    uri = storage.absolute(model)
    for candidate in (uri, storage.join(uri, "model")):
        weights = storage.join(candidate, "unified.safetensors")
        if storage.exists(weights):
            # A model that is trained again under the same name is another: the copy is named by place and state.
            fs, path = storage.filesystem(weights)
            digest = hashlib.sha256(f"{candidate} {fs.checksum(path)}".encode()).hexdigest()
            folder = storage.localize(candidate, f"model-{digest[:32]}")
            return OmniLoom.load(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    raise InputError("holds no model; expected a train artifact or its model folder", field="MODEL", file=model)


def sample(model: str, request: Request, out: Path) -> list[str]:
    """Do what the request asks; gives a line per sample: a text, or the path of the file that was written."""
    from stages.media import MediaError, decode_image, encode_mp4, encode_png

    picture = None
    if request.image:
        try:
            picture = decode_image(request.image.read_bytes())
        except (OSError, MediaError) as error:
            raise InputError(f"is no readable picture: {error}", field="--image", file=str(request.image)) from None
    loom = load(model)
    seeds = [request.seed + i for i in range(request.count)]
    if not loom.config.objectives and not request.text:
        raise InputError("was trained on text alone and knows no pictures; ask it with --text", field="MODEL",
                         file=model)
    if request.objective not in (None, *loom.config.objectives):
        raise InputError(f"expected one of {', '.join(loom.config.objectives)}, which the model was trained with, got "
                         f"{request.objective!r}", field="--objective")
    writing = {"max_new_tokens": request.max_new_tokens, "temperature": request.temperature, "seeds": seeds}
    if picture is not None:
        return loom.image_to_text([picture] * request.count, prompt=request.prompt, objective=request.objective,
                                  **writing)
    if request.text:
        return [request.prompt + text for text in loom.text_to_text([request.prompt] * request.count, **writing)]
    drawing: dict[str, Any] = {"num_steps": request.num_steps, "guidance_scale": request.guidance_scale, "seeds": seeds,
                               "objective": request.objective}
    prompts = [request.prompt] * request.count
    mark = {"model": "omniloom", "prompt": request.prompt}
    out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w]+", "-", request.prompt.lower()).strip("-")[:60] or "sample"
    lines = []
    if request.video:
        videos = loom.text_to_video(prompts, **drawing)
        files = [(encode_mp4(video, loom.config.fps, mark), "mp4") for video in videos]
    else:
        files = [(encode_png(image, mark), "png") for image in loom.text_to_image(prompts, **drawing)]
    for seed, (data, suffix) in zip(seeds, files, strict=True):
        path = out / f"{stem}-{seed}.{suffix}"
        path.write_bytes(data)
        lines.append(str(path))
    return lines
