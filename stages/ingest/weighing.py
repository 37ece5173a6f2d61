"""Weighing: how much of a shard small files of texts take, of which it holds many.

Texts take less once they are compressed, and how much less is not to be seen from their files. So where more of a
source is to be read than a shard has bytes, some of its files are read and written to memory as a shard: the others are
taken to be like them. What is known of an item is in it: "held", bytes of a shard, and "packed", how many a byte of
rows takes (large files are weighed as they are cut, see `stages.ingest.cutting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.cutting import packing

if TYPE_CHECKING:
    from omniloom.stages.ingest.readers import Reader

_FILES = 512  # that are read, at most
_BYTES = 1 << 20  # of files that are read
_Weight = tuple[float, float]  # bytes of a shard that a byte of files takes, and a byte of rows


def weighed(items: Iterable[dict], config: Config) -> Iterator[dict]:
    """The same items in the same order. Held are as many as make a shard, as long as a source's weight is not known."""
    sources = _Sources(config)
    waiting: list[dict] = []
    size = 0
    for item in items:
        if waiting and item["source"] != waiting[0]["source"]:
            yield from waiting
            waiting, size = [], 0
        if not sources.asks(item):
            yield from waiting
            yield sources.told(item)
            waiting, size = [], 0
            continue
        waiting.append(item)
        size += item["size"]
        if size > config.shard_bytes:
            sources.weigh(waiting)
            yield from map(sources.told, waiting)
        if size > config.shard_bytes or len(waiting) >= config.shard_items:
            if size <= config.shard_bytes:  # their number closes a shard, and not what they hold
                yield from waiting
            waiting, size = [], 0
    yield from waiting


class _Sources:
    """What is known of the sources by their numbers."""

    def __init__(self, config: Config):
        self._config = config
        self._readers: dict[int, Reader] = {}
        self._weights: dict[int, _Weight] = {}

    def asks(self, item: dict) -> bool:
        """Whether it is a file of texts, of a source whose weight is not known."""
        return item["source"] not in self._weights and self._is_small_text(item)

    def told(self, item: dict) -> dict:
        share, packed = self._weights.get(item["source"], (0.0, 1.0))
        if not share or not self._is_small_text(item):
            return item
        return {**item, "held": int(share * item["size"]), "packed": packed}

    def weigh(self, items: list[dict]) -> None:
        """By files from all over these, of one source."""
        rows: list[dict] = []
        size, step = 0, max(1, len(items) // _FILES)
        for item in items[::step]:
            rows += self._reader(item).read(item)
            size += item["size"]
            if size >= _BYTES:
                break
        good = [{**row, "split": "train", "source": ""} for row in rows if "code" not in row]
        held, packed = packing(good)
        self._weights[items[0]["source"]] = held * packed / max(1, size) if packed < 1 else 0.0, packed

    def _is_small_text(self, item: dict) -> bool:
        if "reject" in item or "from" in item or "held" in item:
            return False
        kind = self._reader(item).kind
        return kind.makes(kind.config) == "text"

    def _reader(self, item: dict) -> Reader:
        from omniloom.stages.ingest.readers import Reader

        index = item["source"]
        return self._readers.get(index) or self._readers.setdefault(index, Reader(self._config, index))
