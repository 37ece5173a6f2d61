"""What a generation is trained on: the corpus' tokens, of whose train pictures a share are those that the generation
before drew for the same captions. In: tokens, a tokenizer, a model's folder. Out: tokens, as `pretokenize` writes them.

A drawn picture is decoded to 8 bits and encoded again, as one that was saved and read. Which documents are replaced
follows from the seed, and is another part of the corpus in each generation: what is real is fresh.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.models.model import OmniLoom
from omniloom.models.patches import pixels_to_patches
from omniloom.models.text import TextTokenizer
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.data import index
from omniloom.stages.data.token_shards import write_shard
from omniloom.stages.data.tokens import StoredSegment, TokenSet
from omniloom.stages.pretokenize.config import Config as PretokenizeConfig
from omniloom.stages.pretokenize.encoders import Encoders

_TOGETHER = 256  # documents that are drawn at a time
_A_SHARD = 4096


@dataclass
class Consumption:
    """The worker's argument; picklable. `model` is the folder of the generation before; tokens go to `output`."""

    tokens: Artifact
    tokenizer: Artifact
    model: str
    share: float
    seed: int
    sampling: dict[str, Any]
    gpus: float
    output: str
    state: str
    progress: Any
    tracker: Any


def consume(job: Consumption) -> None:
    """Write the tokens; what says that they are whole comes last."""
    device = "cuda" if job.gpus and torch.cuda.is_available() else "cpu"
    _Writer(job, device).write()
    counted = {"files": _files(job.output)}
    storage.write_json(storage.join(job.output, "written.json"), counted)


def written(job: Consumption) -> Artifact | None:
    """The tokens where they are whole."""
    counted = storage.read_json(storage.join(job.output, "written.json"))
    if counted is None:
        return None
    manifest = {**job.tokens.manifest, "files": counted["files"]}
    return Artifact(job.tokens.stage, job.tokens.fingerprint, job.output, manifest)


def _files(uri: str) -> list[dict[str, Any]]:
    return [
        {"path": name, "bytes": size, "sha256": storage.sha256(storage.join(uri, name))}
        for name, size in sorted(storage.list_files(uri).items())
    ]


class _Writer:
    def __init__(self, job: Consumption, device: str):
        self.job = job
        self.known = TokenSet(job.tokens, "train")
        self.text = TextTokenizer.load(self.known.text_json)
        self.loom = OmniLoom.load(local_folder(job.model), device)
        settings = PretokenizeConfig.model_validate(job.tokens.manifest["config"])
        self.encoders = Encoders(settings, job.tokenizer, device)
        self.patch = self.known.facts["pixel_patch"]

    def write(self) -> None:
        job, folder = self.job, storage.join(self.job.output, "tokens", "train")
        pictures = self._captioned()
        count = round(job.share * len(pictures))
        replaced = set(np.random.default_rng((job.seed, 51)).permutation(pictures)[:count].tolist())
        lengths = []
        for number, at in enumerate(range(0, len(self.known), _A_SHARD)):
            documents = range(at, min(at + _A_SHARD, len(self.known)))
            uri = storage.join(folder, f"shard-{number:05d}.arrow")
            lengths.append((number, write_shard(uri, self._rows(documents, replaced))))
        with tempfile.TemporaryDirectory() as local:
            index.write(Path(local), lengths)
            storage.copy_tree(local, storage.join(job.output, "index", "train"))
        source = str(job.tokens.local())
        for name in storage.list_files(source):
            if name in ("tokens.json", "text.json") or name.split("/")[:2] in _HELD_OUT:
                storage.write_bytes(storage.join(job.output, name), storage.read_bytes(storage.join(source, name)))

    def _captioned(self) -> list[int]:
        """Documents of one picture that have a caption."""
        found = []
        for number in self.known.indices("image").tolist():
            kinds = [segment.kind for segment in self.known.document(number)]
            if "text" in kinds and kinds.count("visual") == 1:
                found.append(number)
        return found

    def _rows(self, documents: range, replaced: set[int]) -> Iterator[dict[str, Any]]:
        for at in range(0, len(documents), _TOGETHER):
            some = documents[at : at + _TOGETHER]
            drawn = self._drawn([number for number in some if number in replaced])
            for number in some:
                segments = [_stored(segment) for segment in self.known.document(number)]
                if number in drawn:
                    segments = [drawn[number] if part["kind"] == "visual" else part for part in segments]
                origin = {name: self.known.origin(number)[name] for name in ("source", "path")}
                yield {**self.known.row(number), **origin, "segments": segments}
            self.job.progress(at + len(some), len(documents), "documents drawn")

    def _drawn(self, numbers: list[int]) -> dict[int, dict[str, Any]]:
        """By document the segment of its drawn picture, in the shape of the real one."""
        found: dict[int, dict[str, Any]] = {}
        by_shape: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            grid = next(s.grid for s in self.known.document(number) if s.grid)
            patch = self.encoders.tokenizer.config.patch_size
            shape = (grid[1] * patch, grid[2] * patch) if grid[1] > 1 else self.encoders.tokenizer.config.size
            by_shape.setdefault(shape, []).append(number)
        for shape, members in by_shape.items():
            captions = [self._caption(number) for number in members]
            how = self.loom.sampling({**self.job.sampling, "size": shape})
            seeds = [self.job.seed * 1_000_003 + number for number in members]
            pictures = self.loom.text_to_image(captions, how, seeds=seeds)
            size = self.encoders.batch_size
            for at in range(0, len(members), size):
                part = [picture[None] for picture in pictures[at : at + size]]
                segments, _ = self.encoders.encode(part, size).segments(len(part))
                for number, segment, clip in zip(members[at : at + size], segments, part, strict=True):
                    found[number] = {"kind": "visual", "loss": True, **segment, **self._patches(clip)}
        return found

    def _caption(self, number: int) -> str:
        ids = next(segment.text_ids for segment in self.known.document(number) if segment.kind == "text")
        return self.text.decode(ids.tolist())

    def _patches(self, clip: np.ndarray) -> dict[str, Any]:
        if not self.patch:
            return {}
        patches = pixels_to_patches(torch.from_numpy(clip).permute(3, 0, 1, 2)[None], self.patch)
        return {"pixels": patches.numpy().ravel(), "pixel_grid": list(patches.shape[1:4])}


_HELD_OUT = [[folder, split] for folder in ("tokens", "index") for split in ("validation", "test")]


def _stored(segment: StoredSegment) -> dict[str, Any]:
    """A segment as shards take it."""
    if segment.kind == "text":
        return {"kind": "text", "ids": segment.text_ids, "loss": segment.loss}
    arrays = {
        "codes": segment.codes,
        "latents": segment.latents,
        "log_variances": segment.log_variances,
        "pixels": segment.pixels,
        "features": segment.features,
    }
    grids = {"grid": segment.grid, "pixel_grid": segment.pixel_grid, "feature_grid": segment.feature_grid}
    return {
        "kind": "visual",
        "loss": segment.loss,
        **{name: value.ravel() for name, value in arrays.items() if value is not None},
        **{name: list(value) for name, value in grids.items() if value is not None},
    }
