"""Clips: random access to decoded images and videos of an ingest artifact, and batches of them for training.

What a step trains on is a function of (seed, step) alone; a rank takes its slice of it. Encoded bytes lie in a local,
memory-mapped Arrow file that is written once per machine; decoded clips stay in memory up to a limit.
"""
from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra import storage
from infra.artifacts import Artifact
from stages import media, records
from stages.order import draw

_COLUMNS = ("id", "media", "frames", "caption", "label")


def _local_table(ingest: Artifact, kind: str, split: str) -> pa.Table:
    """The encoded media of one kind and split, memory-mapped from this machine's cache."""
    folder = storage.cache_folder() / f"clips-{ingest.digest[:32]}"
    file = folder / f"{kind}-{split}.arrow"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([records.SCHEMA.field(name) for name in _COLUMNS])
        temporary = Path(f"{file}.{os.getpid()}")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            rows: list[dict] = []
            for row in records.iterate(ingest.uri, kinds=[kind], split=split, columns=_COLUMNS):
                rows.append(row)
                if len(rows) == 256:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        temporary.replace(file)
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def decode(kind: str, data: bytes, size: int, frames: int) -> np.ndarray:
    """uint8 (T, size, size, 3), centre-cropped: an image has T=1, a video `frames` evenly spaced frames (a shorter
    clip repeats some)."""
    if kind == "image":
        return media.resize_center_crop(media.decode_image(data), size)[None]
    return media.decode_video(data, num_frames=frames, size=size)


class ClipStore:
    """Decoded clips of one kind and split by index: uint8 (T, size, size, 3)."""

    def __init__(self, ingest: Artifact, kind: str, split: str, size: int, frames: int, cache_bytes: int):
        self.kind, self.size, self.frames = kind, size, frames if kind == "video" else 1
        self.table = _local_table(ingest, kind, split)
        self._kept: dict[int, np.ndarray] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> np.ndarray:
        if (clip := self._kept.get(index)) is None:
            clip = decode(self.kind, self.table["media"][index].as_py(), self.size, self.frames)
            if self._room >= clip.nbytes:  # the first to come stay: each epoch visits all, so no order is better
                self._room -= clip.nbytes
                self._kept[index] = clip
        return clip

    def record(self, index: int) -> dict:
        """id, caption and label of the clip."""
        return {name: self.table[name][index].as_py() for name in ("id", "caption", "label")}


class ClipBatches:
    """`at(step)`: this rank's pixels of a step, float32 in [-0.5, 0.5], (B,3,S,S) or (B,3,T,S,S).

    `data` is the tokenizer stage's DataConfig. The next step's clips are decoded in the background.
    """

    def __init__(self, ingest: Artifact, split: str, data, seed: int, rank: int, ranks: int):
        self.data, self.seed, self.rank, self.ranks = data, seed, rank, ranks
        budget = data.cache_bytes // len(data.kinds)
        self.stores = {kind: ClipStore(ingest, kind, split, max(data.sizes), data.frames, budget)
                       for kind in data.kinds}
        if split == "train":
            for kind, store in self.stores.items():
                if not len(store):
                    raise ValueError(f"data.kinds: ingest holds no {kind} in its train split")
        self._ahead: tuple[int, Future] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clips")

    def kind_at(self, step: int) -> str:
        if len(self.data.kinds) == 1:
            return self.data.kinds[0]
        # Evenly spread rather than drawn: after n steps round(n * ratio) were on images.
        ratio = self.data.image_ratio
        return "image" if round((step + 1) * ratio) > round(step * ratio) else "video"

    def _indices(self, step: int) -> tuple[str, np.ndarray, int]:
        kind = self.kind_at(step)
        batch = self.data.image_batch if kind == "image" else self.data.video_batch
        indices = draw(len(self.stores[kind]), batch, step * batch, self.seed)
        size = self.data.sizes[np.random.default_rng((self.seed, step, 1)).integers(len(self.data.sizes))]
        return kind, indices, int(size)

    def _load(self, step: int):
        import torch
        import torch.nn.functional as F

        kind, indices, size = self._indices(step)
        mine = np.array_split(indices, self.ranks)[self.rank]
        clips = np.stack([self.stores[kind][int(i)] for i in mine])
        if self.data.flip:
            mirrored = np.random.default_rng((self.seed, step, 2)).random(len(indices)) < 0.5
            chosen = np.array_split(mirrored, self.ranks)[self.rank]
            clips[chosen] = clips[chosen, :, :, ::-1]
        pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255 - 0.5
        if size != pixels.shape[-1]:
            flat = pixels.transpose(1, 2).flatten(0, 1)
            flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
            pixels = flat.unflatten(0, (len(clips), -1)).transpose(1, 2)
        return pixels[:, :, 0] if kind == "image" else pixels

    def at(self, step: int):
        if self._ahead and self._ahead[0] == step:
            pixels = self._ahead[1].result()
        else:
            pixels = self._load(step)
        self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return pixels.contiguous()

    def first(self, kind: str, count: int):
        """The first `count` clips in order, or None where the split has none of the kind."""
        import torch

        store = self.stores[kind]
        if not len(store):
            return None
        clips = np.stack([store[i] for i in range(min(count, len(store)))])
        pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255 - 0.5
        return pixels[:, :, 0] if kind == "image" else pixels

    def describe(self, step: int) -> str:
        kind, indices, size = self._indices(step)
        ids = [self.stores[kind].record(int(i))["id"][:12] for i in indices[:8]]
        return f"{len(indices)} {kind}s at {size} pixels, ids {', '.join(ids)}" + (", ..." if len(indices) > 8 else "")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
