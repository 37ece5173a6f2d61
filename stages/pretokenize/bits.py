"""How many bits a pixel's share of a picture takes: as codes, as latents, and without loss as PNG and WebP.

Codes say less than the picture they stand for. How much less is the gap between what a lossless coder needs for the
same pictures at the same size and what the codes can say at most: log2 of the vocabulary each. Their entropy is what
they do say, and what it is where a neighbour is known what they say beside that neighbour.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data import records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import decode_record
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.data.order import hash_seed
from omniloom.stages.pretokenize.config import Config

_PICTURES = 256  # that are written without loss
_SHARDS = 8  # of which these are, and codes whose neighbours are looked at
_CODES = 1 << 20
_THREADS = 2


@dataclass(frozen=True)
class Lossless:
    """Bytes of some pictures of a corpus, at the size that they are encoded at."""

    pictures: int
    pixels: int
    png: int
    webp: int


def lossless(corpus: Artifact, config: Config, patch_size: int) -> Lossless:
    """Of up to 256 pictures from shards all over the corpus: those of the lowest ids, which are hashes."""
    aspects = Aspects(config.aspects, patch_size)

    def sizes(given: tuple[dict, dict | None]) -> tuple[int, int, int]:
        record, segment = given
        held = segment or record
        shape = aspects.shape(aspects.bucket(held["width"], held["height"]), config.image_size)
        return written(decode_record(record, shape, 1, segment)[0])

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lossless") as pool:
        found = list(pool.map(sizes, _drawn(corpus.uri)))
    pixels, png, webp = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0, 0)
    return Lossless(len(found), pixels, png, webp)


def written(picture: np.ndarray) -> tuple[int, int, int]:
    """Pixels of a picture, uint8 (H, W, 3), and its bytes as PNG and as lossless WebP."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "WEBP", lossless=True)
    return picture.shape[0] * picture.shape[1], len(encode_png(picture)), len(sink.getvalue())


def _drawn(uri: str) -> Iterator[tuple[dict, dict | None]]:
    """Pictures: records, or documents each with one of its segments."""
    left, wanted = _PICTURES, ("id", "kind", "media", "segments", "frames", "width", "height", "source", "path")
    for shard in spread_out(records.shards(uri)):
        ids = [row["id"] for row in records.iterate_shard(shard, kinds=("image", "document"), columns=("id",))]
        chosen = set(sorted(ids)[: -(-_PICTURES // _SHARDS) if len(ids) < left else left])
        for row in records.iterate_shard(shard, kinds=("image", "document"), columns=wanted) if chosen else ():
            if row["id"] not in chosen:
                continue
            parts = [None] if row["kind"] == "image" else [s for s in row["segments"] if s["type"] == "image"]
            for segment in parts[:left]:
                left -= 1
                yield row, segment
        if left <= 0:
            return


def spread_out(uris: list[str]) -> list[str]:
    """All of them, neighbours far from each other: as a hash of their places orders them."""
    return [uri for _, uri in sorted((hash_seed(place, 11), uri) for place, uri in enumerate(uris))]


def entropy(times: np.ndarray) -> float:
    """Bits of a draw from what occurred so often each."""
    share = times[times > 0] / times.sum()
    return float((share * -np.log2(share)).sum())


def conditional(output: str, codebook_size: int, shards: Collection[int]) -> dict[str, float] | None:
    """Bits of a code whose left, or upper, neighbour is known, of images: a code length that counts over every second
    picture give to the others, so that it is reached, where a plain estimate would be too low for want of data. None
    where there are too few. `shards` are the numbers of those that hold images."""
    grids: list[np.ndarray] = []
    names = sorted(name for name in storage.list_files(storage.join(output, "tokens")) if _number(name) in shards)
    for uri in spread_out([f"tokens/{name}" for name in names]):
        grids += _grids(storage.join(output, uri), _CODES - sum(grid.size for grid in grids))
        if sum(grid.size for grid in grids) >= _CODES:
            break
    known, asked = grids[::2], grids[1::2]
    if not asked:
        return None
    return {
        name: _bits(_pairs(known, axis), _pairs(asked, axis), codebook_size)
        for name, axis in (("left", 2), ("upper", 1))
        if any(grid.shape[axis] > 1 for grid in known) and any(grid.shape[axis] > 1 for grid in asked)
    }


def _number(name: str) -> int:
    """Of a shard, by its name, SPLIT/shard-00012.arrow."""
    return int(name.rpartition("-")[2].removesuffix(".arrow"))


def _grids(uri: str, room: int) -> list[np.ndarray]:
    """Codes (t, h, w) of a token shard's images, as many as there is room for."""
    grids: list[np.ndarray] = []
    with pa.ipc.open_file(pa.py_buffer(storage.read_bytes(uri))) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            segments = batch.column("segments").filter(pa.compute.is_in(batch.column("kind"), pa.array(["image"])))
            held = segments.flatten()
            codes, sides = held.field("codes"), held.field("grid")
            for place in np.flatnonzero(np.diff(codes.offsets.to_numpy())).tolist():
                if room <= 0:
                    return grids
                grids.append(codes[place].values.to_numpy().reshape(sides[place].as_py()))
                room -= grids[-1].size
    return grids


def _pairs(grids: list[np.ndarray], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and what stands before each along the axis."""
    before = [np.delete(grid, -1, axis).ravel() for grid in grids]
    after = [np.delete(grid, 0, axis).ravel() for grid in grids]
    return np.concatenate(before).astype(np.int64), np.concatenate(after).astype(np.int64)


def _bits(known: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray], size: int) -> float:
    """The mean code length of what is asked: counts of pairs, backed by counts of codes with a weight that is the best
    of a few (a Dirichlet prior of MacKay and Peto 1995)."""

    def times(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        held, counts = np.unique(values, return_counts=True)
        place = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
        return np.where(held[place] == wanted, counts[place], 0)

    alone = (times(known[1], asked[1]) + 0.5) / (len(known[1]) + 0.5 * size)
    pairs = times(known[0] * size + known[1], asked[0] * size + asked[1])
    contexts = times(known[0], asked[0])
    weights = (1, 4, 16, 64, 256, 1024, 4096, 1 << 40)
    return float(min(-np.log2((pairs + w * alone) / (contexts + w)).mean() for w in weights))
