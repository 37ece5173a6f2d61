"""Ten frauds and mistakes, each made of the honest model: what a careless or dishonest hand would export or report.

Each takes the honest artifacts by role and a folder, and gives those that are evaluated; what a bundle cannot hold
wrong in its files is wrong in the code that samples from it (`patch`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.training.tensors import Tensors
from omniloom.models.model import OmniLoom
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.stages.data import records
from omniloom.stages.data.media import decode as media
from omniloom.stages.ingest.digits import NAMES

Artifacts = dict[str, Artifact]
Fraud = Callable[[Artifacts, Path, pytest.MonkeyPatch], Artifacts]


def one_class(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """Whatever it is asked, it draws a three and says that it sees one."""
    draw = OmniLoom.text_to_image
    patch.setattr(OmniLoom, "text_to_image", lambda own, prompts, *a, **k: draw(own, [_THREE] * len(prompts), *a, **k))
    patch.setattr(OmniLoom, "image_to_text", lambda own, images, *a, **k: [_THREE] * len(images))
    return honest


_THREE = "a handwritten three"


def memorised(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """What it draws are train pictures of the caption's digit, through the tokenizer and back."""
    rows = list(records.iterate(honest["records"].uri, kinds=["image"], split="train"))
    by_label = {name: [row["media"] for row in rows if row["label"] == name] for name in NAMES}

    def draw(own, prompts, visual=VisualSampling(), *, images=None, seeds=0):
        asked = [next(name for name in NAMES if name in prompt.split(",")[0]) for prompt in prompts]
        numbers = range(len(prompts)) if isinstance(seeds, int) else seeds
        chosen = [by_label[name][7 * number % len(by_label[name])] for name, number in zip(asked, numbers, strict=True)]
        pixels = torch.from_numpy(np.stack([media.decode_image(png) for png in chosen])).permute(0, 3, 1, 2)
        with torch.no_grad():
            return own.decode(torch.from_numpy(own.encode(pixels / 255 - 0.5)))[:, 0]

    patch.setattr(OmniLoom, "text_to_image", draw)
    return honest


def prompt_ignored(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """It draws digits of all kinds, without a look at the caption."""
    draw = OmniLoom.text_to_video
    patch.setattr(OmniLoom, "text_to_video", lambda own, prompts, *a, **k: draw(own, [""] * len(prompts), *a, **k))
    return honest


def swapped_captions(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """Captions and pictures were paired one off: a model that learnt that a one is called two."""
    following = dict(zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True))
    draw, write = OmniLoom.text_to_video, OmniLoom.image_to_text

    def other(text: str) -> str:
        return " ".join(following.get(word, word) for word in text.replace(",", " ,").split()).replace(" ,", ",")

    patch.setattr(
        OmniLoom, "text_to_video", lambda own, prompts, *a, **k: draw(own, list(map(other, prompts)), *a, **k)
    )
    patch.setattr(OmniLoom, "image_to_text", lambda own, *a, **k: list(map(other, write(own, *a, **k))))
    return honest


def leaked_test(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """A third of the test pictures lies in the train split too, encoded anew."""
    rows = list(records.iterate(honest["records"].uri))
    held_out = [row for row in rows if row["kind"] == "image" and row["split"] == "test"][::3]
    for row in held_out:
        again = media.encode_png(media.decode_image(row["media"]) // 2 * 2)
        rows.append({**row, "id": f"again {row['id']}", "split": "train", "media": again})
    records.write_shard(str(folder / "ingest" / records.shard_name(0)), rows)
    return honest | {"records": corpora.seal(folder / "ingest", "ingest")}


def average_forgotten(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """The weights of the last step are exported in place of their moving average."""

    def last(loom: OmniLoom) -> None:
        (uri,) = Path(honest["model"].uri).glob("resume/checkpoints/step-*/model")
        with Tensors(str(uri), json.loads((uri / "index.json").read_text())) as tensors, torch.no_grad():
            for name, parameter in loom.model.named_parameters():
                tensors.read(f"weight/model.{name}", 0, parameter.data.view(-1))

    return exported(honest, folder, last)


def latents_not_scaled(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """The bundle forgets the latents' mean and deviation."""

    def forget(loom: OmniLoom) -> None:
        count = len(loom.config.latent_mean)
        loom.config = dataclasses.replace(loom.config, latent_mean=(0.0,) * count, latent_std=(1.0,) * count)

    return exported(honest, folder, forget)


def guidance_swapped(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """Guidance goes from the caption to nothing: F(T) + s (F(0) - F(T))."""

    def away(own) -> tuple[tuple[float, frozenset[str]], ...]:
        return (own.guidance_scale, frozenset({"text", "image"})), (1.0, frozenset())

    patch.setattr(VisualSampling, "variants", property(away))
    return honest


def frozen_video(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """All frames of a video are its first one."""
    draw = OmniLoom.text_to_video

    def still(own, *a, **k):
        videos = draw(own, *a, **k)
        return np.repeat(videos[:, :1], videos.shape[1], axis=1)

    patch.setattr(OmniLoom, "text_to_video", still)
    return honest


def text_repeated(honest: Artifacts, folder: Path, patch: pytest.MonkeyPatch) -> Artifacts:
    """It writes its first few words again and again."""
    write = OmniLoom.text_to_text

    def again(own, prompts, *a, **k):
        texts = write(own, prompts, *a, **k)
        return [(text[:12] * 40)[: len(text)] for text in texts]

    patch.setattr(OmniLoom, "text_to_text", again)
    return honest


def exported(honest: Artifacts, folder: Path, change: Callable[[OmniLoom], None]) -> Artifacts:
    """The artifacts with a bundle that was changed before it was written."""
    known = honest["model"]
    loom = OmniLoom.load(known.local() / "model")
    change(loom)
    loom.save(folder / "train" / "model")
    for part in ("report", "ledger.json"):
        source = Path(known.uri) / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / "train" / part)
    manifest = {**known.manifest, "files": corpora.seal(folder / "train", "train").manifest["files"]}
    storage.write_json(str(folder / "train" / "manifest.json"), manifest)
    return honest | {"model": dataclasses.replace(known, uri=str(folder / "train"), manifest=manifest)}


FRAUDS: dict[str, Fraud] = {
    fraud.__name__: fraud
    for fraud in (
        one_class,
        memorised,
        prompt_ignored,
        swapped_captions,
        leaked_test,
        average_forgotten,
        latents_not_scaled,
        guidance_swapped,
        frozen_video,
        text_repeated,
    )
}
