"""The books balance: whatever a source of any kind holds comes out as a record, a reject or a duplicate, once.

What is expected is worked out here from what was put in, by rules that know nothing of the product's code.
"""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.ingest import stage as ingest


def png(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 9, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


PICTURES = [png(number) for number in range(4)]
JUNK = [b"", b"junk", PICTURES[0][:40], b"GIF89a"]
NAMES = ["a.png", "b c.png", "sub/ü.png", "sub/d.PNG", "e[1].png", "f"]
content = st.one_of(st.sampled_from(PICTURES), st.sampled_from(JUNK))
folder = st.dictionaries(st.sampled_from(NAMES), content, min_size=1)
words = st.sampled_from(["one", " two ", "three", "", "  ", "with \0", "\ud800", "日本語"])
wrong = st.sampled_from([7, True, {"a": 1}, None])
caption = st.one_of(words, wrong, st.lists(st.one_of(words, wrong), max_size=3))
named_file = st.one_of(st.sampled_from([*NAMES, "gone.png", "../x.png", "x" * 300, ""]), wrong)
line = st.fixed_dictionaries({"file": named_file, "caption": caption})
LINES = st.lists(st.one_of(line.map(json.dumps), st.sampled_from(["", "  ", "{", "[1]", "7"])), max_size=12)
texts = st.lists(
    st.one_of(
        words.map(lambda text: json.dumps({"text": text})),
        st.sampled_from(["{", "", '{"text": 3}', "[" * 2000, '{"text": "one"}']),
    ),
    max_size=8,
)
segments = st.lists(
    st.one_of(
        words.map(lambda text: {"type": "text", "text": text}),
        st.sampled_from([*NAMES, "gone.png"]).map(lambda name: {"type": "image", "file": name}),
        st.just(3),
    ),
    max_size=3,
)
documents = st.lists(
    st.fixed_dictionaries({"file": st.sampled_from(["a.md", "b.md"]), "segments": st.one_of(segments, st.just(None))}),
    max_size=8,
)


def usable(text: object) -> bool:
    return isinstance(text, str) and "\0" not in text and "\ud800" not in text


def said(value: object) -> tuple[list[str], int]:
    """The captions that a value holds, and how many of its parts are none."""
    parts = value if isinstance(value, list) else [value]
    good = list(dict.fromkeys(part.strip() for part in parts if usable(part) and part.strip()))
    return good, sum(part is not None and not usable(part) for part in parts)


class Books:
    """Outcomes in the order of the sources: contents with their captions, and rejects."""

    def __init__(self):
        self.taken: list[tuple[object, list[str]]] = []
        self.rejects = 0

    def folder(self, files: dict[str, bytes], rows: list[str]) -> None:
        captions: dict[str, list[str]] = {}
        for row in filter(str.strip, rows):
            row = json.loads(row) if row.startswith('{"') else None
            name = row and row["file"]
            if not isinstance(name, str) or name not in files:
                self.rejects += 1
                continue
            good, bad = said(row["caption"])
            self.rejects += bad
            captions.setdefault(name, []).extend(good)
        for name in sorted(files):
            self._picture(files[name], captions.get(name, []))

    def jsonl(self, files: dict[str, bytes], rows: list[str]) -> None:
        if not any(map(str.strip, rows)):
            self.rejects += 1
        for row in filter(str.strip, rows):
            row = json.loads(row) if row.startswith('{"') else None
            name = row and row["file"]
            if not isinstance(name, str) or files.get(name) not in PICTURES:
                self.rejects += 1
            else:
                good, bad = said(row["caption"])
                self.rejects += bad
                self._picture(files[name], good)

    def texts(self, rows: list[str]) -> None:
        if not any(map(str.strip, rows)):
            self.rejects += 1
        for row in filter(str.strip, rows):
            text = json.loads(row).get("text") if row.startswith('{"') else None
            if usable(text) and text.strip():
                self.taken.append((text, []))
            else:
                self.rejects += 1

    def documents(self, files: dict[str, bytes], rows: list[dict]) -> None:
        for row in rows:
            parts = row["segments"]
            good = parts is not None and all(
                part != 3 and (usable(part["text"]) if part["type"] == "text" else files.get(part["file"]) in PICTURES)
                for part in parts
            )
            shown = (
                [
                    part["text"].strip("\n") if part["type"] == "text" else files[part["file"]]
                    for part in parts
                    if part["type"] == "image" or part["text"].strip()
                ]
                if good
                else []
            )
            if shown:
                self.taken.append((tuple(shown), []))
            else:
                self.rejects += 1

    def _picture(self, data: bytes, captions: list[str]) -> None:
        if data in PICTURES:
            self.taken.append((data, captions))
        else:
            self.rejects += 1

    def captions(self) -> list[list[str]]:
        """Of each content in the order that it first came."""
        found: dict[object, list[str]] = {}
        for key, captions in self.taken:
            found[key] = list(dict.fromkeys([*found.get(key, []), *captions]))
        return list(found.values())


@settings(max_examples=25, deadline=None)
@given(folder, LINES, LINES, texts, documents, st.integers(1, 5))
def test_the_books_balance(files, rows, named, lines, pages, shard_items):
    root = f"memory://books-{time.monotonic_ns()}"
    books = Books()
    # What would be an error of the whole source is left out: a manifest that fits nothing, an empty one of documents.
    fitting = [json.dumps({"file": name, "caption": "own"}) for name in files]
    pages = [*pages, {"file": "a.md", "segments": [{"type": "text", "text": "hello"}]}]
    for name, data in files.items():
        for place in ("one", "two", "three"):
            storage.write_bytes(f"{root}/{place}/{name}", data)
    for path, written in {
        "one/m.jsonl": [*fitting, *rows],
        "two/rows.jsonl": named,
        "text/t.jsonl": lines,
        "three/d.jsonl": map(json.dumps, pages),
    }.items():
        storage.write_bytes(f"{root}/{path}", "\n".join(written).encode())
    books.folder(files, [*fitting, *rows])
    books.jsonl(files, named)
    books.texts(lines)
    books.documents(files, pages)
    config = ingest.Config.model_validate(
        {
            "shard_items": shard_items,
            "sources": [
                {"kind": "image_folder", "uri": f"{root}/one", "captions": {"manifest": "m.jsonl"}},
                {"kind": "jsonl", "uri": f"{root}/two", "image_field": "file"},
                {"kind": "jsonl", "uri": f"{root}/text", "text_field": "text"},
                {"kind": "interleaved", "uri": f"{root}/three", "manifest": "d.jsonl"},
            ],
        }
    )
    context = SimpleNamespace(config=config, output=f"{root}/out", state=f"{root}/state", progress=lambda *a, **k: None)
    metrics = ingest.run(context)

    found = list(records.iterate(context.output))
    assert [row["captions"] or [] for row in found] == books.captions()
    assert [row["caption"] for row in found] == [(row["captions"] or [None])[0] for row in found]
    duplicates = len(books.taken) - len(books.captions())
    counts = {name: metrics[name] for name in ("items", "records", "rejects", "duplicates")}
    assert counts == {
        "items": len(books.taken) + books.rejects,
        "records": len(books.captions()),
        "rejects": books.rejects,
        "duplicates": duplicates,
    }
    written = [
        json.loads(line)
        for line in storage.read_bytes(f"{context.output}/duplicates/duplicates.jsonl").split(b"\n")
        if line
    ]
    keys = [(row["source"], row["path"], row["part"]) for row in [*found, *written]]
    assert len(set(keys)) == len(keys) == len(books.taken)
    assert sum(count for name, count in metrics.items() if name.startswith("rejects_")) == books.rejects
    storage.remove(root)
