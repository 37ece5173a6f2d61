"""What a folder holds, as far as sizes of models depend on it. In: a URI. Out: a `Corpus`: the sources that read it,
and how much of each kind there is. Captions that no source reads are paired with their pictures (`look.pairing`)."""

from __future__ import annotations

import posixpath
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files.listing import list_files
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.kinds.table import open_source
from omniloom.stages.ingest.look.looking import Look, Proposed, look
from omniloom.stages.ingest.look.pairing import named, paired
from omniloom.stages.ingest.look.said import Pairing
from omniloom.stages.ingest.options import SourceConfig

MEDIA = ("image", "video")
_ITEMS, _OF_ONE_ITEM, _SAMPLES = 200, 2000, 200


@dataclass
class Source:
    """`options` as of the config; `pairing`: captions that are still to be written to a manifest."""

    options: dict[str, Any]
    makes: str
    records: int
    captioned: int
    pairing: Pairing | None = None
    how: str = ""


@dataclass
class Corpus:
    """`sides`: the shorter sides of some pictures or videos, in pixels. `captions`: some of them."""

    uri: str
    files: int
    size: int
    sources: list[Source] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    text_bytes: int = 0

    def records(self, kind: str) -> int:
        return sum(source.records for source in self.sources if source.makes == kind)

    @property
    def captioned(self) -> int:
        return sum(source.captioned for source in self.sources if source.makes in MEDIA)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in ("image", "video", "text", "document") if self.records(kind)]

    @property
    def side(self) -> int | None:
        """The usual shorter side of pictures and videos."""
        return round(statistics.median(self.sides)) if self.sides else None


def corpus(uri: str) -> Corpus:
    """InputError where nothing there can be read."""
    seen = look(uri, items=_ITEMS, samples=_SAMPLES, records_of_item=_OF_ONE_ITEM)
    if not seen.sources:
        raise InputError(
            f"nothing here looks like a source ({seen.files:,} files); `omniloom look {uri}` says what was seen",
            field="DIR",
            file=seen.uri,
        )
    found = Corpus(seen.uri, seen.files, seen.size)
    for proposed in seen.sources:
        found.sources.append(_source(proposed))
        for sample in proposed.samples:
            if sample.get("width") and proposed.makes in MEDIA:
                found.sides.append(min(sample["width"], sample["height"]))
                found.captions += sample["captions"]
        if proposed.makes in ("text", "document"):
            found.text_bytes += proposed.size
    _find_captions(found, seen)
    return found


def _source(proposed: Proposed) -> Source:
    """What was seen of some items, of all."""
    share = proposed.items / max(1, proposed.looked_at)
    return Source(
        dict(proposed.options), proposed.makes, round(proposed.records * share), round(proposed.captioned * share)
    )


def _find_captions(found: Corpus, seen: Look) -> None:
    """Captions of media folders that have none yet; sources that hold nothing but these captions go."""
    poor = [s for s in found.sources if s.options["kind"] in ("image_folder", "video_folder") and _is_poor(s)]
    if not poor:
        return
    root = Root(SourceConfig(kind="any", uri=seen.uri), 0)
    paths = [file.path for file in list_files(root) if not file.reject]
    for source in poor:
        if source.options["uri"] != root.place:
            continue
        media = [path for path in paths if _reads(source, path)]
        taken = {path for other in found.sources if other.makes in MEDIA for path in paths if _reads(other, path)}
        pairing = paired(root, media, [path for path in paths if path not in taken])
        if pairing and len(pairing.captions) > source.captioned:
            source.pairing, source.captioned, source.how = pairing, len(pairing.captions), pairing.how
            found.captions += [text for texts in list(pairing.captions.values())[:_SAMPLES] for text in texts]
            _give_up(found, pairing.files, paths)
        elif not source.captioned and (names := named(media)):
            source.options["captions"] = {"from": names}
            source.captioned = source.records
            source.how = f"the {'folders they lie in' if names == 'folder' else 'names of the files'}"
            found.captions += [caption_of(path, names) for path in media[:_SAMPLES]]


def caption_of(path: str, names: str) -> str:
    """What ingest makes of the name of a file, or of its folder."""
    name = posixpath.splitext(posixpath.basename(path))[0]
    name = name if names == "file" else posixpath.basename(posixpath.dirname(path))
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def _is_poor(source: Source) -> bool:
    return source.captioned < 0.5 * source.records


def _reads(source: Source, path: str) -> bool:
    return open_source(_parsed(source.options), 0).is_item(path)


def _parsed(options: dict[str, Any]) -> Any:
    return Config.model_validate({"sources": [options]}).sources[0]


def _give_up(found: Corpus, used: frozenset[str], paths: Sequence[str]) -> None:
    """Leave files of captions to the pictures that they are of."""
    for source in list(found.sources):
        if source.makes in MEDIA:
            continue
        read = [path for path in paths if _reads(source, path)]
        mine = used.intersection(read)
        if mine and len(mine) == len(read):
            found.sources.remove(source)
            found.text_bytes = 0 if not any(s.makes == "text" for s in found.sources) else found.text_bytes
        elif mine:
            source.options["exclude"] = [*source.options.get("exclude", ()), *sorted(mine)]


def manifest_rows(pairing: Pairing) -> list[dict[str, Any]]:
    """The rows of the manifest that says what a pairing found."""
    return [
        {"file": path, "caption": texts if len(texts) > 1 else texts[0]} for path, texts in pairing.captions.items()
    ]
