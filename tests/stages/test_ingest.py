"""Ingest: all that a source holds becomes records, rejects or duplicates, and is accounted for."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data import changes, records
from omniloom.stages.data.media.decode import encode_mp4, encode_png
from omniloom.stages.ingest import stage as ingest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RNG = np.random.default_rng(1)


def picture(mark=None) -> bytes:
    return encode_png(RNG.integers(0, 256, (8, 10, 3), np.uint8), mark)


def clip(mark=None) -> bytes:
    return encode_mp4(RNG.integers(0, 256, (3, 16, 16, 3), np.uint8), 8, mark)


def put(folder, files: dict[str, bytes | str]) -> str:
    for path, content in files.items():
        storage.write_bytes(storage.join(str(folder), path), content.encode() if isinstance(content, str) else content)
    return str(folder)


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def config(*sources, **fields) -> ingest.Config:
    return ingest.Config.model_validate({"sources": list(sources), **fields})


@pytest.fixture
def memory():
    """A root of its own on memory://."""
    root = f"memory://test-{time.monotonic_ns()}"
    yield root
    storage.remove(root)


class Result:
    def __init__(self, cfg: ingest.Config, root: str):
        self.root, self.config, self.calls = root, cfg, []
        self.context = SimpleNamespace(
            config=cfg,
            output=f"{root}/output",
            state=f"{root}/state",
            predecessor=None,
            progress=lambda *a, **k: self.calls.append(a),
        )
        self.metrics = ingest.run(self.context)
        self.rows = list(records.iterate(self.context.output))
        self.rejects = self._jsonl("rejects/rejects.jsonl")
        self.duplicates = self._jsonl("duplicates/duplicates.jsonl")
        m = self.metrics
        assert (m["records"], m["rejects"], m["duplicates"]) == tuple(
            map(len, (self.rows, self.rejects, self.duplicates))
        )
        assert m["items"] == m["records"] + m["rejects"] + m["duplicates"]

    def _jsonl(self, name):
        return [json.loads(line) for line in storage.read_bytes(f"{self.context.output}/{name}").splitlines()]

    @property
    def codes(self) -> dict:
        return {reject["path"]: reject["code"] for reject in self.rejects}

    def by_path(self, path: str) -> dict:
        return next(row for row in self.rows if row["path"] == path)


# ---- images and videos ----


def test_images_with_a_manifest(memory):
    files = {f"a/{i}.png": picture() for i in range(4)}
    rows = [
        {"file": "a/0.png", "caption": "nought", "label": "zero", "license": "MIT", "extra": [1]},
        {"file": "a/1.png", "caption": "one", "label": 1},
        {"file": "a/1.png", "caption": "again"},
        {"file": "../a/2.png", "caption": "outside"},
        {"file": "/etc/passwd", "caption": "outside"},
        {"file": "a/9.png", "caption": "missing"},
        "{broken",
        [1],
        {"caption": "no file"},
        {"file": "a/2.png", "caption": ["not", "text"]},
        {"file": "a/2\0.png"},
        '{"file": "a/3.png", "caption": "\\ud800"}',
    ]
    uri = put(f"{memory}/in", {**files, "manifest.jsonl": lines(*rows)})
    captions = {"manifest": "manifest.jsonl", "meta_fields": ["extra"]}
    out = Result(config({"kind": "image_folder", "uri": uri, "captions": captions, "license": "CC0"}), memory)
    assert [row["path"] for row in out.rows] == ["a/0.png", "a/1.png", "a/2.png", "a/3.png"]
    first, second, third, fourth = out.rows
    assert (first["caption"], first["label"], first["license"]) == ("nought", "zero", "MIT")
    assert json.loads(first["meta"]) == {"extra": [1]}
    assert (second["caption"], second["label"], second["license"]) == ("one", "1", "CC0")
    assert second["captions"] == ["one", "again"]
    assert (third["caption"], third["captions"]) == ("not", ["not", "text"])
    assert fourth["caption"] is None and out.metrics["uncaptioned"] == 1 and out.metrics["captions"] == 5
    assert first["media"] == files["a/0.png"] and (first["width"], first["height"]) == (10, 8)
    assert out.codes == {
        "manifest.jsonl:4": "outside_root",
        "manifest.jsonl:5": "outside_root",
        "a/9.png": "missing_file",
        "manifest.jsonl:7": "invalid_json",
        "manifest.jsonl:8": "invalid_json",
        "manifest.jsonl:9": "bad_manifest_row",
        "manifest.jsonl:11": "outside_root",
        "manifest.jsonl:12": "bad_caption",
    }


def test_a_manifest_is_read_by_names_and_not_by_its_order(memory):
    """Rows in an order of their own, and a file in the middle that has none."""
    names = ["b.png", "a.png", "e.png", "c.png", "d.png"]
    uri = put(
        f"{memory}/in",
        {name: picture() for name in names}
        | {
            "m.jsonl": lines(
                *(
                    {"file": name, "caption": f"of {name}", "label": name[0]}
                    for name in reversed(names)
                    if name != "c.png"
                )
            )
        },
    )
    out = Result(config({"kind": "image_folder", "uri": uri, "captions": {"manifest": "m.jsonl"}}), memory)
    told = {row["path"]: (row["caption"], row["label"]) for row in out.rows}
    assert told == {name: (f"of {name}", name[0]) if name != "c.png" else (None, None) for name in names}


def test_captions_from_folders_and_files(memory):
    uri = put(f"{memory}/in", {"red_fox/1.png": picture(), "top.png": picture()})
    folder = {"from": "folder", "template": "a photo of a {name}"}
    out = Result(config({"kind": "image_folder", "uri": uri, "captions": folder}), memory + "/1")
    assert out.by_path("red_fox/1.png")["caption"] == "a photo of a red fox"
    assert out.by_path("red_fox/1.png")["label"] == "red_fox"
    assert out.by_path("top.png")["caption"] is None and out.metrics["uncaptioned"] == 1
    out = Result(config({"kind": "image_folder", "uri": uri, "captions": {"from": "file"}}), memory + "/2")
    assert [row["caption"] for row in out.rows] == ["1", "top"]


def test_what_cannot_be_used_is_rejected_with_a_reason_and_stops_nothing(memory):
    good = picture()
    uri = put(
        f"{memory}/in",
        {
            "0.png": good,
            "cut.png": good[:60],
            "empty.jpg": b"",
            "text.png": "hello",
            "clip.png": clip(),
            "wrong.dat": picture(),
            "big.bmp": b"BM" + b"\0" * 5000,
            "notes.txt": "beside",
            ".hidden.png": b"",
            "sub/copy.jpg": good,
        },
    )
    out = Result(config({"kind": "image_folder", "uri": uri}, limits={"max_bytes": 4000}), memory)
    assert [row["path"] for row in out.rows] == ["0.png", "wrong.dat"]  # the content counts, not the suffix
    assert out.codes == {
        "cut.png": "truncated",
        "empty.jpg": "empty",
        "text.png": "not_an_image",
        "clip.png": "not_an_image",
        "big.bmp": "too_large",
    }
    assert [row["path"] for row in out.duplicates] == ["sub/copy.jpg"]
    assert out.metrics["files"] == out.metrics["items"] == 8  # a file is an item in a folder of images
    assert out.metrics["rejects_not_an_image"] == 2


def test_videos(memory):
    uri = put(f"{memory}/in", {"a.mp4": clip(), "b.gif": clip(), "pic.mp4": picture(), "cut.mp4": clip()[:-200]})
    out = Result(config({"kind": "video_folder", "uri": uri, "captions": {"from": "file"}}), memory)
    row = out.by_path("a.mp4")
    assert (row["kind"], row["frames"], row["fps"], row["format"], row["caption"]) == (
        "video",
        3,
        8.0,
        "mp4",
        "a",
    )
    assert row["duration"] == pytest.approx(3 / 8) and json.loads(row["meta"]) == {"codec": "h264"}
    assert out.by_path("b.gif")["format"] == "mp4"
    assert out.codes == {"pic.mp4": "not_a_video", "cut.mp4": "truncated"}


def test_links_out_of_the_root_are_refused_and_links_within_are_read(tmp_path):
    put(tmp_path / "outside", {"secret.png": picture(), "more/x.png": picture()})
    put(tmp_path / "root-private", {"secret.png": picture()})  # begins as the root does
    root = put(tmp_path / "root", {"a.png": picture(), "sub/b.png": picture()})
    os.symlink(tmp_path / "root-private" / "secret.png", tmp_path / "root" / "beside.png")
    os.symlink(tmp_path / "outside" / "secret.png", tmp_path / "root" / "out.png")
    os.symlink(tmp_path / "outside" / "more", tmp_path / "root" / "folder")
    os.symlink(tmp_path / "root" / "sub" / "b.png", tmp_path / "root" / "within.png")
    os.symlink(tmp_path / "root", tmp_path / "root" / "loop")
    os.symlink("nowhere", tmp_path / "root" / "dead.png")
    cfg = config({"kind": "image_folder", "uri": root})
    context = f"memory://links-{time.monotonic_ns()}"
    out = Result(cfg, context)
    assert [row["path"] for row in out.rows] == ["a.png", "sub/b.png"]
    assert out.codes == {
        "out.png": "outside_root",
        "folder": "outside_root",
        "beside.png": "outside_root",
        "dead.png": "missing_file",
    }
    assert [row["path"] for row in out.duplicates] == ["within.png"]
    facts = {fact["path"]: fact for fact in ingest.listing(cfg)}
    assert facts["out.png"]["size"] == 0 and facts["out.png"]["identity"] == "link"


def test_a_file_name_that_is_no_utf8_is_rejected(tmp_path):
    root = put(tmp_path, {"a.png": picture()})
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(picture())
    out = Result(config({"kind": "image_folder", "uri": root}), f"memory://names-{time.monotonic_ns()}")
    assert list(out.codes.values()) == ["bad_name"] and out.metrics["records"] == 1


# ---- text, JSONL ----


def test_text_files(memory):
    uri = put(
        f"{memory}/in",
        {
            "bom.txt": b"\xef\xbb\xbfone\r\ntwo\rthree\n",
            "bad.txt": b"caf\xe9",
            "empty.txt": b"",
            "blank.txt": " \r\n ",
            "nul.txt": b"a\0b",
            "utf16.txt": "hello".encode("utf-16"),
            "other.bin": b"\xff",
            "long.md": "\n\n".join(f"paragraph {i} " + "x" * 50 for i in range(20)),
        },
    )
    out = Result(config({"kind": "text", "uri": uri}, chunk_chars=200), memory)
    assert out.by_path("bom.txt")["text"] == "one\ntwo\nthree\n"
    chunks = [row for row in out.rows if row["path"] == "long.md"]
    assert [row["part"] for row in chunks] == list(range(len(chunks))) and len(chunks) > 3
    assert "".join(row["text"] for row in chunks) == storage.read_bytes(f"{uri}/long.md").decode()
    assert out.codes == {
        "bad.txt": "invalid_utf8",
        "empty.txt": "empty",
        "blank.txt": "empty",
        "nul.txt": "not_text",
    }
    assert out.by_path("utf16.txt")["text"] == "hello"
    assert out.metrics["files"] == 7


def test_jsonl_lines(memory):
    good = {"question": "1+1?", "answer": "2"}
    content = (
        (
            "\ufeff"
            + lines(
                good,
                "{broken",
                {"question": "no answer"},
                good,
                [1],
                {"question": 1, "answer": None},
                '{"question": "\\ud800", "answer": "x"}',
                "",
                {"question": "q" * 2000, "answer": ""},
                {"question": 3, "answer": 4.5},
                {"question": " ", "answer": " "},
                {**good, "answer": "two", "synthetic": True},
            )
        ).encode()
        + b'{"question": "\xff"}\r\n'
        + json.dumps({"question": "last", "answer": "{x}"}).encode()
    )
    uri = put(f"{memory}/in", {"a.jsonl": content, "empty.jsonl": b"\n\n", "deep.jsonl": "[" * 1500})
    out = Result(
        config(
            {"kind": "jsonl", "uri": uri, "template": "{question}\n{answer}"},
            limits={"max_bytes": 1500},
            max_synthetic_fraction=0.5,
        ),
        memory,
    )
    assert [(row["part"], row["text"], row["synthetic"]) for row in out.rows] == [
        (1, "1+1?\n2", False),
        (10, "3\n4.5", False),
        (12, "1+1?\ntwo", True),
        (14, "last\n{x}", False),
    ]
    assert {(r["path"], r["part"]): r["code"] for r in out.rejects} == {
        ("a.jsonl", 2): "invalid_json",
        ("a.jsonl", 3): "missing_field",
        ("a.jsonl", 5): "invalid_json",
        ("a.jsonl", 6): "missing_field",
        ("a.jsonl", 7): "invalid_utf8",
        ("a.jsonl", 9): "too_large",
        ("a.jsonl", 11): "empty",
        ("a.jsonl", 13): "invalid_json",
        ("empty.jsonl", 0): "empty",
        ("deep.jsonl", 1): "invalid_json",
    }
    assert [(r["part"], r["path"]) for r in out.duplicates] == [(4, "a.jsonl")]


def test_jsonl_with_media(memory):
    uri = put(
        f"{memory}/in",
        {
            "sub/pic.png": picture(),
            "a.jsonl": lines(
                {"image": "sub/pic.png", "caption": "a picture", "label": 3},
                {"image": "../pic.png"},
                {"image": "https://example.org/x.png"},
                {"image": "gone.png"},
                {"caption": "none"},
            ),
        },
    )
    out = Result(config({"kind": "jsonl", "uri": uri, "image_field": "image"}), memory)
    (row,) = out.rows
    assert (row["kind"], row["caption"], row["label"], row["width"]) == ("image", "a picture", "3", 10)
    assert json.loads(row["meta"]) == {"file": "sub/pic.png"}
    assert [r["code"] for r in out.rejects] == [
        "outside_root",
        "remote_media",
        "missing_file",
        "missing_field",
    ]


# ---- documents ----


def test_markdown_documents(memory):
    image = picture()
    page = (
        '---\ntitle: "Tea"\n---\nBefore.\n\n![a cup](img/a%20cup.png "hot")\nBetween\n\n'
        "```\n![no image](x.png)\n```\n![](/img/b.png)\n"
    )
    uri = put(
        f"{memory}/in",
        {
            "docs/tea.md": page,
            "docs/img/a cup.png": image,
            "img/b.png": picture(),
            "docs/up.md": "![x](../../b.png)",
            "docs/remote.md": "![x](http://example.org/b.png)",
            "docs/gone.md": "text ![x](gone.png)",
            "docs/bad.md": b"\xff\xfd",
            "docs/plain.md": "words only",
            "docs/empty.md": "---\ntitle: x\n---\n",
            "docs/site.md": "![x](/pix/b.png)",
        },
    )
    out = Result(config({"kind": "interleaved", "uri": uri, "links": {"/pix/": "img/"}}), memory)
    tea = out.by_path("docs/tea.md")
    assert [(s["type"], s["text"]) for s in tea["segments"]] == [
        ("text", "Before."),
        ("image", "a cup"),
        ("text", "Between\n\n```\n![no image](x.png)\n```"),
        ("image", ""),
    ]
    assert tea["segments"][1]["media"] == image and tea["segments"][1]["width"] == 10
    assert json.loads(tea["meta"]) == {"title": "Tea"} and tea["kind"] == "document"
    assert [row["path"] for row in out.rows] == ["docs/plain.md", "docs/site.md", "docs/tea.md"]
    assert out.codes == {
        "docs/up.md": "outside_root",
        "docs/remote.md": "remote_media",
        "docs/gone.md": "missing_file",
        "docs/bad.md": "invalid_utf8",
        "docs/empty.md": "empty",
    }


def test_documents_from_a_manifest(memory):
    uri = put(
        f"{memory}/in",
        {
            "img/a.png": picture({"by": "us"}),
            "m.jsonl": lines(
                {
                    "file": "x.md",
                    "title": "X",
                    "segments": [
                        {"type": "text", "text": "hi"},
                        {"type": "image", "file": "img/a.png", "alt": "A"},
                    ],
                },
                {"file": "y.md", "segments": [{"type": "sound"}]},
                {"file": "z.md"},
                {"file": "w.md", "segments": [{"type": "image", "file": "../../a.png"}]},
            ),
        },
    )
    out = Result(config({"kind": "interleaved", "uri": uri, "manifest": "m.jsonl"}, max_synthetic_fraction=1), memory)
    (row,) = out.rows
    assert [s["text"] for s in row["segments"]] == ["hi", "A"] and row["synthetic"]
    assert out.codes == {"y.md": "bad_segments", "m.jsonl:3": "bad_manifest_row", "w.md": "outside_root"}


# ---- the whole ----


def test_duplicates_across_shards_and_sources_leave_the_first_and_share_its_split(memory):
    shared, files = picture(), {f"{i}.png": picture() for i in range(6)}
    one = put(f"{memory}/one", {**files, "5.png": shared})
    two = put(f"{memory}/two", {"a.png": shared, "b.png": files["2.png"], "c.png": picture()})
    cfg = config(
        {"kind": "image_folder", "uri": one},
        {"kind": "image_folder", "uri": two},
        shard_items=2,
        splits={"train": 0.4, "validation": 0.3, "test": 0.3},
    )
    out = Result(cfg, memory)
    assert [(row["source"], row["path"]) for row in out.duplicates] == [
        ("image_folder_1", "a.png"),
        ("image_folder_1", "b.png"),
    ]
    assert len({row["id"] for row in out.rows}) == len(out.rows) == 7
    for row in out.rows:
        assert row["split"] == records.split_of(row["id"], cfg.splits.model_dump())
    assert sum(out.metrics[f"records_{split}"] for split in records.SPLITS) == 7
    assert len(records.shards(out.context.output)) == 5
    before = {uri: storage.sha256(uri) for uri in records.shards(out.context.output)}
    assert ingest.run(out.context) == out.metrics  # a second pass over finished work changes nothing
    assert {uri: storage.sha256(uri) for uri in records.shards(out.context.output)} == before


def test_a_killed_run_goes_on_after_its_last_shard_and_gives_the_same_bytes(memory, monkeypatch):
    files = {f"{i}.png": picture() for i in range(9)}
    uri = put(f"{memory}/in", {**files, "8.png": files["0.png"]})
    cfg = config({"kind": "image_folder", "uri": uri}, shard_items=2)
    whole = Result(cfg, f"{memory}/whole")

    real, done = ingest.ingest_group, []

    def dies(group, *rest):
        if group["index"] == 3:
            raise KeyboardInterrupt
        done.append(group["index"])
        return real(group, *rest)

    monkeypatch.setattr(ingest, "ingest_group", dies)
    with pytest.raises(KeyboardInterrupt):
        Result(cfg, f"{memory}/cut")
    assert done == [0, 1, 2]
    # Killed once more, in the middle of settling: after the lists for people are written, before what readers see is.
    monkeypatch.setattr(
        ingest, "ingest_group", lambda group, *rest: (done.append(group["index"]), real(group, *rest))[1]
    )
    real_write = changes.write
    monkeypatch.setattr(changes, "write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Result(cfg, f"{memory}/cut")
    assert done == [0, 1, 2, 3, 4]
    monkeypatch.setattr(changes, "write", real_write)
    resumed = Result(cfg, f"{memory}/cut")
    assert done == [0, 1, 2, 3, 4] and resumed.metrics == whole.metrics
    files = storage.list_files(whole.context.output)
    assert changes.FILE in files and files == storage.list_files(resumed.context.output)
    for name in files:
        a, b = (storage.read_bytes(f"{r.context.output}/{name}") for r in (whole, resumed))
        assert a == b, name


def test_samples_of_our_own_models_are_told_and_stop_a_run_unless_allowed(memory):
    uri = put(
        f"{memory}/in",
        {"a.png": picture({"model": "x"}), "b.png": picture(), "c.png": picture(), "d.png": picture()},
    )
    source = {"kind": "image_folder", "uri": uri}
    with pytest.raises(InputError, match="1 of 4 .*25.0%") as caught:
        Result(config(source), f"{memory}/1")
    assert caught.value.field == "max_synthetic_fraction" and caught.value.exit_code == 2
    out = Result(config(source, max_synthetic_fraction=0.25), f"{memory}/2")
    assert out.metrics["synthetic_fraction"] == 0.25 and out.by_path("a.png")["synthetic"]
    videos = put(f"{memory}/v", {"a.mp4": clip({"m": 1}), "b.mp4": clip()})
    out = Result(config({"kind": "video_folder", "uri": videos}, max_synthetic_fraction=0.5), f"{memory}/3")
    assert [row["synthetic"] for row in out.rows] == [True, False]


def test_progress_counts_every_file(memory):
    uri = put(f"{memory}/in", {f"{i}.png": picture() for i in range(5)})
    out = Result(config({"kind": "image_folder", "uri": uri}, shard_items=2), memory)
    assert out.calls == [(2, 5, "files"), (4, 5, "files"), (5, 5, "files")]


def test_missing_and_empty_sources_are_input_errors_that_name_the_field(tmp_path):
    for source, field in [
        ({"kind": "image_folder", "uri": str(tmp_path / "nowhere")}, "sources.0.uri"),
        ({"kind": "text", "uri": put(tmp_path / "a", {"x.png": picture()})}, "sources.0.uri"),
        ({"kind": "image_folder", "uri": put(tmp_path / "b", {"x.txt": "t"})}, "sources.0.uri"),
        (
            {"kind": "image_folder", "uri": put(tmp_path / "c", {"x.png": picture()}), "include": "*.jpg"},
            "sources.0.uri",
        ),
        ({"kind": "text", "uri": "nosuch://x"}, "sources.0.uri"),
        (
            {"kind": "image_folder", "uri": str(tmp_path / "c"), "captions": {"manifest": "gone.jsonl"}},
            "sources.0.captions.manifest",
        ),
        (
            {"kind": "interleaved", "uri": str(tmp_path / "c"), "manifest": "gone.jsonl"},
            "sources.0.manifest",
        ),
    ]:
        with pytest.raises(InputError) as caught:
            ingest.listing(config(source))
        assert caught.value.field == field and caught.value.exit_code == 2


def test_nothing_usable_is_an_input_error(memory):
    uri = put(f"{memory}/in", {"x.png": "text", "y.png": ""})
    with pytest.raises(InputError, match="not_an_image 1"):
        Result(config({"kind": "image_folder", "uri": uri}), memory)


@pytest.mark.parametrize(
    "source, message",
    [
        ({"kind": "pictures"}, "kind"),
        ({"kind": "text", "colour": 1}, "colour"),
        ({"kind": "jsonl"}, "text_field"),
        ({"kind": "text", "template": "{a}"}, "template"),
        ({"kind": "jsonl", "template": "none"}, "placeholder"),
        ({"kind": "jsonl", "template": "{a}", "text_field": "b"}, "exclude"),
        ({"kind": "image_folder", "captions": {}}, "manifest or from"),
        ({"kind": "image_folder", "captions": {"from": "file", "template": "{x}"}}, "placeholder"),
        ({"kind": "text", "uri": ""}, "uri"),
    ],
)
def test_a_wrong_source_is_told_by_the_config(source, message):
    with pytest.raises(ValidationError, match=message):
        config({"uri": "/data", **source})


def test_other_wrong_fields_are_told_by_the_config():
    source = {"kind": "text", "uri": "/data"}
    for fields, message in [
        ({"splits": {"train": 0.5}}, "= 1"),
        ({"limits": {"max_pixels": 0}}, "max_pixels"),
        ({"limits": {"max_pixel": 1}}, "max_pixel"),
        ({"max_synthetic_fraction": 2}, "fraction"),
    ]:
        with pytest.raises(ValidationError, match=message):
            config(source, **fields)
    with pytest.raises(ValidationError, match="taken"):
        config({**source, "name": "a"}, {**source, "name": "a"})


@pytest.mark.slow
def test_ray_data_gives_what_one_process_gives(tmp_path):
    import ray

    files = {f"{i}.png": picture() for i in range(6)}
    uri = put(tmp_path / "in", {**files, "6.png": files["1.png"], "bad.png": "x"})
    cfg = config({"kind": "image_folder", "uri": uri}, shard_items=3, num_workers=2)
    alone = Result(cfg, f"memory://ray-{time.monotonic_ns()}")
    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            address="local",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(ingest.__file__).parents[1])}},
        )
    try:
        spread = Result(cfg, str(tmp_path / "out"))
    finally:
        if started:
            ray.shutdown()
    assert spread.metrics == alone.metrics and spread.rows == alone.rows and spread.rejects == alone.rejects


def gif_milliseconds(data: bytes) -> list[int]:
    """How long each frame stands, by another decoder than ours."""
    image, found = Image.open(io.BytesIO(data)), []
    for i in range(image.n_frames):
        image.seek(i)
        found.append(image.info["duration"])
    return found


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample corpus is not at {SHARED}")
def test_the_sample_corpus(memory):
    def source(kind, folder, **fields):
        return {"kind": kind, "uri": str(SHARED / folder), **fields}

    manifest = {"captions": {"manifest": "manifest.jsonl"}}
    images, videos = (
        ["emoji/emoji_u1f9*", "grocery/*", "bookfig/*"],
        ["minigrid/b*", "grid_lips/*", "asl_gestures/*"],
    )
    cfg = config(
        source("image_folder", "images", include=images, **manifest),
        source("video_folder", "videos", include=videos, **manifest),
        source("text", "text"),
        source("jsonl", "text", include="gsm8k*.jsonl", template="{question}\n{answer}"),
        source("interleaved", "interleaved", manifest="manifest.jsonl"),
        source("interleaved", "interleaved", name="markdown", links={"/pix/": "images/pix__"}),
    )
    ingest.listing(cfg)
    started = time.process_time()  # of CPU: a busy machine takes no more of it
    ingest.listing(cfg)
    assert time.process_time() - started < 1.0
    out = Result(cfg, memory)
    expected = {}
    for folder in ("images", "videos"):
        for line in (SHARED / folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            expected[row["file"]] = row
    assert out.rejects == [] and out.metrics["uncaptioned"] == 0
    seen = 0
    for row in out.rows:
        if row["kind"] in ("image", "video"):
            known = expected[row["path"]]
            seen += 1
            assert hashlib.sha256(row["media"]).hexdigest() == known["sha256"]
            assert (row["caption"], row["label"]) == (known["caption"], known["label"])
            assert (row["width"], row["height"]) == (known["width"], known["height"])
            if row["kind"] == "video":
                assert abs(row["frames"] - known["frames"]) <= 1
                # The manifest's durations of GIFs are off by seconds from what the files say.
                gif = row["format"] == "gif"
                duration = sum(gif_milliseconds(row["media"])) / 1000 if gif else known["duration_s"]
                assert row["duration"] == pytest.approx(duration, abs=0.1)
    assert seen == sum(fnmatch(path, pattern) for path in expected for pattern in images + videos) > 500
    assert out.metrics["records_document"] == 60
    # Parsed from Markdown or taken from the manifest, the recipes are the same documents.
    assert sum(row["source"] == "markdown" for row in out.duplicates) == 60
    text = "".join(row["text"] for row in out.rows if row["path"] == "tinyshakespeare.txt")
    assert text == (SHARED / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert all(out.metrics[f"records_{split}"] > 0 for split in records.SPLITS)


def test_images_are_read_as_they_are_named_in_a_single_file_source(tmp_path):
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(sink, "JPEG")
    put(tmp_path, {"one.jpg": sink.getvalue(), "two.jpg": picture()})
    out = Result(
        config({"kind": "image_folder", "uri": str(tmp_path / "one.jpg"), "captions": {"from": "file"}}),
        f"memory://single-{time.monotonic_ns()}",
    )
    assert [(row["path"], row["caption"], row["format"]) for row in out.rows] == [("one.jpg", "one", "jpeg")]
