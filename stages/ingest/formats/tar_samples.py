"""WebDataset tars: members that follow one another and share the name before the first dot are one sample.

A sample is a row: its members by what follows that dot (`jpg`, `txt`, `seg.png`), texts as text, JSON as objects,
classes as numbers, all else as bytes; and besides, where the row has no member of that name:

    image, video    the first member that is one
    caption         its texts: txt, caption and text, and the caption of its JSON
    label           cls, or the label of its JSON
    __key__         the name before the dot

Source: the tar format of webdataset, https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import fields
from omniloom.stages.ingest.files import encoding, tars
from omniloom.stages.ingest.files.suffixes import IMAGES, VIDEOS, compression, suffix
from omniloom.stages.ingest.formats.base import Files, Format, Peek, Row, SourceBytes, Wanted, nested_names
from omniloom.stages.ingest.rejects import Reject

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_TEXTS = ("txt", "text", "caption", "transcript")
_CLASSES = ("cls", "cls2", "index", "inx", "id")
_PEEKED = 64  # samples
_MEDIA = {"image": IMAGES, "video": VIDEOS}


class TarSamples(Format):
    """`alternatives` are fields that name several members, of which the first that is there is meant: "jpg;png"."""

    suffixes = (".tar",)

    def __init__(self, alternatives: Sequence[str] = ()):
        self.alternatives = list(alternatives)

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The number of a row is the block of 512 bytes in which its first member's header lies, counted from 1: it is
        the same in whichever pieces the tar is read."""
        empty = True
        with contextlib.closing(_opened(files, item["path"])) as file:
            for sample in _samples(file, files, item.get("from", 0), item.get("to")):
                empty = False
                if isinstance(sample, tars.Damage):
                    yield _number(sample.position), Reject(sample.code, sample.message)
                    continue
                try:
                    yield _number(sample.position), self._row(sample, wanted)
                except MediaError as error:
                    yield _number(sample.position), Reject(error.code, error.message)
        if empty and "from" not in item:
            raise MediaError("empty", "no sample in the tar: no file with a name and a suffix")

    def peek(self, files: Files, path: str) -> Peek:
        """The members of the first samples, with the fields of their JSON."""
        names: dict[str, None] = {}
        with contextlib.closing(_opened(files, path)) as file:
            for count, sample in enumerate(_samples(file, files)):
                if count >= _PEEKED:
                    return Peek(list(names), False, False)
                if isinstance(sample, tars.Damage):
                    continue
                with contextlib.suppress(MediaError):
                    row = self._row(sample, lambda columns: [name for name in columns if _is_small(name)])
                    there = [name for name in self.alternatives if self._alternative(name, sample.members) != name]
                    names |= dict.fromkeys([*sample.members, *sample.media(), *there, *nested_names(row)])
        return Peek(list(names), True, False)

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes; the samples that begin in a piece are its own, wherever in it they do. A compressed tar is one."""
        step = -(-size // tars.BLOCK) * tars.BLOCK
        if item["size"] <= step or compression(item["path"]):
            yield item
            return
        for start in range(0, item["size"], step):
            stop = min(start + step, item["size"])
            yield {**item, "from": start, "to": stop, "size": stop - start, "part": _number(start)}

    def _row(self, sample: Sample, wanted: Wanted) -> dict:
        """The row of a sample. Of its media those alone are read that are wanted, by their own or another name."""
        members, media = sample.members, sample.media()
        chosen = set(wanted([*members, *media, "caption", "label", *self.alternatives]))
        aliases = {name: media.get(name) or self._alternative(name, members) for name in chosen}
        needed = {*aliases.values(), *(name for name in members if _is_small(name))}
        values: dict[str, Any] = {name: sample.value(name) for name in members if name in needed}
        values |= {name: values[real] for name, real in aliases.items() if real in values}
        return _described(values | {"__key__": sample.key})

    def _alternative(self, name: str, members: Collection[str]) -> str:
        names = name.split(";") if name in self.alternatives else [name]
        return next((choice for choice in names if choice in members), name)


@dataclass
class Sample:
    """Members of one key, by their names within it, in the order of the tar."""

    key: str
    file: Any
    files: Files
    members: dict[str, tars.Member] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict)  # what was read at once, of a stream that does not go back

    @property
    def position(self) -> int:
        return next(iter(self.members.values())).position

    def add(self, name: str, member: tars.Member) -> None:
        self.members[name] = member
        if not self.file.seekable() and member.size <= self.files.max_bytes:
            self.held[name] = self._content(member)

    def media(self) -> dict[str, str]:
        return media(self.members)

    def value(self, name: str) -> Any:
        member, last = self.members[name], name.rsplit(".", 1)[-1]
        if member.size > self.files.max_bytes:
            size, limit = member.size, self.files.max_bytes
            raise MediaError("too_large", f"{member.name[:200]}: {size} bytes, at most {limit}")
        data = self.held[name] if name in self.held else self._content(member)
        if last in _TEXTS or last in _CLASSES:
            text = encoding.decode(data, self.files.encoding)
            number = text.strip() if last in _CLASSES else ""
            return int(number) if re.fullmatch(r"-?\d{1,18}", number) else text
        if last == "json":
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise MediaError("invalid_json", f"{member.name[:200]}: {error}") from None
        return data

    def _content(self, member: tars.Member) -> bytes:
        data = tars.content(self.file, member)
        if data is None:
            raise MediaError("truncated", f"the tar ends within {member.name[:200]}")
        return data


def _opened(files: Files, path: str) -> Any:
    if compression(path):
        return tars.Forward(files.root.blocks(path))
    return SourceBytes(files, path)


def _number(position: int) -> int:
    return position // tars.BLOCK + 1


def parts(name: str) -> tuple[str, str]:
    """The key of the sample and the name within it; ("", "") for a file that is part of none."""
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match.group(1), match.group(2).lower()) if match else ("", "")


def _samples(file: Any, files: Files, start: int = 0, stop: int | None = None) -> Iterator[Sample | tars.Damage]:
    """The samples of a piece, in order. In the middle of a tar nobody knows whether a sample begins or goes on: so the
    first key at or behind `start` is left to the piece before, and the first at or behind `stop` is read here."""
    left, last = None if start else "", ""
    sample: Sample | None = None
    for member in tars.members_from(file, start):
        if isinstance(member, tars.Damage):
            if stop is None or member.position < stop:
                yield member
            continue
        key, name = parts(member.name)
        if not key or member.type != "file":
            continue
        left = key if left is None else left
        last = key if not last and stop is not None and member.position >= stop else last
        if last and key != last:
            break
        if key == left:
            continue
        left = ""
        if sample is None or sample.key != key or name in sample.members:
            if sample:
                yield sample
            sample = Sample(key, file, files)
        sample.add(name, member)
    if sample:
        yield sample


def media(names: Collection[str]) -> dict[str, str]:
    """image and video -> the name of the file that is one, if there is one: rather one whose name is a suffix and no
    more, and a GIF, which may be either, where there is no other."""
    plain = sorted(names, key=lambda name: ("." in name, name == "gif"))
    found = {what: [name for name in plain if suffix(f"x.{name}") in endings] for what, endings in _MEDIA.items()}
    return {what: choices[0] for what, choices in found.items() if choices and what not in names}


def _is_small(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last in _TEXTS or last in _CLASSES or last == "json"


def _described(row: dict) -> dict:
    """The row with its captions and its label under these names."""
    facts = row["json"] if isinstance(row.get("json"), dict) else {}
    if not isinstance(row.get("caption"), list):
        name, _ = fields.row_caption(facts)
        told = [*(row[text] for text in ("txt", "caption", "text") if text in row)]
        inner = facts.get(name) if name else None
        told += inner if isinstance(inner, list) else [inner] if inner is not None else []
        row["caption"] = told
    if "label" not in row:
        row["label"] = row.get("cls", facts.get("label"))
    return row | {key: facts[key] for key in ("synthetic", "omniloom") if key in facts}
