"""Sources of rows: Parquet, CSV and JSON files, whose columns the config names."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_read import cut, picture, read

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.identity import text_identity
from omniloom.stages.data.media.limits import DEFAULT_LIMITS, MediaError
from omniloom.stages.ingest.formats import delimited
from omniloom.stages.ingest.formats.json_stream import objects
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.rows import media_row

IDS = [media_row("image", picture(n), DEFAULT_LIMITS)["id"] for n in range(4)]
CAPTIONS = [["one"], ["two", "zwei"], [], ["four"]]


def tell(rows: list[dict]) -> list[tuple]:
    return [(row["id"], row["captions"], row["part"]) for row in rows]


EXPECTED = [(id, captions, part) for part, (id, captions) in enumerate(zip(IDS, CAPTIONS, strict=True), 1)]


def coded(rejects: list[dict]) -> list[tuple]:
    return [(row["part"], row["code"]) for row in rejects]


# ---- Parquet ----


@pytest.mark.parametrize("cell", ["bytes", "struct", "name", "data", "base64"])
def test_a_picture_in_parquet_is_bytes_a_struct_a_name_or_text(tmp_path, cell):
    (tmp_path / "pictures").mkdir()
    for n in range(4):
        (tmp_path / f"pictures/{n}.png").write_bytes(picture(n))
    make = {
        "bytes": picture,
        "struct": lambda n: {"bytes": picture(n), "path": f"{n}.png"} if n % 2 else {"path": f"pictures/{n}.png"},
        "name": lambda n: f"pictures/{n}.png",
        "data": lambda n: f"data:image/png;base64,{base64.b64encode(picture(n)).decode()}",
        "base64": lambda n: base64.b64encode(picture(n)).decode(),
    }[cell]
    table = pa.table({"picture": [make(n) for n in range(4)], "texts": CAPTIONS, "junk": [object is None] * 4})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    rows, rejects = read("parquet", tmp_path, image_field="picture")
    assert (tell(rows), rejects) == (EXPECTED, [])


def test_a_row_group_that_is_damaged_costs_itself(tmp_path):
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(9)]}), tmp_path / "a.parquet", 3, compression="none")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    facts = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    start = facts.dictionary_page_offset or facts.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    (tmp_path / "a.parquet").write_bytes(data)
    rows, rejects = read("parquet", tmp_path, text_field="text")
    assert [row["part"] for row in rows] == [1, 2, 3, 7, 8, 9] and coded(rejects) == [(4, "invalid_table")]


def test_what_is_no_parquet_costs_its_file(tmp_path):
    pq.write_table(pa.table({"text": ["a text"]}), tmp_path / "b.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more that is none PAR1")
    (tmp_path / "c.parquet").write_bytes(b"")
    rows, rejects = read("parquet", tmp_path, text_field="text")
    assert [row["path"] for row in rows] == ["b.parquet"]
    assert [(row["path"], row["code"]) for row in rejects] == [
        ("a.parquet", "invalid_table"),
        ("c.parquet", "invalid_table"),
    ]


def test_a_class_has_its_name_where_the_file_says_it(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [{"bytes": picture(n), "path": None} for n in range(3)], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = read("parquet", tmp_path, image_field="image")
    assert [row["label"] for row in rows] == ["dog", "cat", None]


def test_folders_may_be_columns_and_a_file_may_have_no_row(tmp_path):
    for label, texts in (("cat", ["a"]), ("big%20dog", ["b"]), ("__HIVE_DEFAULT_PARTITION__", ["c"]), ("none", [])):
        (tmp_path / f"who={label}").mkdir()
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / f"who={label}/0.parquet")
    rows, (reject,) = read("parquet", tmp_path, template="{text} {who}", exclude="*DEFAULT*")
    assert sorted(row["text"] for row in rows) == ["a cat", "b big dog"]
    assert (reject["path"], reject["code"]) == ("who=none/0.parquet", "empty")


# ---- columns ----


def written(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
@pytest.mark.parametrize(
    "options, option, missing",
    [
        ({"text_field": "texte"}, "text_field", "texte"),
        ({"template": "{text} {nowhere}"}, "template", "nowhere"),
        ({"image_field": "image", "caption_field": ["text", "other"]}, "caption_field", "other"),
        ({"image_field": "image", "label_field": "class"}, "label_field", "class"),
        ({"text_field": "text", "group_field": "who"}, "group_field", "who"),
        ({"conversations_field": "turns"}, "conversations_field", "turns"),
    ],
)
def test_a_field_that_no_row_has_is_told_before_anything_is_read(tmp_path, kind, options, option, missing):
    path = written(tmp_path, kind, [{"text": "a", "image": "a.png", "label": "b"}] * 3)
    with pytest.raises(InputError) as caught:
        read(kind, path, **options)
    assert caught.value.field == f"sources.0.{option}"
    assert f"no row has a field {missing!r}; the fields are text, image, label" in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_captions_that_may_be_several_columns_are_a_choice(tmp_path, kind):
    path = written(tmp_path, kind, [{"image": "a.png", "caption": "a", "text": "b"}])
    with pytest.raises(InputError, match="'caption' and 'text' may both be captions; set caption_field") as caught:
        read(kind, path, image_field="image")
    assert caught.value.field == "sources.0.caption_field"


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
def test_captions_of_several_fields_are_all_kept(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [{"image": "a.png", "alt": "short", "text": "long", "third": "short"}]
    rows, _ = read(kind, written(tmp_path, kind, rows), image_field="image", caption_field=["text", "alt", "third"])
    assert [row["captions"] for row in rows] == [["long", "short"]]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_a_field_within_fields_is_named_with_a_dot(tmp_path, kind):
    rows = [{"meta": {"file": {"bytes": None, "path": "a.png"}}, "sentences": [{"raw": "one"}, {"raw": "two"}]}]
    (tmp_path / "a.png").write_bytes(picture(0))
    path = written(tmp_path, kind, rows)
    (row,), _ = read(kind, path, image_field="meta.file", caption_field="sentences.raw")
    assert (row["id"], row["captions"]) == (IDS[0], ["one", "two"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
def test_a_row_that_is_wrong_costs_itself_and_a_value_that_is_wrong_no_more_than_itself(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "b.png").write_bytes(b"no picture")
    names = ["a.png", "b.png", "../c.png", "", "https://host/d.png", "gone.png"]
    rows = [{"image": name, "caption": f"about {name}", "license": "CC0"} for name in names]
    (row,), rejects = read(kind, written(tmp_path, kind, rows), image_field="image", license_field="license")
    assert (row["captions"], row["license"]) == (["about a.png"], "CC0")
    assert [code for _, code in coded(rejects)] == [
        *("not_an_image", "outside_root", "missing_field", "remote_media", "missing_file"),
    ]


# ---- JSON ----


@pytest.mark.parametrize(
    "text, options",
    [
        ('[{"t": "one"}, {"t": "two"}]', {}),
        ('\ufeff [ {"t": "one"},\n{"t": "two"} ]\n', {}),
        ('{"t": "one"}\n{"t": "two"}\n', {}),
        ('{"info": {"data": [1, "]"]}, "data": [{"t": "one"}, {"t": "two"}], "more": []}', {"rows_field": "data"}),
    ],
)
def test_json_is_an_array_an_object_that_holds_one_or_objects(tmp_path, text, options):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows, rejects = read("json", tmp_path, text_field="t", **options)
    assert [(row["text"], row["part"]) for row in rows] == [("one", 1), ("two", 2)] and not rejects


def test_an_object_that_holds_the_rows_is_told(tmp_path):
    (tmp_path / "a.json").write_text('{"version": "1", "tags": ["a"], "data": [{"t": "one"}]}')
    with pytest.raises(InputError, match="no row has a field 't'.*rows_field: data reads the array in it"):
        read("json", tmp_path, text_field="t")
    with pytest.raises(InputError, match="no row has a field 'u'; the fields are t$"):
        read("json", tmp_path, text_field="u", rows_field="data")


@pytest.mark.parametrize(
    "text, kept, wrong",
    [
        ('[{"t": "a"}, {"t": nope}, {"t": "b"}]', ["a", "b"], [(2, "invalid_json")]),
        ('[{"t": "a"}, 7, "x]", null, ["y"], {"t": "b"}]', ["a", "b"], [(n, "invalid_json") for n in (2, 3, 4, 5)]),
        ('[{"t": "a"}, {"t": "b', ["a"], [(2, "invalid_json")]),
        ('[{"t": "a"}, {"t": "b"}', ["a", "b"], [(3, "invalid_json")]),
        ('[{"t": "a"}] [{"t": "b"}]', ["a"], [(2, "invalid_json")]),
        ('[{"t": "a"}, }, {"t": "b"}]', ["a", "b"], [(2, "invalid_json")]),
        ('[{"t": "a"}, {"t": "' + "x" * 3000 + '"}, {"t": "b"}]', ["a", "b"], [(2, "too_large")]),
        ('[{"t": "a"}, {"t": ' + "[" * 200 + "]" * 200 + '}, {"t": "b"}]', ["a", "b"], [(2, "invalid_json")]),
    ],
)
def test_a_value_of_an_array_that_is_wrong_costs_itself(tmp_path, text, kept, wrong):
    (tmp_path / "a.json").write_text(text)
    rows, rejects = read("json", tmp_path, limits={"max_bytes": 2000}, text_field="t")
    assert ([row["text"] for row in rows], coded(rejects)) == (kept, wrong)


@pytest.mark.parametrize("text", ["", " \n", '{"rows": 7}', '{"other": [1]}', "[1]", '{"rows": '])
def test_a_file_without_the_array_is_one_reject(text):
    with pytest.raises(MediaError, match="empty|expected an array|no array 'rows'|expected an object|ends before"):
        list(objects(iter([text.encode()]), 1000, field="rows"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4), st.integers(1, 40), st.booleans())
def test_an_array_is_read_as_json_reads_it_however_its_bytes_arrive(values, step, ascii):
    data = json.dumps(values, ensure_ascii=ascii, indent=step % 3 or None).encode("utf-8", "surrogatepass")
    blocks = (data[at : at + step] for at in range(0, len(data), step))
    expected = json.loads(data.decode("utf-8", "surrogateescape"))
    assert list(objects(blocks, 1 << 20)) == list(enumerate(expected, 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text('[]{}",:\\ 01a', max_size=200).map(str.encode), st.integers(1, 9))
def test_any_bytes_end_in_rows_and_rejects(data, step):
    blocks = (data[at : at + step] for at in range(0, len(data), step))
    try:
        rows = list(objects(blocks, 60))
    except MediaError:
        return
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    assert all(isinstance(row, dict | Reject) for _, row in rows)


def test_an_array_is_not_held_whole():
    import tracemalloc

    one = json.dumps({"t": "x" * 5000, "n": [1, {"a": "]"}]}).encode() + b","
    blocks = (b"[" * (n == 0) + one * 200 for n in range(60))  # 60 MB
    tracemalloc.start()
    count = sum(isinstance(row, dict) for _, row in objects(blocks, 1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 * 200 and peak < 16 << 20


# ---- tables of text ----

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0["), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), st.sampled_from(",;\t|"), st.integers(1, 30))
def test_a_table_is_read_as_it_was_written_however_its_bytes_arrive(cells, delimiter, step):
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *cells])
    data = sink.getvalue().encode()
    lines = delimited.Lines((data[at : at + step] for at in range(0, len(data), step)), "utf-8", 10_000)
    rows = [row for _, row in delimited.table(lines, ",;\t|")]
    expected = [{name: cell for name, cell in zip("abc", row, strict=True) if cell} for row in cells if any(row)]
    assert rows == expected


def test_lines_that_are_no_rows_cost_themselves(tmp_path):
    lines = [b"t,u", b"one,1", b"two,2,3", b"b\xffd,4", b"x" * 3000 + b",5", b'"a\nb",6', b"", b"last,7"]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    rows, rejects = read("csv", tmp_path, limits={"max_bytes": 1000}, text_field="t")
    assert [(row["text"], row["part"]) for row in rows] == [("one", 2), ("a\nb", 6), ("last", 9)]
    assert coded(rejects) == [(3, "bad_manifest_row"), (4, "invalid_utf8"), (5, "too_large")]


def test_a_table_without_a_line_of_names_has_them_from_the_config(tmp_path):
    (tmp_path / "train.tsv").write_text("a caption\t1\nanother\t2\n")
    rows, _ = read("csv", tmp_path, text_field="caption", columns=["caption", "number"])
    assert [row["text"] for row in rows] == ["a caption", "another"]


def test_an_encoding_is_that_of_the_option(tmp_path):
    (tmp_path / "a.csv").write_bytes("t;u\nÄpfel;1\n".encode("utf-16"))
    (tmp_path / "b.csv").write_bytes("t;u\nBäume;1\n".encode("latin-1"))
    rows, _ = read("csv", tmp_path, text_field="t", encoding="latin-1")
    assert [row["id"] for row in rows] == [text_identity("Äpfel"), text_identity("Bäume")]


# ---- pieces of large files ----


ROWS = [{"t": f"{n} " + 'é[]{}\\" ,\n;' * (n % 5), "i": n, "image": f"{n % 3}.png"} for n in range(60)]


@pytest.mark.parametrize("size, count", [(1, 1000), (150, 1000), (1000, 1000), (10**9, 7), (10**9, 10**9)])
@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl", "wrapped", "objects"])
@pytest.mark.parametrize("field", ["text_field", "image_field"])
def test_pieces_give_what_the_file_gives(tmp_path, kind, size, count, field):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path := tmp_path / "a.parquet", row_group_size=17)
    elif kind in ("wrapped", "objects"):
        text = json.dumps({"info": ["]"], "data": ROWS, "z": 1}, ensure_ascii=False, indent=1)
        text = text if kind == "wrapped" else "\ufeff" + "\n".join(map(json.dumps, ROWS))
        (path := tmp_path / "a.json").write_text(text)
    else:
        path = written(tmp_path, kind, ROWS)
    options = {field: "t" if field == "text_field" else "image", "rows_field": "data" if kind == "wrapped" else None}
    name = {"wrapped": "json", "objects": "json"}.get(kind, kind)
    options = {key: value for key, value in options.items() if value}
    pieces, parted, whole = cut(name, path, size, count, **options)
    assert parted == whole and len(whole) == 60
    if count < 10 and field == "image_field":
        assert len(pieces) >= 60 // count and all(piece["rows"] <= count for piece in pieces)
    if size == 150:
        assert len(pieces) > 3
    if count == size == 10**9:
        assert len(pieces) == 1 and "from" not in pieces[0]


@pytest.mark.parametrize(
    "kind, data",
    [
        ("json", b'[{"t": "a"}, {"t": nope}, 7, {"t": "b"}, {"t": "c'),
        ("json", b'[{"t": "a"}, {"t": "b"} '),
        ("json", b'[{"t": "a"}, {"t": "b"}] [{"t": "c"}]'),
        ("json", b"[]"),
        ("json", b'{"t": "a"}, } {"t": "b"}'),
        ("json", '[{"t": "ä"}, {"t": "b"}]'.encode("utf-16")),
        ("csv", b't,u\na,1\n"b\nb",2\nc,d,3\n\xff,4\n"unclosed,5\nx'),
        ("csv", b"t,u\ra,1\rb,2\rc,3\r"),
        ("csv", "t\nä\nb\n".encode("utf-16")),
        ("csv", b"t\r\na\r\n\r\nb\r\n"),
        ("jsonl", b'{"t": "a"}\n\nnope\n{"t": "b"}'),
    ],
)
def test_pieces_of_what_is_wrong_give_the_same_rejects(tmp_path, kind, data):
    (tmp_path / f"a.{kind}").write_bytes(data)
    _, parted, whole = cut(kind, tmp_path / f"a.{kind}", 1, 1000, text_field="t")
    assert parted == whole


# ---- what lies elsewhere ----


@pytest.fixture
def server(tmp_path):
    """The URL of pictures 0.png to 3.png."""
    import functools
    import http.server
    import threading

    (tmp_path / "served").mkdir()
    for n in range(4):
        (tmp_path / f"served/{n}.png").write_bytes(picture(n))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_uris_are_fetched_on_request_and_local_files_never(tmp_path, server):
    here = (tmp_path / "served/1.png").as_uri()
    names = [f"{server}/0.png", f"{server}/gone.png", here, f"simplecache::{here}", "/etc/hostname", "memory://2"]
    (tmp_path / "rows").mkdir()
    path = written(tmp_path / "rows", "csv", [{"url": name, "caption": "a"} for name in names])
    records, rejects = read("csv", path, image_field="url", remote=True)
    assert [(row["id"], json.loads(row["meta"])["file"]) for row in records] == [(IDS[0], names[0])]
    assert [code for _, code in coded(rejects)] == [
        *("missing_file", "remote_media", "remote_media", "missing_file", "missing_file"),
    ]
    records, rejects = read("csv", path, image_field="url")
    assert not records and {row["code"] for row in rejects} == {"remote_media", "missing_file"}
    assert "remote: true fetches" in rejects[0]["message"]
    with pytest.raises(ValueError, match="remote: goes with image_field or video_field"):
        read("csv", path, text_field="caption", remote=True)


def test_pictures_of_web_documents_are_fetched_and_those_that_are_gone_left_out(tmp_path, server):
    rows = [{"texts": ["a", None, None], "images": [None, f"{server}/gone.png", f"{server}/3.png"]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    (record,), (reject,) = read("obelics", tmp_path / "a.jsonl", remote=True)
    assert [s["type"] for s in record["segments"]] == ["text", "image"] and reject["code"] == "missing_file"
