"""`look`: what a source holds, before any config is written, and the config that reads it.

All that is printed is one YAML file: what was seen stands in it as comments.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omniloom.infra.secrets import redact, redact_uris
from omniloom.pipelines.commands.arguments import AsJson

if TYPE_CHECKING:
    from omniloom.stages.ingest.look.looking import Look, Proposed

_WIDTH = 110  # of a sample's text
_SUFFIXES = 8


def look(
    uri: Annotated[
        str,
        typer.Argument(metavar="URI", help="A folder, a file or an archive, on any filesystem that fsspec reaches."),
    ],
    items: Annotated[int, typer.Option(metavar="N", min=1, help="Items of each source that are read.")] = 100,
    samples: Annotated[int, typer.Option(metavar="N", min=0, help="Records of each source that are shown.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Say what a source holds, and print the config that reads it.

    Counts, sizes, samples with captions, and what cannot be used and why stand in it as comments, so that
    `omniloom look URI > corpus.yaml` is followed by `omniloom run corpus.yaml`. Writes nothing.
    """
    from omniloom.stages.ingest.look.looking import look as look_at

    seen = look_at(uri, items=items, samples=samples)
    if as_json:
        print(json.dumps(redact(_described(seen)), indent=2, ensure_ascii=False))
    else:
        for line in _page(seen):
            print(line)
    if not seen.sources:
        raise typer.Exit(1)


def _described(seen: Look) -> dict[str, Any]:
    return dataclasses.asdict(seen) | {"config": _config(seen) if seen.sources else None}


def _config(seen: Look) -> dict[str, Any]:
    name = _name(seen.uri)
    sources = [source.options for source in seen.sources]
    return {"name": name, "storage": f"runs/{name}", "stages": {"ingest": {"sources": sources}}}


def _name(uri: str) -> str:
    """A pipeline's name after the folder or file."""
    last = posixpath.basename(redact_uris(uri).rstrip("/")).split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-") or "corpus"


def _page(seen: Look) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in _told(seen))
    if seen.sources:
        config = _config(seen)
        yield f"name: {config['name']}"
        yield f"storage: {config['storage']}"
        yield "stages:"
        yield "  ingest:"
        yield "    sources:"
        from omniloom.stages.ingest.look.recognition import line

        yield from (f"      - {line(source.options)}" for source in seen.sources)


def _told(seen: Look) -> Iterator[str]:
    yield f"{_one_line(redact_uris(seen.uri))}: {seen.files:,} files, {_bytes(seen.size)} ({_most(seen.suffixes)})"
    for reason, count in islice(seen.refused.items(), _SUFFIXES):
        yield f"  {count:,} cannot be looked at: {_one_line(reason)}"
    for source in seen.sources:
        yield ""
        yield from _source(source)
    if seen.unread or seen.dismissed:
        yield ""
        for source in seen.dismissed:
            why = source.problem or next((f"{code}: {why}" for code, why in source.reasons.items()), "no record in it")
            yield f"not {source.options['kind']}, as some look: {_one_line(why)}"
    if seen.unread:
        yield f"no kind of source reads {sum(seen.unread.values()):,} files: {_most(seen.unread)}"
    media = [source for source in seen.sources if source.makes in ("image", "video")]
    if any(not source.captioned for source in media) and sum(seen.suffixes.values()) > sum(s.items for s in media):
        yield "captions that lie elsewhere here, under the pictures' names or numbers, `omniloom init DIR` finds"
    if not seen.sources:
        yield "nothing here looks like a source; the kinds are described in docs/sources.md"
    yield ""


def _source(source: Proposed) -> Iterator[str]:
    of = f"{source.items:,} items, {_bytes(source.size)}"
    yield f"{source.options['kind']} ({source.makes} records): {of}"
    captions = f", {source.captioned:,} with captions" if source.makes in ("image", "video") else ""
    yield f"  looked into {source.looked_at:,} of them: {source.records:,} records{captions}"
    for code, count in source.rejects.items():
        yield f"  rejects: {count:,} {code}; the first: {_one_line(source.reasons[code])}"
    for sample in source.samples:
        yield f"  {_one_line(sample['path'])}{_facts(sample)}"
        yield from (f"    {_one_line(text)}" for text in (*sample["captions"][:3], sample["text"]) if text.strip())


def _facts(sample: dict[str, Any]) -> str:
    facts = [f"part {sample['part']}"] if sample.get("part") else []
    if "width" in sample:
        facts.append(f"{sample['width']}x{sample['height']}")
    if "duration" in sample:
        facts.append(f"{sample['duration']:.1f} s")
    if "label" in sample:
        facts.append(f"label {sample['label']}")
    return f" ({_one_line(', '.join(facts))})" if facts else ""


def _one_line(text: str) -> str:
    """Within one comment, whatever line ends and control characters the text has."""
    text = " ".join("".join(c if c.isprintable() else " " for c in redact(text)).split())
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


def _most(suffixes: dict[str, int]) -> str:
    most = [f"{count:,} {_one_line(name)}" for name, count in islice(suffixes.items(), _SUFFIXES)]
    return ", ".join(most) + (", ..." if len(suffixes) > _SUFFIXES else "")


def _bytes(size: int) -> str:
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
