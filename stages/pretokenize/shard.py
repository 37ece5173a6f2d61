"""Shards of records into token shards: what each actor of stage `pretokenize` does.

Some shards at a time, one after the other through the same batches, so that a batch ends with what an actor was given,
not with each shard. On the way a document is

    read       texts are tokenized by many, pictures given to the decoding threads, as many as CPUs are reserved
    decoded    its pictures wait for as many of their shape as are encoded together
    encoded    it waits for those before it: rows stand in the order of the records
    written    a record batch at a time; a shard is done when its last document is written

and what is on the way is bounded at every station, whatever the size of a shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import OmniLoomError
from omniloom.models.patches import pixels_to_patches
from omniloom.models.text import TextTokenizer
from omniloom.stages.data import records
from omniloom.stages.data.clips import decode_record
from omniloom.stages.data.token_shards import ShardWriter, shard_writer
from omniloom.stages.pretokenize.config import Config
from omniloom.stages.pretokenize.encoders import Encoders, Pass
from omniloom.stages.pretokenize.index import lengths_uri
from omniloom.stages.pretokenize.stats import Stats, weight

_COLUMNS = (
    *("id", "kind", "split", "media", "captions", "label", "text", "segments", "width", "height", "frames"),
    *("source", "path", "meta"),
)
_TOGETHER = 256  # records whose texts are tokenized together
_TOGETHER_BYTES = 8 << 20
_DECODED_TOGETHER, _DECODED_BYTES = 16, 64 << 10  # small pictures that a decoding thread is given at a time
_MEASURED = 8  # pictures, and videos, of a shard that are decoded again: the first ones
_HELD = 256 << 20  # bytes of documents that wait for one before them, until that no longer waits for a full batch


def _named(error: Exception, record: dict) -> OmniLoomError:
    """An error about one record says which: its source and its path there."""
    if isinstance(error, OmniLoomError):
        return error
    reason = (str(error).strip().splitlines() or [""])[0]
    return OmniLoomError(f"{record['source']}: {record['path']}: {type(error).__name__}: {reason}")


class _InPlace:
    """Does what a thread is to do at once: where the one CPU that is reserved encodes, a thread beside it would take
    its time from that."""

    def submit(self, work: Callable[[], Any]) -> Future:
        done: Future = Future()
        done.set_result(work())
        return done

    def shutdown(self, **_: Any) -> None:
        return None


class _Output:
    """The token shards, one a split, of one shard of records, and what is noted down of them."""

    def __init__(self, owner: ShardTokenizer, index: int):
        self._owner, self.index = owner, index
        channels = owner.encoders.tokenizer.latent_dim if owner.encoders else 0
        self.stats = Stats(channels, weight(index))
        self.expected: int | None = None  # documents, once all are read
        self.pictures: Counter[str] = Counter()  # by kind, as they are read
        self.written = 0
        self._stack = contextlib.ExitStack()
        self._writers: dict[str, ShardWriter] = {}

    def add(self, document: _Document) -> None:
        split = document.split
        if split not in self._writers:
            uri = storage.join(self._owner.output, "tokens", split, f"shard-{self.index:05d}.arrow")
            bf16 = self._owner.config.latents == "bf16"
            self._writers[split] = self._stack.enter_context(shard_writer(uri, bf16))
        self._writers[split].add(document.row, document.words + sum(picture.bytes for picture in document.pictures))
        self.stats.count(document.row, split, document.language)
        self.written += 1

    def close(self) -> None:
        """All is on the disk; what says that the shard is done comes last."""
        self._stack.close()
        for split, writer in self._writers.items():
            storage.write_bytes(lengths_uri(self._owner.state, split, self.index), writer.lengths.to_bytes())
        told = json.dumps(self.stats.to_dict()).encode()
        storage.write_bytes(storage.join(self._owner.state, "shards", f"{self.index:05d}.json"), told)

    def abandon(self, *error: Any) -> None:
        """Nothing of it stays."""
        self._stack.__exit__(*error)


@dataclass(slots=True)
class _Picture:
    document: _Document
    segment: dict
    kind: str
    shape: tuple[int, int]
    frames: int
    measured: bool  # whether the error of its reconstruction is noted
    bytes: int = 0  # of what it was encoded to


@dataclass(slots=True)
class _Document:
    row: dict
    split: str
    language: str
    output: _Output
    words: int = 0  # bytes of its ids
    pictures: list[_Picture] = field(default_factory=list)
    waiting: int = 0  # pictures that are not encoded yet


class ShardTokenizer:
    """An actor of the pool: shards of records in, a token shard per split out of each, with counts and sums."""

    def __init__(self, config: Config, visual: Artifact | None, text_uri: str, output: str, state: str):
        self.config, self.output, self.state = config, output, state
        self.device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        self.threads = max(1, int(config.cpus))
        torch.set_num_threads(self.threads)
        os.environ["RAYON_NUM_THREADS"] = str(self.threads)  # the text tokenizer's; read once, at its first use
        sys.setswitchinterval(1e-3)  # a decoding thread gives way to the one that keeps the device at work
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")  # what decoding threads silence is the process's
        self.encoders = Encoders(config, visual, self.device) if visual else None
        self.text = TextTokenizer.load(storage.read_bytes(text_uri).decode())

    def __call__(self, shard: dict) -> dict:
        """One shard, {index, uri}."""
        return self.tokenize([shard])

    def tokenize(self, shards: list[dict]) -> dict:
        """These shards, each {index, uri}, through the same batches."""
        alone = self.device == "cpu" and self.threads == 1
        pool = _InPlace() if alone else ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            _Passage(self, pool).run(shards)
        finally:
            pool.shutdown(cancel_futures=True)
        return {"done": len(shards)}


class _Passage:
    """Shards on their way through an actor."""

    def __init__(self, owner: ShardTokenizer, pool: ThreadPoolExecutor | _InPlace):
        self.owner, self.config, self.encoders, self._pool = owner, owner.config, owner.encoders, pool
        batch = self.encoders.batch_size if self.encoders else 0
        self._ahead, self._most_ahead = 0, 2 * batch + 4 * owner.threads  # frames that are being decoded
        self._small = min(_DECODED_TOGETHER, max(1, batch // owner.threads))
        self._chosen: list[tuple[_Picture, dict, dict | None]] = []  # that the next thread is given
        self._chosen_bytes = 0
        self._decoding: deque[tuple[list[_Picture], Future]] = deque()
        self._full: dict[tuple[str, tuple[int, int]], list[tuple[_Picture, np.ndarray]]] = {}
        # What the device is at, and of some of those pictures their values and the errors.
        self._flying: tuple[Pass, list[_Picture], list[tuple[_Picture, int, torch.Tensor]]] | None = None
        self._documents: deque[_Document] = deque()  # that are not written, in the order of the records
        self._held = 0
        self._outputs: deque[_Output] = deque()

    def run(self, shards: list[dict]) -> None:
        try:
            for shard in shards:
                self._outputs.append(output := _Output(self.owner, shard["index"]))
                count = 0
                for some in _together(records.iterate_shard(shard["uri"], columns=_COLUMNS)):
                    taken = self._taken(some, output)
                    count += len(taken)
                    for document in self._read(taken, output):
                        self._documents.append(document)
                        self._encode_decoded(self._most_ahead)
                    self._write()
                output.expected = count
            self._encode_decoded(0)
            for key in list(self._full):
                self._encode(key)
            self._land()
            self._write()
        except BaseException as error:
            for output in self._outputs:
                output.abandon(type(error), error, error.__traceback__)
            raise

    def _taken(self, some: list[dict], output: _Output) -> list[dict]:
        """The records but for those with pictures where there is no tokenizer of pictures."""
        if self.encoders:
            return some
        taken = [record for record in some if record["kind"] == "text"]
        if len(taken) < len(some):
            output.stats.add("documents_left_out", len(some) - len(taken))
        return taken

    def _read(self, some: list[dict], output: _Output) -> Iterator[_Document]:
        texts = [_texts(record) for record in some]
        ids = iter(self.owner.text.encode_batch([text for found in texts for text in found]))
        for record, words in zip(some, texts, strict=True):
            document = _Document({}, record["split"], _language(record), output)
            segments = []
            try:
                for picture in _parts(record):
                    if picture is not None:
                        segments.append(self._picture(document, record, picture))
                        continue
                    segments.append({"kind": "text", "ids": (held := np.array(next(ids), np.int32)), "loss": True})
                    document.words += held.nbytes
            except Exception as error:
                raise _named(error, record) from error
            document.row = {
                **{name: record[name] for name in ("id", "kind", "label", "source", "path")},
                "bytes": sum(len(text.encode()) for text in words) + max(0, len(words) - 1),  # with a space between two
                "segments": segments,
            }
            document.waiting = len(document.pictures)
            yield document

    def _picture(self, document: _Document, record: dict, item: dict) -> dict:
        """The segment of a picture, which is now being decoded. `item`: the record, or a document's segment."""
        assert self.encoders is not None  # without it no record with pictures is taken
        kind = "video" if record["kind"] == "video" else "image"
        shape, frames = self.encoders.shape(item, kind), self.config.frames if kind == "video" else 1
        segment: dict[str, Any] = {"kind": "visual", "loss": True, "decoded": frames * shape[0] * shape[1]}
        output = document.output
        picture = _Picture(document, segment, kind, shape, frames, output.pictures[kind] < _MEASURED)
        output.pictures[kind] += 1
        document.pictures.append(picture)
        self._chosen.append((picture, record, None if item is record else item))
        self._chosen_bytes += len(item["media"])
        self._ahead += frames
        if len(self._chosen) >= self._small or self._chosen_bytes >= _DECODED_BYTES:
            self._submit()
        return segment

    def _submit(self) -> None:
        """The pictures that were chosen, to a thread."""
        chosen, self._chosen, self._chosen_bytes = self._chosen, [], 0
        decoded = self._pool.submit(lambda: [self._decode(*some) for some in chosen])
        self._decoding.append(([picture for picture, *_ in chosen], decoded))

    def _decode(self, picture: _Picture, record: dict, item: dict | None) -> tuple[np.ndarray, dict]:
        """In a thread: the pixels, and what is kept of them."""
        try:
            pixels = decode_record(record, picture.shape, self.config.frames, item)
            if not self.config.pixel_patch:
                return pixels, {}
            patches = pixels_to_patches(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None], self.config.pixel_patch)
            return pixels, {"pixels": patches.numpy().ravel(), "pixel_grid": list(patches.shape[1:4])}
        except Exception as error:
            raise _named(error, record) from error

    def _encode_decoded(self, most: int) -> None:
        """Encodes what is decoded until at most so many frames are ahead."""
        while self._ahead > most:
            if not self._decoding:
                self._submit()
            pictures, decoded = self._decoding.popleft()
            for picture, (pixels, kept) in zip(pictures, decoded.result(), strict=True):
                self._ahead -= picture.frames
                if kept:
                    picture.segment |= kept
                    picture.bytes += kept["pixels"].nbytes
                key = picture.kind, picture.shape
                waiting = self._full.setdefault(key, [])
                waiting.append((picture, pixels))
                if len(waiting) == self._encoders.clips(picture.kind):
                    self._encode(key)

    def _encode(self, key: tuple[str, tuple[int, int]]) -> None:
        """What waits of one kind and shape: the device begins with it, and what it had before is taken from it."""
        waiting = self._full.pop(key)
        made = self._encoders.encode([pixels for _, pixels in waiting], self._encoders.clips(key[0]))
        errors = [
            (picture, pixels.size, self._encoders.error(made, place, pixels))
            for place, (picture, pixels) in enumerate(waiting)
            if picture.measured
        ]
        self._land()
        self._flying = made, [picture for picture, _ in waiting], errors
        if self.owner.device == "cpu":
            self._land()

    def _land(self) -> None:
        if self._flying:
            made, pictures, errors = self._flying
            self._flying = None
            segments, each = made.segments(len(pictures))
            for picture, segment in zip(pictures, segments, strict=True):
                picture.segment |= segment
                picture.document.waiting -= 1
                picture.bytes += each
                self._held += picture.bytes
            for picture, size, error in errors:
                picture.segment["error"] = float(error), size

    def _write(self) -> None:
        """The documents that wait for none before them, and the shards that are done by that."""
        while self._documents:
            while self._documents and not self._documents[0].waiting:
                document = self._documents.popleft()
                self._held -= sum(picture.bytes for picture in document.pictures)
                document.output.add(document)
            if self._held <= _HELD or not self._relieve():
                break
        while self._outputs and self._outputs[0].written == self._outputs[0].expected:
            self._outputs[0].close()
            self._outputs.popleft()

    def _relieve(self) -> bool:
        """Encodes what the first document waits for though its batch is not full; False where that is not decoded."""
        wanted = {(picture.kind, picture.shape) for picture in self._documents[0].pictures} & set(self._full)
        for key in wanted:
            self._encode(key)
        self._land()
        return bool(wanted) and not self._documents[0].waiting

    @property
    def _encoders(self) -> Encoders:
        assert self.encoders is not None  # without it no record with pictures is taken
        return self.encoders


def _together(found: Iterator[dict]) -> Iterator[list[dict]]:
    """The records in turn, some at a time."""
    some: list[dict] = []
    size = 0
    for record in found:
        some.append(record)
        size += len(record["media"] or b"") + len(record["text"] or "")
        size += sum(len(s["media"] or b"") + len(s["text"] or "") for s in record["segments"] or ())
        if len(some) == _TOGETHER or size >= _TOGETHER_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _parts(record: dict) -> list[dict | None]:
    """What the document's segments are made of, in their order: None for a text, else what has the picture."""
    if record["kind"] == "text":
        return [None]
    if record["kind"] in ("image", "video"):
        return [*(None for _ in record["captions"] or ()), record]
    return [None if part["type"] == "text" else part for part in record["segments"]]


def _texts(record: dict) -> list[str]:
    """The texts of those segments that are texts."""
    if record["kind"] == "text":
        return [record["text"]]
    if record["kind"] in ("image", "video"):
        return list(record["captions"] or ())
    return [part["text"] for part in record["segments"] if part["type"] == "text"]


def _language(record: dict) -> str:
    """As the record's `meta` has it; empty where it says nothing."""
    meta = record["meta"]
    found = json.loads(meta).get("language") if meta and '"language"' in meta else None
    return found if isinstance(found, str) else ""
