"""Recognition: what the files of a source look like, and the line of config that reads them."""

from __future__ import annotations

import json

import yaml

from omniloom.stages.ingest.files.listing import list_files
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.kinds.table import KINDS
from omniloom.stages.ingest.look.glimpse import BY_CONTENT, BY_NAME, Glimpse, Recognition
from omniloom.stages.ingest.look.recognition import line, recognized
from omniloom.stages.ingest.options import SourceConfig


def glimpse(folder, files: dict[str, bytes]) -> Glimpse:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    root = Root(SourceConfig(kind="any", uri=str(folder)), 0)
    return Glimpse(root, list_files(root))


def test_a_glimpse_has_names_heads_and_rows(tmp_path):
    long = b"".join(json.dumps({"n": n, "text": "x" * 1000}).encode() + b"\n" for n in range(2000))
    seen = glimpse(
        tmp_path,
        {
            "a/B.JPG": b"\xff\xd8",
            "a/metadata.csv": b"\xef\xbb\xbffile,caption\nB.JPG,one\n",
            "long.jsonl": long,
            "bad.jsonl": b'{"a": 1}\nnot json\n[1]\n{"a": 2}',
        },
    )
    assert seen.paths == ["a/B.JPG", "a/metadata.csv", "bad.jsonl", "long.jsonl"]
    assert seen.having([".jpg", ".csv"]) == ["a/B.JPG", "a/metadata.csv"]
    assert seen.named(["metadata.csv"]) == ["a/metadata.csv"]
    assert seen.rows("a/metadata.csv") == [{"file": "B.JPG", "caption": "one"}]
    assert seen.rows("bad.jsonl") == [{"a": 1}, {"a": 2}]
    assert [row["n"] for row in seen.rows("long.jsonl", 3)] == [0, 1, 2]
    assert len(seen.head("long.jsonl")) == 1 << 18 and seen.head("gone.jsonl") == b""


def test_a_kind_is_recognized_by_its_suffixes_unless_it_says_more(tmp_path, monkeypatch):
    seen = glimpse(tmp_path, {"a.jsonl": b"{}", "b.txt": b"x", "c.txt": b"x"})
    assert KINDS["text"].recognize(seen) == Recognition(frozenset({"b.txt", "c.txt"}), {}, BY_NAME)
    assert KINDS["video_folder"].recognize(seen) is None
    assert [name for name, _ in recognized(seen)][0] == "text"
    sure = classmethod(lambda cls, glimpse: Recognition(frozenset({"a.jsonl"}), {"text_field": "t"}, BY_CONTENT))
    monkeypatch.setattr(KINDS["jsonl"], "recognize", sure)
    name, found = recognized(seen)[0]
    assert (
        line({"kind": name, "uri": "/data/ä, b", **found.options}) == "{kind: jsonl, uri: '/data/ä, b', text_field: t}"
    )


def test_a_line_is_one_line_whatever_its_options_hold():
    for text in ("{question}\n{answer}", "a\tb", "ü — ä, b: c # d", "\u2028", "'\"", "*.png", "- x"):
        source = {"kind": "csv", "template": text, "include": [text]}
        written = line(source)
        assert len(written.splitlines()) == 1 and yaml.safe_load(f"sources:\n  - {written}")["sources"] == [source]
