"""Clips: random access to decoded images and videos of an artifact of records, and batches of them for training.

What a step trains on is a function of (seed, step) alone; a rank takes its slice of it. A step has clips of one kind,
one bucket of aspect ratios and one size, so that nothing is padded (`stages.data.aspects`, `stages.data.order`).
Encoded bytes are read where they lie (`stages.data.in_place`), where the records do on a local disk, and else from a
memory-mapped Arrow file that is written once per machine; decoded clips stay in memory up to a limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from omniloom.infra import disk, storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.once import once
from omniloom.models.cover import cover
from omniloom.stages.data import records
from omniloom.stages.data.arrow import map_table
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.in_place import MappedFile, NotInPlaceError, locate
from omniloom.stages.data.media import decode as media
from omniloom.stages.data.order import BucketOrder
from omniloom.stages.data.spread import spread

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = ("id", "kind", "media", "frames", "caption", "label", "width", "height", "source", "path", "captions")
_SHARD = pa.field("shard", pa.int32())  # the place of a record's shard among those of the artifact
_OPEN = 512  # shards that are mapped at a time
_VALIDATION_BATCH = 16  # clips at once


def _local_table(corpus: Artifact, kind: str, split: str) -> pa.Table:
    """The records of one kind and split with their encoded media, or with where these lie: memory-mapped, of this
    machine's cache."""
    folder = storage.cache_folder() / f"clips-{corpus.digest[:32]}"
    if storage.local_path(corpus.uri):
        with contextlib.suppress(NotInPlaceError):  # records of an older version
            return map_table(
                once(folder / f"{kind}-{split}-places.arrow", lambda file: _locate(corpus, kind, split, file))
            )
    return map_table(once(folder / f"{kind}-{split}-named.arrow", lambda file: _copy(corpus, kind, split, file)))


def _locate(corpus: Artifact, kind: str, split: str, target: Path) -> None:
    columns = [name for name in _COLUMNS if name != "media"]
    fields = [records.SCHEMA.field(name) for name in columns]
    schema = pa.schema([*fields, pa.field("at", pa.int64()), pa.field("length", pa.int64()), _SHARD])
    with disk.writing(str(target)) as sink, pa.ipc.new_file(sink, schema) as writer:
        for number, uri in enumerate(records.shards(corpus.uri)):
            found = locate(uri, cast(Path, storage.local_path(uri)), columns, kind, split)
            writer.write_table(found.append_column(_SHARD, pa.array([number] * len(found), _SHARD.type)))


def _copy(corpus: Artifact, kind: str, split: str, target: Path) -> None:
    schema = pa.schema([records.SCHEMA.field(name) for name in _COLUMNS])
    with disk.writing(str(target)) as sink, pa.ipc.new_file(sink, schema) as writer:
        rows: list[dict] = []
        for row in records.iterate(corpus.uri, kinds=[kind], split=split, columns=_COLUMNS):
            rows.append(row)
            if len(rows) == 256:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def decode(kind: str, data: bytes, shape: tuple[int, int], frames: int, total: int | None = None) -> np.ndarray:
    """uint8 (T, H, W, 3), scaled to cover `shape` (H, W) and cut at the centre: an image has T=1, a video `frames`
    evenly spaced frames of its `total` (counted where not given; a shorter clip repeats some).

    Without limits: ingest has accepted the data under its own. Raises `MediaError` where it cannot be decoded.
    """
    if kind == "image":
        return media.decode_image_to(data, shape, media.NO_LIMITS)[None]
    return media.decode_video(data, media.NO_LIMITS, num_frames=frames, size=shape, total=total)


def decode_record(record: dict, shape: tuple[int, int], frames: int, segment: dict | None = None) -> np.ndarray:
    """`decode` of a record's media, or of a picture in one of its segments. An `InputError` names the record that
    cannot be decoded: a decoder has changed, or the artifact, since ingest decoded it."""
    held = segment or record
    try:
        return decode(
            "image" if segment else record["kind"], held["media"], shape, frames, None if segment else record["frames"]
        )
    except media.MediaError as error:
        raise InputError(
            f"record {record['id'][:12]} ({record['path']} of source {record['source']}) cannot be "
            f"decoded: {error}. Ingest accepted it: run ingest again with this machine's decoders "
            f"(--force ingest), or leave the file out by the source's exclude"
        ) from error


class ClipStore:
    """Decoded clips of one kind and split by index: uint8 (T, H, W, 3), in the shape that `aspects` gives the clip's
    bucket at `size`. The buckets come from the records' width and height, which are those of the picture on display.
    """

    def __init__(
        self, corpus: Artifact, kind: str, split: str, aspects: Aspects, size: int, frames: int, cache_bytes: int
    ):
        self.kind, self.frames = kind, frames if kind == "video" else 1
        self.table = _local_table(corpus, kind, split)
        self._shards = records.shards(corpus.uri) if "at" in self.table.schema.names else []
        self._mapped = lru_cache(_OPEN)(MappedFile)
        self.shapes = [aspects.shape(bucket, size) for bucket in range(len(aspects.names))]
        self.bucket_of = aspects.buckets(*(self.table[name].to_numpy() for name in ("width", "height")))
        self._kept: dict[int, np.ndarray] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> np.ndarray:
        if (clip := self._kept.get(index)) is None:
            record = {name: self.table[name][index].as_py() for name in self.table.schema.names}
            if self._shards:
                file = storage.local_path(self._shards[record["shard"]])
                record["media"] = self._mapped(file).read(record["at"], record["length"])
            clip = decode_record(record, self.shapes[self.bucket_of[index]], self.frames)
            if self._room >= clip.nbytes:  # the first to come stay: each epoch visits all, so no order is better
                self._room -= clip.nbytes
                self._kept[index] = clip
        return clip

    def buckets(self, among: np.ndarray | None = None) -> list[np.ndarray]:
        """The indices of each bucket's clips: of all in rising order or of those `among` them as they come."""
        chosen = np.arange(len(self)) if among is None else among
        return [chosen[self.bucket_of[chosen] == bucket] for bucket in range(len(self.shapes))]

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the clip."""
        return self.shapes[self.bucket_of[index]]

    def spread(self, seed: int, by: Sequence[str] = ("source", "label"), among: np.ndarray | None = None) -> np.ndarray:
        """Indices of all clips, or of those `among` them, of which the first n are a draw of n
        (`stages.data.spread`)."""
        return spread(self.table, by, seed, among)

    def record(self, index: int) -> dict:
        """id, caption and label of the clip."""
        return {name: self.table[name][index].as_py() for name in ("id", "caption", "label")}

    def origin(self, index: int) -> dict:
        """The clip's record, source and file."""
        return {name: self.table[name][index].as_py() for name in ("id", "source", "path")}


class ClipBatches:
    """`at(step)`: this rank's pixels of a step, float32 in [-0.5, 0.5], (B,3,H,W) or (B,3,T,H,W).

    `data` is the tokenizer stage's DataConfig, `patch_size` the model's. Kinds alternate evenly; those of a kind's
    steps are batches of a `BucketOrder`. The next step's clips are decoded in the background.
    """

    def __init__(self, corpus: Artifact, split: str, data, patch_size: int, seed: int, rank: int, ranks: int):
        self.data, self.seed, self.rank, self.ranks = data, seed, rank, ranks
        self.aspects = Aspects(data.aspects, patch_size)
        budget = data.cache_bytes // len(data.kinds)
        self.stores = {
            kind: ClipStore(corpus, kind, split, self.aspects, max(data.sizes), data.frames, budget)
            for kind in data.kinds
        }
        self._orders: dict[str, BucketOrder] = {}
        if split == "train":
            for kind, store in self.stores.items():
                if not len(store):
                    raise ValueError(f"data.kinds: the records hold no {kind} in their train split")
                batch = data.image_batch if kind == "image" else data.video_batch
                self._orders[kind] = BucketOrder(store.buckets(), batch, seed)
        self._ahead: tuple[int, Future] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clips")

    @property
    def position(self) -> dict[str, Any]:
        return {}  # a step's clips are those of its number

    def seek(self, position: dict[str, Any]) -> None:
        pass

    def _turn(self, step: int) -> tuple[str, int]:
        """The kind of a step, and how many steps before it were of that kind."""
        if len(self.data.kinds) == 1:
            return self.data.kinds[0], step
        # Evenly spread rather than drawn: after n steps round(n * ratio) were on images.
        images = round(step * self.data.image_ratio)
        if round((step + 1) * self.data.image_ratio) > images:
            return "image", images
        return "video", step - images

    def _plan(self, step: int) -> tuple[str, np.ndarray, tuple[int, int]]:
        """The kind of a step, the indices of its clips over all ranks, and their (height, width)."""
        kind, number = self._turn(step)
        bucket, indices = self._orders[kind].at(number)
        size = self.data.sizes[np.random.default_rng((self.seed, step, 1)).integers(len(self.data.sizes))]
        return kind, indices, self.aspects.shape(bucket, int(size))

    def _load(self, step: int) -> Tensor:
        kind, indices, shape = self._plan(step)
        mine = np.array_split(indices, self.ranks)[self.rank]
        clips = np.stack([self.stores[kind][int(i)] for i in mine])
        if self.data.flip:
            mirrored = np.random.default_rng((self.seed, step, 2)).random(len(indices)) < 0.5
            chosen = np.array_split(mirrored, self.ranks)[self.rank]
            clips[chosen] = clips[chosen, :, :, ::-1]
        return _scaled(_pixels(kind, clips), shape)

    def at(self, step: int) -> Tensor:
        if self._ahead and self._ahead[0] == step:
            pixels = self._ahead[1].result()
        else:
            pixels = self._load(step)
        self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return pixels

    def batches(self, count: int) -> Iterator[tuple[str, Tensor, list[int]]]:
        """(kind, pixels, their numbers) of this rank's share of `count` clips of each kind, drawn evenly over sources
        and labels, at the largest size and each in its bucket's shape. A rank that has no share of a batch gets one
        clip of it without a number: all ranks have the same batches to run.

        A few clips at a time, of one bucket; kinds in the order of `data.kinds`, buckets in that of `data.aspects`.
        """
        for kind, store in self.stores.items():
            number = 0
            for members in store.buckets(store.spread(self.seed)[:count]):
                for at in range(0, len(members), _VALIDATION_BATCH):
                    batch = members[at : at + _VALIDATION_BATCH]
                    places = np.array_split(np.arange(len(batch)), self.ranks)[self.rank]
                    clips = [store[int(i)] for i in batch[places if len(places) else [0]]]
                    yield kind, _pixels(kind, np.stack(clips)), [number + int(place) for place in places]
                    number += len(batch)

    def origins(self, step: int) -> list[dict[str, Any]]:
        """Where each clip of a step, of all ranks, comes from: the record's id, its source and file."""
        kind, indices, _ = self._plan(step)
        return [self.stores[kind].origin(int(index)) for index in indices]

    def describe(self, step: int) -> str:
        kind, indices, (height, width) = self._plan(step)
        ids = [self.stores[kind].record(int(i))["id"][:12] for i in indices[:8]]
        return f"{len(indices)} {kind}s of {width}x{height} pixels, ids {', '.join(ids)}" + (
            ", ..." if len(indices) > 8 else ""
        )

    def close(self) -> None:
        """Ends the background thread, once it is through with the clips that it is at."""
        self._pool.shutdown(cancel_futures=True)


def _pixels(kind: str, clips: np.ndarray) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 in [-0.5, 0.5], (B,3,H,W) of images, (B,3,T,H,W) of videos."""
    import torch

    from omniloom.models.pixels import half_range

    channels_first = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
    pixels = half_range(torch.empty(channels_first.shape).copy_(channels_first))
    return pixels[:, :, 0] if kind == "image" else pixels


def _scaled(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """(..., H, W) scaled to cover `shape` and cut at the centre: rounding to patches leaves a bucket's shapes at two
    sizes a little different in aspect. Only where a tokenizer is trained at several sizes: from what `media.scaling`
    made at the largest, bilinear, a batch at a time."""
    import torch.nn.functional as F

    if tuple(pixels.shape[-2:]) == shape:
        return pixels
    height, width = cover(pixels.shape[-2], pixels.shape[-1], *shape)
    planes = F.interpolate(pixels.flatten(1, -3), size=(height, width), mode="bilinear", antialias=True)
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    planes = planes[..., top : top + shape[0], left : left + shape[1]].contiguous()
    return planes.unflatten(1, pixels.shape[1:-2])
