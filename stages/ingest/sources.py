"""Sources: which of their files are items to ingest, and with which captions.

In: the config's sources. Out: a listing (facts about every file, the input of the fingerprint), and items: plain
dictionaries in a fixed order, mostly one per file to ingest: {"source", "path", "size"} and what the source's kind
knows besides; or {"source", "path", "reject": [code, message]} for what cannot be used.

A missing root, one without any file of the source's kind, and a manifest that does not fit it are `InputError`s.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import eq

from omniloom.infra.errors import InputError, together
from omniloom.stages.ingest import cutting
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files.listing import Files, SourceFile, list_files
from omniloom.stages.ingest.files.suffixes import ARCHIVES, COMPANIONS, suffix
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.kinds.table import KINDS, open_source
from omniloom.stages.ingest.look.glimpse import Glimpse
from omniloom.stages.ingest.look.recognition import line, recognized


class Facts(Sequence[dict]):
    """{"source", "path", "size", "identity"} of what the sources offer, in order, made anew by each iteration."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, str, Sequence[SourceFile]]] = []

    def add(self, source: int, files: Sequence[SourceFile], below: str = "") -> None:
        self._parts.append((source, below, files))

    def __iter__(self) -> Iterator[dict]:
        for source, below, files in self._parts:
            for file in files:
                yield {"source": source, "path": below + file.path, "size": file.size, "identity": file.identity}

    def __len__(self) -> int:
        return sum(len(files) for _, _, files in self._parts)

    def __getitem__(self, index):
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))


def listing(config: Config) -> Facts:
    """Facts of what each source offers: cheap, nothing is decoded.

    Raises InputError for roots that are missing or hold no file of the source's kind, and for small manifests that do
    not fit their folder; one tells of all sources.
    """
    facts, errors = Facts(), []
    for index in range(len(config.sources)):
        try:
            kind = _opened(config, index)
            contents = _contents(kind)
            _list(kind, contents, facts)
            kind.check(contents)
        except InputError as error:
            errors.append(error)
    if errors:
        raise together(errors)
    return facts


def _list(kind: SourceKind, contents: Contents, facts: Facts) -> None:
    """Add every file that has a part in the source's records, by the path that stands for it."""
    all_of_kind = kind.root.is_file
    files = contents.files if all_of_kind else contents.of_kind.or_where(lambda file: kind.matters(file.path))
    facts.add(kind.index, files)
    if kind.manifest and kind.manifest.below is None:
        facts.add(kind.index, [kind.manifest.outside()])
    if kind.media_root:
        facts.add(kind.index, list_files(kind.media_root), "media_root/")


def items(
    config: Config, notes: Counter | None = None, listed: Callable[[int, Facts], None] | None = None
) -> Iterator[dict]:
    """What is to be ingested, in the order of the sources and of the paths within each.

    `notes` counts what a person should be told: metadata_captions, metadata_unread, sidecars_unread. `listed` is told
    the number of a source and what `listing` says of it, before its items come.
    """
    for _, item in _items(config, notes, listed):
        yield item


def pieces(
    config: Config, notes: Counter | None = None, listed: Callable[[int, Facts], None] | None = None
) -> Iterator[dict]:
    """`items`, the large ones in pieces."""
    for kind, item in _items(config, notes, listed):
        yield from cutting.pieces(kind, item, config)


def _items(config: Config, notes: Counter | None, listed) -> Iterator[tuple[SourceKind, dict]]:
    notes = Counter() if notes is None else notes
    for index in range(len(config.sources)):
        kind = _opened(config, index)
        contents = _contents(kind)
        if listed:
            facts = Facts()
            _list(kind, contents, facts)
            listed(index, facts)
        for item in kind.items(contents, notes):
            yield kind, item


def _opened(config: Config, index: int) -> SourceKind:
    return open_source(config.sources[index], index, config.limits, config.chunk_chars)


def _contents(kind: SourceKind) -> Contents:
    """List the source. Raises InputError where there is nothing of its kind, or no manifest."""
    files = list_files(kind.root)
    if kind.manifest:
        kind.manifest.check(files)
    contents = Contents(files, files if kind.root.is_file else files.where(partial(_is_item, kind)))
    if not kind.holds_some(contents):
        raise InputError(_nothing(kind, files), field=kind.root.uri_field)
    return contents


def _is_item(kind: SourceKind, file: SourceFile) -> bool:
    """Of the source's kind; or a reject behind which there may be files of any kind."""
    if file.beyond and suffix(file.path) not in _known_suffixes():
        return not kind.excluded(file.path)
    return kind.is_item(file.path)


@functools.cache
def _known_suffixes() -> set[str]:
    return {*COMPANIONS, *(ending for kind in KINDS.values() for ending in kind.suffixes)}


def _nothing(kind: SourceKind, files: Files) -> str:
    """Why a source is empty, what its files look like, and the line of the config that reads them."""
    config = kind.config
    seen = f"{len(files)} files, none of them" if files else "an empty folder, no file"
    usual = ", ".join(kind.suffixes[:5]) + (", ..." if len(kind.suffixes) > 5 else "")
    message = f"empty corpus: {kind.root.place} holds {seen} of kind {config.kind} ({usual})"
    if config.include or config.exclude:
        message += f" that include {config.include} and exclude {config.exclude} leave"
    refused = Counter(f"{file.reject[0]}: {file.reject[1]}" for file in files if file.reject)
    if refused:
        return f"{message}; {', '.join(f'{n} {reason}' for reason, n in refused.most_common(3))}"
    found = [pair for pair in recognized(Glimpse(kind.root, files)) if pair[0] != config.kind]
    if found:
        name, recognition = found[0]
        reads = line({"kind": name, "uri": config.uri, **recognition.options})
        return f"{message}; {len(recognition.paths)} look like {name}, which `{reads}` reads"
    if files and not any(suffix(file.path) in kind.suffixes for file in files):
        suffixes = Counter(suffix(file.path) or "no suffix" for file in files)
        most = ", ".join(f"{n} {ending}" for ending, n in suffixes.most_common(3))
        archive = next((file.path for file in files if suffix(file.path) in ARCHIVES), None)
        inside = line({"kind": config.kind, "uri": kind.root.uri(archive)}) if archive else ""
        hint = f"; `{inside}` looks into one of them" if archive and not kind.root.is_archive else ""
        return f"{message}; it holds {most}, which no kind reads{hint}"
    return message
