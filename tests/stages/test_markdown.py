"""Markdown: the pictures that CommonMark sees and a few habits besides, the text between them as it was, in linear
time."""

from __future__ import annotations

import gc
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from omniloom.stages.ingest import sources
from omniloom.stages.ingest.annotations.markdown import Picture, front_matter, split_markdown
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.readers import Reader

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "interleaved"


def split(text: str) -> list:
    return [tuple(part[:2]) if isinstance(part, Picture) else part for part in split_markdown(text)]


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a ![x](i.png) b", ["a ", ("x", "i.png"), " b"]),
        ("![](<a.png>)", [("", "a.png")]),
        ("![x](a.png \"title\")![y](b.png 't')![z](c.png (t))", [("x", "a.png"), ("y", "b.png"), ("z", "c.png")]),
        ("![a](<sp ace.png>)", [("a", "sp ace.png")]),
        ("![a](sp ace.png) ![b](also this.jpg 't') c", [("a", "sp ace.png"), ("b", "also this.jpg"), " c"]),
        ("![a](ok_(1).png) b", [("a", "ok_(1).png"), " b"]),
        ("![a](half (1.png) b", [("a", "half (1.png"), " b"]),
        ("![a [b] *c*](ok.png)", [("a [b] c", "ok.png")]),
        ("x <img src=ok.png> y", ["x ", ("", "ok.png"), " y"]),
        (
            "<p align='center'>\n <img width=3 alt='A &amp; B' src=\"a b.png\"/>\n <img SRC=c.png>\n</p>\nend",
            [("A & B", "a b.png"), ("", "c.png"), "\nend"],
        ),
        ("<a href=x><img data-src=no.png src=ok.png></a> q", [("", "ok.png"), " q"]),
        ("![a][ref] b\n\nc\n\n[ref]: ok.png 'title'\n", [("a", "ok.png"), " b\n\nc\n\n"]),
        ("![ref][] ![ref]\n\n[REF]: <o k.png>", [("ref", "o k.png"), ("ref", "o k.png")]),
        ("![a][r] [see][r]\n\n[r]: ok.png", [("a", "ok.png"), " [see][r]\n\n[r]: ok.png"]),
        (
            "![[ok.png]] ![[a b.jpg|300]] ![[c.gif|a cat]] ![[note]]",
            [("", "ok.png"), ("", "a%20b.jpg"), ("a cat", "c.gif"), " ![[note]]"],
        ),
        ("[![a](ok.png)](url) tail", [("a", "ok.png"), " tail"]),
        ("see [![a](ok.png) words](url)!", ["see ", ("a", "ok.png"), " words!"]),
        ("**![a](ok.png)** *x ![b](b.png)*", [("a", "ok.png"), " *x ", ("b", "b.png"), "*"]),
        (
            "> q ![a](b.png) r\n> - ![c](d.png)\n>   m ![e](f.png)\n",
            ["> q ", ("a", "b.png"), " r\n> - ", ("c", "d.png"), "\n>   m ", ("e", "f.png")],
        ),
        ("# H ![a](b.png) ##\nx", ["# H ", ("a", "b.png"), " ##\nx"]),
        ("| ![x](t.png) | ![y](u.png) |\n|---|---|", ["| ", ("x", "t.png"), " | ", ("y", "u.png"), " |\n|---|---|"]),
        ("-\t![x](t.png)\n\t![y](u.png) z", ["-\t", ("x", "t.png"), ("y", "u.png"), " z"]),
        (
            "![a](https://x.org/b.png) ![](data:image/png;base64,AA)",
            [("a", "https://x.org/b.png"), ("", "data:image/png;base64,AA")],
        ),
        ("[x](a.png)", ["[x](a.png)"]),
        (" \n", []),
    ],
)
def test_pictures_and_the_text_between_them(text, parts):
    assert split(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "`![a](x.png)` b",
        "``![a](x.png) ` ``",
        "~~~\n![x](a.png)\n~~~\n",
        "````\n```\n![a](x.png)\n```\n````\n",
        "```\n![a](x.png)",
        "    ![a](x.png)\n",
        "<!-- ![a](x.png) -->\nz",
        "a <!-- ![a](x.png)\n<img src=x.png> --> z",
        "<!--\n\n![a](x.png)\n\n<img src=x.png>",
        "\\![a]\\(x.png)",
        "!\\[a](x.png)",
        "<script>s = '<img src=x.png>'</script>",
        "![a](x y.txt)",
        "<imgx src=x.png>",
        "![a][nowhere]",
    ],
)
def test_what_is_no_picture_stays_text(text):
    assert split(text) == [text]


class _Shown(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append((dict(attributes)["alt"], dict(attributes)["src"]))


SNIPPETS = st.lists(
    st.sampled_from(
        [
            "![a](b.png)",
            "![c *d*](e.png 't')",
            "![f][g]",
            "![h",
            "](i.png)",
            "[",
            "]",
            "(",
            "`",
            "``",
            "```\n",
            "~~~\n",
            "\n",
            "\n\n",
            "> ",
            "- ",
            "1. ",
            "    ",
            "\t",
            "# ",
            " #",
            "*",
            "**",
            "_",
            "\\",
            "word ",
            "[g]: g.png\n",
            "[j](k)",
            "![l](m(n).png)",
            "---\n",
            "<!-- ",
            " -->",
            "&amp;",
            "|",
            "![o](<p.png>)",
        ]
    ),
    max_size=25,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(SNIPPETS)
def test_the_pictures_are_those_that_commonmark_renders(text):
    """What HTML another run of the parser renders; each picture once, in order, and no character of the rest lost."""
    rendered = _Shown(MarkdownIt("commonmark").render(text)).found
    parts = split(text)
    found = [part for part in parts if isinstance(part, tuple)]
    loose = "](i.png)"  # what a stray bracket makes of the alphabet may be a loose name
    if loose not in text:
        assert found == rendered
    at = 0
    for part in parts:
        if isinstance(part, str):
            for piece in re.findall(r"word|\w\.png|k", part):  # dissolved marks may join two pieces of the source
                at = text.index(piece, at) + len(piece)


@pytest.mark.parametrize(
    "unit",
    [
        "![",
        "![a](<",
        "![a](",
        "![a](x ",
        "[![",
        "![[",
        '<img "',
        "<!-- ",
        "![a][",
        "**![a](b.png)** ",
        "[![a](b.png)](c) ",
        "<p><img src=a.png></p>",
    ],
)
def test_the_work_grows_with_the_length_alone(unit):
    def seconds(length: int) -> float:
        gc.collect()
        gc.disable()  # what other tests left would be looked through as often as there are new objects
        try:
            started = time.process_time()
            split_markdown(unit * (length // len(unit)) + "]")
            return time.process_time() - started
        finally:
            gc.enable()

    seconds(100)
    assert seconds(40_000) < 10 * max(seconds(10_000), 0.05)  # 4 times where it is linear, 16 where quadratic


@pytest.mark.parametrize(
    "text, fields, left",
    [
        ("---\ntitle: 'T: x'\ntags: [a]\n---\nb", {"title": "T: x", "tags": ["a"]}, "b"),
        ('+++\ntitle = "T"\n[x]\ny = 1\n+++\nb', {"title": "T", "x": {"y": 1}}, "b"),
        ("---\n---\nb", {}, "b"),
        ("---\n\nwords\n\n---\nb", {}, "---\n\nwords\n\n---\nb"),
        ("+++\nnot toml\n+++\nb", {}, "+++\nnot toml\n+++\nb"),
        ("---\n!!python/object/apply:os.system [x]\n---\nb", {}, "---\n!!python/object/apply:os.system [x]\n---\nb"),
        ("b\n---\nt: 1\n---\n", {}, "b\n---\nt: 1\n---\n"),
    ],
)
def test_front_matter(text, fields, left):
    assert front_matter(text) == (fields, left)


def document(folder: Path, text: str, files: tuple[str, ...]) -> dict:
    import numpy as np

    from omniloom.stages.data.media.decode import encode_png

    for number, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(np.full((4, 4, 3), number * 9, np.uint8)))
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "a.md").write_text(text, encoding="utf-8")
    config = Config.model_validate({"sources": [{"kind": "interleaved", "uri": str(folder)}]})
    (item,) = sources.items(config)
    (row,) = Reader(config, 0).read(item)
    return row


@pytest.mark.parametrize(
    "text, name",
    [
        ("![](ok.png?raw=true)", "docs/ok.png"),
        ("![](ok.png#x)", "docs/ok.png"),
        ("![](a%20b.png)", "docs/a b.png"),
        ("![](a b.png)", "docs/a b.png"),
        ("![](what?.png)", "docs/what?.png"),
        ("![](c%231.png)", "docs/c#1.png"),
        ("![](c#1.png)", "docs/c#1.png"),
        ("![[ok.png]]", "docs/ok.png"),
        ("![[pics/é 1.png]]", "pics/é 1.png"),
        ("![](/pics/x.png)", "pics/x.png"),
        ("![](../pics/x.png)", "pics/x.png"),
    ],
)
def test_a_link_means_its_file(tmp_path, text, name):
    row = document(tmp_path, f"before {text} after", (name,))
    assert [segment["type"] for segment in row["segments"]] == ["text", "image", "text"]
    assert row["segments"][1]["media"] == (tmp_path / name).read_bytes()


def test_a_picture_that_is_not_there_rejects_its_document(tmp_path):
    row = document(tmp_path, "x ![](gone.png?y) z", ())
    assert (row["code"], row["message"]) == ("missing_file", "image docs/gone.png: docs/gone.png is not there")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample corpus is not at {SHARED}")
def test_the_recipes_are_split_as_their_manifest_says():
    rows = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60
    for row in rows:
        fields, text = front_matter((SHARED / row["file"]).read_text(encoding="utf-8"))
        found = [
            ("image", part.alt, part.link.replace("/pix/", "images/pix__"))
            if isinstance(part, Picture)
            else ("text", part.strip())
            for part in split_markdown(text)
        ]
        expected = [
            ("image", s["alt"], s["file"]) if s["type"] == "image" else ("text", s["text"].strip())
            for s in row["segments"]
        ]
        assert (found, fields["title"]) == (expected, row["meta"]["title"].strip("'")), row["file"]
