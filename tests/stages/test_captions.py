"""Captions: every way that a corpus says what is on its pictures is read, and one that does not fit is told."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ingested import listed, put
from PIL import Image
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data import changes, records
from omniloom.stages.data.media.decode import encode_mp4, encode_png
from omniloom.stages.ingest import stage as ingest

RNG = np.random.default_rng(9)
FIELD = "sources.0.captions"


def picture() -> bytes:
    return encode_png(RNG.integers(0, 256, (9, 11, 3), np.uint8))


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*rows, **dialect) -> str:
    sink = io.StringIO()
    csv.writer(sink, **dialect).writerows(rows)
    return sink.getvalue()


def captions(*given, **fields) -> dict[str, list[str]]:
    return {row["path"]: row["captions"] for row in listed(*given, **fields)[1]}


def images(uri, captions=None, **fields) -> dict:
    return {"kind": "image_folder", "uri": str(uri), "captions": captions, **fields}


THREE = {f"{i}.png": picture() for i in range(3)}
EXPECTED = {f"{i}.png": [f'caption {i}, "quoted"'] for i in range(3)}


def written(file_key: str, caption_key: str, extra: str | None = None) -> list[dict]:
    more = {extra: "x"} if extra else {}
    return [{file_key: name, **more, caption_key: said[0]} for name, said in EXPECTED.items()]


# ---- formats and fields ----


@pytest.mark.parametrize("file_key", ["file", "file_name", "filename", "image", "path", "image_path", "File_Name"])
@pytest.mark.parametrize("caption_key", ["caption", "text", "captions", "description"])
def test_the_fields_that_data_sets_have_are_known(tmp_path, file_key, caption_key):
    put(tmp_path, {**THREE, "m.jsonl": lines(*written(file_key, caption_key, "additional_feature"))})
    assert captions(images(tmp_path, {"manifest": "m.jsonl"})) == EXPECTED


@pytest.mark.parametrize(
    "name, dialect",
    [
        ("m.csv", {}),
        ("m.tsv", {"delimiter": "\t"}),
        ("m.csv", {"delimiter": ";"}),
        ("m.csv", {"delimiter": "|"}),
        ("m.csv", {"quoting": csv.QUOTE_ALL}),
        ("m.csv", {"lineterminator": "\n"}),
        ("M.CSV", {}),
    ],
)
def test_tables(tmp_path, name, dialect):
    rows = [["id", "file_name", "text"], *([str(i), *pair.values()] for i, pair in enumerate(written("f", "c")))]
    put(tmp_path, {**THREE, name: "\ufeff" + table(*rows, **dialect)})
    assert captions(images(tmp_path, {"manifest": name})) == EXPECTED


def test_what_is_wrong_in_a_table_costs_its_row(tmp_path):
    rows = [
        ["file", " caption", "label"],
        ["0.png", "two\nlines"],
        ["1.png", '["a", "b"]', "7"],
        ["2.png"],
        ["2.png", "x", "y", "too many"],
        ["", "no file"],
        ["gone.png", "c"],
        [],
        ["2.png", "long " * 50_000],
    ]
    put(tmp_path, {**THREE, "m.csv": table(*rows).encode() + b"0.png,caf\xe9\r\n"})
    metrics, found, rejects = listed(images(tmp_path, {"manifest": "m.csv"}))
    assert [row["captions"] for row in found] == [["two\nlines"], ["a", "b"], [("long " * 50_000).strip()]]
    assert [row["label"] for row in found] == [None, "7", None]
    assert {(r["path"], r["code"]) for r in rejects} == {
        ("m.csv:6", "bad_manifest_row"),
        ("m.csv:7", "bad_manifest_row"),
        ("gone.png", "missing_file"),
        ("m.csv:11", "invalid_utf8"),
    }
    assert metrics["uncaptioned"] == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "gb18030", "shift_jis", "utf-32"])
@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_encodings(tmp_path, encoding, name):
    word = {"latin-1": "café", "gb18030": "你好", "shift_jis": "日本"}.get(encoding, "日本 café")
    content = (
        lines({"file": "0.png", "caption": word}) if name == "m.jsonl" else table(["file", "caption"], ["0.png", word])
    )
    put(tmp_path, {"0.png": picture(), name: content.encode(encoding)})
    assert captions(images(tmp_path, {"manifest": name}, encoding=encoding)) == {"0.png": [word]}
    if encoding in ("utf-16", "utf-32"):  # the byte order mark tells
        assert captions(images(tmp_path, {"manifest": name})) == {"0.png": [word]}
    text = {"kind": "text", "uri": put(tmp_path / "text", {"a.txt": word.encode(encoding)}), "encoding": encoding}
    assert listed(text)[1][0]["text"] == word
    said = "".join(json.dumps({"text": f"{word} {i}"}, ensure_ascii=False) + "\r\n" for i in range(3))
    rows = {
        "kind": "jsonl",
        "uri": put(tmp_path / "rows", {"a.jsonl": said.encode(encoding)}),
        "encoding": encoding,
        "text_field": "text",
    }
    assert [row["text"] for row in listed(rows)[1]] == [f"{word} {i}" for i in range(3)]


def test_another_encoding_than_the_files_names_the_option(tmp_path):
    put(tmp_path, {"a.txt": "café".encode("latin-1"), "b.txt": "plain"})
    _, _, (reject,) = listed({"kind": "text", "uri": str(tmp_path)})
    assert reject["code"] == "invalid_utf8"
    assert "at byte 3 of 4" in reject["message"] and "`encoding`" in reject["message"]
    with pytest.raises(ValidationError, match="an encoding that Python knows"):
        listed({"kind": "text", "uri": str(tmp_path), "encoding": "klingon"})
    put(tmp_path, {"rows/a.jsonl": b'{"text": "caf\xe9"}\n{"text": "fine"}\n'})
    _, (row,), (reject,) = listed({"kind": "jsonl", "uri": str(tmp_path / "rows"), "text_field": "text"})
    assert row["text"] == "fine" and reject["part"] == 1 and "`encoding`" in reject["message"]


# ---- manifests that lie somewhere ----


@pytest.mark.parametrize("kind", ["image_folder", "video_folder"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_in_the_folder_is_read_by_itself(tmp_path, kind, name):
    clip = encode_mp4(RNG.integers(0, 256, (3, 16, 16, 3), np.uint8), 8)
    files = {"train/a.mp4": clip} if kind == "video_folder" else {"train/a.png": picture(), "test/a.png": picture()}

    def content(said):
        media = "a.mp4" if kind == "video_folder" else "a.png"
        return (
            table(["file_name", "text"], [media, said])
            if name.endswith("csv")
            else lines({"file_name": media, "text": said})
        )

    put(tmp_path, {**files, **{f"{path.split('/')[0]}/{name}": content(path.split("/")[0]) for path in files}})
    source = {"kind": kind, "uri": str(tmp_path)}
    metrics, found, rejects = listed(source)
    assert {row["path"]: row["captions"] for row in found} == {path: [path.split("/")[0]] for path in files}
    assert metrics["metadata_captions"] == len(files) and "metadata.jsonl" in ingest.summary(metrics) and not rejects
    facts = ingest.listing(ingest.Config.model_validate({"sources": [source]}))
    assert f"train/{name}" in {fact["path"] for fact in facts}  # a change of it is a change of the corpus
    metrics, found, _ = listed({**source, "exclude": f"*{name}"})
    assert metrics["uncaptioned"] == len(files) and not metrics.get("metadata_captions")


def test_metadata_about_other_things_is_left_alone_and_told(tmp_path):
    put(tmp_path, {**THREE, "metadata.jsonl": lines({"dataset": "x", "license": "y"})})
    metrics, _, _ = listed(images(tmp_path))
    assert metrics["uncaptioned"] == 3 and "1 metadata files name no files" in ingest.summary(metrics)
    put(tmp_path, {"metadata.jsonl": lines({"file_name": "elsewhere.png", "text": "y"})})
    with pytest.raises(InputError, match="exclude it"):
        listed(images(tmp_path))


def test_manifests_beside_the_folder_and_by_absolute_paths(tmp_path):
    root = put(tmp_path / "set" / "images", THREE)
    rows = lines(*written("file", "caption"))
    put(tmp_path, {"set/captions.jsonl": rows, "set/images/sub/m.jsonl": rows, "set/images/.hidden/m.jsonl": rows})
    absolute = [{**row, "file": f"{root}/{row['file']}"} for row in written("file", "caption")]
    put(tmp_path, {"set/absolute.jsonl": lines(*absolute)})
    for manifest in (
        "../captions.jsonl",
        f"{tmp_path}/set/captions.jsonl",
        "sub/m.jsonl",
        "./sub/../sub/m.jsonl",
        f"{root}/sub/m.jsonl",
        f"file://{tmp_path}/set/captions.jsonl",
        ".hidden/m.jsonl",
        "../absolute.jsonl",
    ):
        assert captions(images(root, {"manifest": manifest})) == EXPECTED, manifest
    one = f"{root}/1.png"
    assert captions(images(one, {"manifest": "../captions.jsonl"})) == {"1.png": EXPECTED["1.png"]}


def test_names_relative_to_a_manifest_in_a_folder(tmp_path):
    put(tmp_path, {f"train/{name}": data for name, data in THREE.items()})
    put(tmp_path, {"train/m.jsonl": lines(*written("file", "caption"))})
    found = captions(images(tmp_path, {"manifest": "train/m.jsonl"}))
    assert found == {f"train/{name}": said for name, said in EXPECTED.items()}


def test_roots_on_other_filesystems():
    root = f"memory://captions-{time.monotonic_ns()}"
    put(f"{root}/images", THREE)
    rows = [{**row, "file": f"{root}/images/{row['file']}"} for row in written("file", "caption")]
    put(root, {"m.jsonl": lines(*rows)})
    for manifest in ("../m.jsonl", f"{root}/m.jsonl"):
        assert captions(images(f"{root}/images", {"manifest": manifest})) == EXPECTED
    storage.remove(root)


# ---- manifests that do not fit ----


@pytest.mark.parametrize(
    "rows, given, said",
    [
        (
            [{"name": "0.png", "caption": "c"}],
            {},
            "no row names a file; the keys are name, caption; set captions.file_",
        ),
        ([{"file": "x0.png", "caption": "c"}], {}, "'x0.png'.*'0.png', '1.png', '2.png'"),
        ([{"file": f"{i}.jpg", "caption": "c"} for i in range(9)], {}, "0 of 9 rows.*'0.jpg', '1.jpg', '2.jpg', ..."),
        (
            [{"file": "0.png", "caption": "c"}, *({"file": f"x{i}", "caption": "c"} for i in range(4))],
            {},
            "1 of 5 rows",
        ),
        ([{"file": "0.png", "title": "c"}], {}, "no row has a caption; its keys are file, title"),
        (
            [{"file": "0.png", "caption": "c"}],
            {"caption_field": "text"},
            "no row has 'text'; its keys are file, caption",
        ),
        ([{"file": "0.png", "caption": "c"}], {"file_field": "image"}, "no row has 'image'"),
        ([{"file": "0.png", "caption": "c"}], {"label_field": "class"}, "no row has 'class'"),
        ([{"file": "0.png", "caption": "c"}], {"meta_fields": ["date"]}, "no row has 'date'"),
        ([{"file": "0.png", "caption": "a", "text": "b"}], {}, "'caption' and 'text'.*set captions.caption_field"),
        ([{"file": "0.png", "image": "1.png", "caption": "b"}], {}, "'file' and 'image'.*set captions.file_field"),
        (["{broken", [1]], {}, "no row names a file"),
        ([], {}, "holds no row"),
        ([{"images": [], "annotations": []}], {}, "the keys are images, annotations"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error_that_shows_both_sides(tmp_path, rows, given, said):
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    put(tmp_path, {**THREE, "m.jsonl": content})
    config = ingest.Config.model_validate({"sources": [images(tmp_path, {"manifest": "m.jsonl", **given})]})
    with pytest.raises(InputError, match=said) as caught:
        ingest.listing(config)  # when the pipeline is planned
    assert caught.value.field.startswith(FIELD) and caught.value.exit_code == 2
    assert str(tmp_path / "m.jsonl") in caught.value.message


def test_fields_that_are_named_win_and_equal_ones_are_no_choice(tmp_path):
    rows = [{"file": "1.png", "image": "0.png", "caption": "a", "text": "b"}]
    put(
        tmp_path,
        {
            **THREE,
            "m.jsonl": lines(*rows),
            "n.jsonl": lines({"file_name": "2.png", "path": "/somewhere/else.png", "caption": "c", "text": "c"}),
        },
    )
    given = {"manifest": "m.jsonl", "file_field": "image", "caption_field": "text"}
    assert captions(images(tmp_path, given))["0.png"] == ["b"]
    assert captions(images(tmp_path, {"manifest": "n.jsonl"}))["2.png"] == ["c"]


def test_a_manifest_of_more_or_of_fewer_files_than_the_folder_has_fits(tmp_path):
    more = [{"file": f"gone{i}.png", "caption": "c"} for i in range(20)]
    put(
        tmp_path,
        {
            **THREE,
            "more.jsonl": lines(*written("file", "caption"), *more),
            "fewer.jsonl": lines(*written("file", "caption")[:1]),
        },
    )
    metrics, found, rejects = listed(images(tmp_path, {"manifest": "more.jsonl"}))
    assert metrics["uncaptioned"] == 0 and metrics["rejects_missing_file"] == 20
    metrics, _, _ = listed(images(tmp_path, {"manifest": "fewer.jsonl"}))
    assert (metrics["uncaptioned"], metrics["rejects"]) == (2, 0)
    assert ingest.summary(metrics).endswith("uncaptioned 2 of 3")
    put(tmp_path, {"labels.jsonl": lines(*({"file": name, "label": i} for i, name in enumerate(THREE)))})
    metrics, found, _ = listed(images(tmp_path, {"manifest": "labels.jsonl"}))
    assert [row["label"] for row in found] == ["0", "1", "2"] and metrics["uncaptioned"] == 3


def test_rows_of_files_that_are_left_out_say_nothing_about_the_fit(tmp_path):
    rows = [{"file": f"other/{i}.png", "caption": "c"} for i in range(9)] + written("file", "caption")
    put(tmp_path, {**THREE, "m.jsonl": lines(*rows)})
    metrics, found, rejects = listed(images(tmp_path, {"manifest": "m.jsonl"}, exclude="other/*"))
    assert rejects == [] and {row["path"]: row["captions"] for row in found} == EXPECTED


def test_the_summary_names_the_reasons_and_the_uncaptioned(tmp_path):
    put(
        tmp_path,
        {
            **THREE,
            "a.png": b"",
            "b.png": b"junk",
            "c.png": b"",
            "m.jsonl": lines(*written("file", "caption")[:2], {"file": "2.png", "caption": 3}),
        },
    )
    metrics, _, _ = listed(images(tmp_path, {"manifest": "m.jsonl"}))
    assert ingest.summary(metrics) == (
        "files 7, items 7, records 3, rejects 4 (empty 2, bad_caption 1, not_an_image 1), duplicates 0, "
        "uncaptioned 1 of 3"
    )


# ---- several captions ----


def test_rows_and_lists_add_up_and_what_is_wrong_costs_itself_alone(tmp_path):
    rows = [
        {"file": "0.png", "caption": "a", "label": "x"},
        {"file": "0.png", "caption": [" b ", "", 7, "a", None]},
        {"file": "0.png", "caption": {"raw": "c"}, "label": "y"},
        {"file": "1.png", "caption": "  "},
        {"file": "1.png", "caption": "nul\0", "license": {"name": "cc"}},
        {"file": "2.png", "label": True},
    ]
    put(tmp_path, {**THREE, "m.jsonl": lines(*rows)})
    metrics, found, rejects = listed(images(tmp_path, {"manifest": "m.jsonl"}, license="CC0"))
    assert [(row["captions"], row["caption"], row["label"], row["license"]) for row in found] == [
        (["a", "b"], "a", "x", "CC0"),
        ([], None, None, "CC0"),
        ([], None, None, "CC0"),
    ]
    assert [(reject["path"], reject["code"]) for reject in rejects] == [
        ("m.jsonl:2", "bad_caption"),
        ("m.jsonl:3", "bad_caption"),
        ("m.jsonl:3", "bad_manifest_row"),
        ("m.jsonl:5", "bad_caption"),
        ("m.jsonl:5", "bad_manifest_row"),
        ("m.jsonl:6", "bad_manifest_row"),
    ]
    assert metrics["captions"] == 2 and metrics["uncaptioned"] == 2


def test_captions_of_one_picture_in_several_rows_files_shards_and_sources_are_merged(tmp_path):
    same = THREE["0.png"]
    put(
        tmp_path,
        {
            "one/a.png": same,
            "one/b.png": THREE["1.png"],
            "one/m.jsonl": lines({"file": "a.png", "caption": "first"}, {"file": "b.png", "caption": "b"}),
        },
    )
    put(
        tmp_path,
        {
            "two/c.png": same,
            "two/c.txt": "second",
            "three/x/copy.png": same,
            "three/x/img.png": same,
            "three/rows.jsonl": lines(
                {"image": "x/copy.png", "text": ["third", "first"]},
                {"image": "x/img.png", "text": "fourth"},
                {"image": "x/img.png", "text": 7},
            ),
        },
    )
    given = [
        images(tmp_path / "one", {"manifest": "m.jsonl"}),
        images(tmp_path / "two", {"from": "sidecar"}, name="two"),
        {"kind": "jsonl", "uri": str(tmp_path / "three"), "image_field": "image"},
    ]
    for shard_items in (1, 100):
        metrics, found, rejects = listed(*given, shard_items=shard_items)
        assert {row["path"]: row["captions"] for row in found} == {
            "a.png": ["first", "second", "third", "fourth"],
            "b.png": ["b"],
        }
        assert metrics["duplicates"] == 4 and [r["code"] for r in rejects] == ["bad_caption"]
    metrics, found, _ = listed(images(tmp_path / "three", include="*.png"), given[1])
    assert [row["captions"] for row in found] == [["second"]] and found[0]["caption"] == "second"


def test_a_killed_pass_over_duplicates_gives_the_same_captions(tmp_path, monkeypatch):
    put(
        tmp_path,
        {
            "a.png": THREE["0.png"],
            "b.png": THREE["0.png"],
            "c.png": THREE["1.png"],
            "m.jsonl": lines(
                {"file": "a.png", "caption": "A"}, {"file": "b.png", "caption": "B"}, {"file": "c.png", "caption": "C"}
            ),
        },
    )
    config = ingest.Config.model_validate({"sources": [images(tmp_path, {"manifest": "m.jsonl"})], "shard_items": 1})
    root, real, calls = f"memory://killed-{time.monotonic_ns()}", changes.write, []
    context = SimpleNamespace(
        config=config, output=f"{root}/o", state=f"{root}/s", predecessor=None, progress=lambda *a, **k: None
    )

    def dies(*given):
        calls.append(given)
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(changes, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        ingest.run(context)
    monkeypatch.setattr(changes, "write", real)
    for _ in range(2):
        metrics = ingest.run(context)
        assert [row["captions"] for row in records.iterate(context.output)] == [["A", "B"], ["C"]]
    assert calls and metrics["duplicates"] == 1


def test_rows_of_a_jsonl_with_media_keep_their_picture(tmp_path):
    rows = [
        {"image": "0.png", "caption": 7},
        {"image": "1.png", "caption": "a", "text": "b"},
        {"image": "2.png", "text": ["x", "y"], "label": {"a": 1}},
    ]
    put(tmp_path, {**THREE, "rows.jsonl": lines(*rows)})
    source = {"kind": "jsonl", "uri": str(tmp_path), "image_field": "image"}
    _, found, rejects = listed(source)
    assert [row["captions"] for row in found] == [[], [], ["x", "y"]]
    assert [(reject["part"], reject["code"]) for reject in rejects] == [
        (1, "bad_caption"),
        (2, "bad_caption"),
        (3, "bad_manifest_row"),
    ]
    _, found, _ = listed({**source, "caption_field": "text"})
    assert [row["captions"] for row in found] == [[], ["b"], ["x", "y"]]


# ---- texts beside the pictures ----


def test_sidecars(tmp_path):
    put(
        tmp_path,
        {
            "a.png": picture(),
            "a.txt": "one picture,\r\nof two lines\n",
            "sub/b.jpg.png": picture(),
            "sub/b.jpg.caption": "\ufeffanother",
            "c.png": picture(),
            "c.png.txt": "third",
            "d.png": picture(),
            "e.png": picture(),
            "e.txt": "  \n",
            "f.png": picture(),
            "f.txt": b"\xff\xfe\xfa",
            "README.txt": "x",
        },
    )
    source = images(tmp_path, {"from": "sidecar"})
    metrics, found, rejects = listed(source)
    assert {row["path"]: row["captions"] for row in found} == {
        "a.png": ["one picture,\nof two lines"],
        "sub/b.jpg.png": ["another"],
        "c.png": ["third"],
        "d.png": [],
        "e.png": [],
        "f.png": [],
    }
    assert [(reject["path"], reject["code"]) for reject in rejects] == [("f.txt", "bad_caption")]
    assert metrics["uncaptioned"] == 3 and metrics["files"] == 6 and metrics["files_rejected"] == 0
    config = ingest.Config.model_validate({"sources": [source]})
    before = ingest.listing(config)
    put(tmp_path, {"a.txt": "other words"})
    assert ingest.listing(config) != before
    for other in (None, {"from": "file"}, {"from": "folder"}):  # they are there, and nobody asked for them
        metrics, _, _ = listed(images(tmp_path, other))
        assert "5 texts beside pictures were not read (captions: {from: sidecar} reads them)" in ingest.summary(metrics)


def test_a_folder_without_sidecars_is_an_error(tmp_path):
    put(tmp_path, {**THREE, "README.txt": "x"})
    with pytest.raises(InputError, match="a.png and a.txt") as caught:
        ingest.listing(ingest.Config.model_validate({"sources": [images(tmp_path, {"from": "sidecar"})]}))
    assert caught.value.field == f"{FIELD}.from"


def test_pages_that_are_not_taken_are_told(tmp_path):
    frames = [Image.fromarray(RNG.integers(0, 256, (12, 12, 3), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "one.tiff")
    frames[2].save(tmp_path / "one.png")
    metrics, found, _ = listed(images(tmp_path))
    pages = {row["path"]: json.loads(row["meta"]).get("pages") for row in found}
    assert pages == {"one.png": None, "one.tiff": None, "pages.tiff": 3} and metrics["multipage"] == 1
    assert "1 pictures with several pages" in ingest.summary(metrics)


def test_meta_that_utf8_cannot_spell_stops_nothing(tmp_path):
    deep = json.loads("[" * 90 + "]" * 90)
    rows = [{"file": "0.png", "caption": "c", "note": "\ud800"}, {"file": "1.png", "caption": "d", "note": deep}]
    put(tmp_path, {**THREE, "m.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    _, found, rejects = listed(images(tmp_path, {"manifest": "m.jsonl", "meta_fields": ["note"]}))
    assert rejects == [] and [json.loads(row["meta"]) for row in found] == [{"note": "\ud800"}, {"note": deep}, {}]


def test_captions_of_a_folder_stay_when_the_folder_is_moved(tmp_path):
    put(tmp_path / "a", {**THREE, "metadata.csv": table(["file_name", "text"], ["0.png", "x"])})
    os.rename(tmp_path / "a", tmp_path / "b")
    assert captions(images(tmp_path / "b"))["0.png"] == ["x"]


def test_captions_on_an_object_store(s3):
    """A store that lists everything at once, without folders, over HTTP."""
    put(
        s3,
        {
            "in/a.png": THREE["0.png"],
            "in/sub/b.png": THREE["1.png"],
            "in/sub/b.txt": "B",
            "in/.hid/c.png": picture(),
            "in/rows/r.jsonl": lines(
                {"image": "../sub/b.png", "caption": "row"},
                {"image": "none.png", "caption": "x"},
                {"image": f"{s3}/in/a.png", "caption": "whole"},
                {"image": "s3://other/a.png"},
            ),
            "m.csv": table(["file", "caption"], ["a.png", "A"], [f"{s3}/in/sub/b.png", "by URI"], ["../m.csv", "no"]),
        },
    )
    metrics, found, rejects = listed(images(f"{s3}/in", {"manifest": "../m.csv"}))
    assert {row["path"]: row["captions"] for row in found} == {"a.png": ["A"], "sub/b.png": ["by URI"]}
    assert [reject["code"] for reject in rejects] == ["outside_root"]
    assert captions(images(f"{s3}/in", {"from": "sidecar"})) == {"a.png": [], "sub/b.png": ["B"]}
    _, found, rejects = listed({"kind": "jsonl", "uri": f"{s3}/in", "image_field": "image"})
    assert [(row["part"], row["captions"]) for row in found] == [(1, ["row"]), (3, ["whole"])]
    assert [(reject["part"], reject["code"]) for reject in rejects] == [(2, "missing_file"), (4, "remote_media")]
