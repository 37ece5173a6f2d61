"""Datasets as their makers lay them out: conversations, COCO, OBELICS, MMC4, Hugging Face folders, Lance."""

from __future__ import annotations

import base64
import importlib.util
import json
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_read import cut, picture, read

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import DEFAULT_LIMITS
from omniloom.stages.ingest.annotations import hugging_face
from omniloom.stages.ingest.files.listing import list_files
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.formats import coco as coco_format
from omniloom.stages.ingest.look import recognition
from omniloom.stages.ingest.look.glimpse import Glimpse
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.rows import media_row

IDS = [media_row("image", picture(n), DEFAULT_LIMITS)["id"] for n in range(4)]


def pictures(folder: Path, *names: str) -> None:
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(n))


def tell(record: dict) -> list:
    """A document as its texts, and the numbers of its pictures."""
    shown = [picture(n) for n in range(4)]
    return [s["text"] if s["type"] == "text" else shown.index(s["media"]) for s in record["segments"]]


def codes(rejects: list[dict]) -> list[tuple]:
    return [(row["part"], row["code"]) for row in rejects]


# ---- conversations ----


def turns(*texts: str) -> list[dict]:
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(texts)]


def test_a_conversation_of_llava_is_a_document_with_its_pictures(tmp_path):
    pictures(tmp_path, "coco/0.png", "coco/1.png")
    rows = [
        {"id": "a", "image": "coco/0.png", "conversations": turns("<image>\nWhat is it?", "Noise.", "Sure?", "Yes.")},
        {"id": "b", "image": "coco/1.png", "conversations": turns("What is it?", "Noise.")},
        {"id": "c", "image": ["coco/0.png", "coco/1.png"], "conversations": turns("<image> or <image>?", "Both.")},
        {"id": "d", "conversations": turns("Hello.", "Hi.")},
        {"id": "e", "image": "coco/0.png", "conversations": turns("<image> and <image>", "No.")},
        {"id": "f", "image": "gone.png", "conversations": turns("<image>", "No.")},
        {"id": "g", "image": "coco/0.png", "conversations": []},
        {"id": "h", "image": "coco/0.png", "conversations": [{"say": "x"}]},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    options = {"conversations_field": "conversations", "image_field": "image"}
    records, rejects = read("json", tmp_path / "chat.json", **options)
    assert [tell(record) for record in records] == [
        ["User: ", 0, "What is it?\nAssistant: Noise.\nUser: Sure?\nAssistant: Yes."],
        [1, "User: What is it?\nAssistant: Noise."],
        ["User: ", 0, " or ", 1, "?\nAssistant: Both."],
        ["User: Hello.\nAssistant: Hi."],
    ]
    wrong = ["bad_segments", "missing_file", "missing_field", "missing_field"]
    assert codes(rejects) == list(zip(range(5, 9), wrong, strict=True))


def test_messages_may_hold_their_pictures(tmp_path):
    data = f"data:image/png;base64,{base64.b64encode(picture(1)).decode()}"
    pictures(tmp_path, "0.png")
    content = [{"type": "text", "text": "Which?"}, {"type": "image", "image": "0.png"}]
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*content, {"type": "image_url", "image_url": {"url": data}}]},
        {"role": "assistant", "content": "Two."},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}))
    (record,), _ = read("jsonl", tmp_path, conversations_field="messages", image_field="messages")
    assert tell(record) == ["System: Be brief.\nUser: Which?", 0, 1, "Assistant: Two."]
    records, (reject,) = read("jsonl", tmp_path, conversations_field="messages")
    assert not records and "set image_field: messages" in reject["message"]


@pytest.mark.parametrize("cell", [json.dumps, list])
def test_a_conversation_without_pictures_is_a_text(tmp_path, cell):
    rows = [{"c": cell(turns("Hi <image>", "Ho"))}, {"c": cell([{"user": "one", "assistant": "two"}])}]
    pq.write_table(pa.table({"c": [row["c"] for row in rows[:1]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"c": [row["c"] for row in rows[1:]]}), tmp_path / "b.parquet")
    records, _ = read("parquet", tmp_path, conversations_field="c")
    assert [r["text"] for r in records] == ["User: Hi <image>\nAssistant: Ho", "User: one\nAssistant: two"]


# ---- COCO ----


def coco(folder: Path, name: str, images: dict[int, str], captions: list[tuple]) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    said = {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "CC BY"}],
        "images": [{"id": id, "file_name": file, "license": 1} for id, file in images.items()],
        "annotations": [{"id": n, "image_id": id, "caption": text} for n, (id, text) in enumerate(captions)],
    }
    (folder / "annotations" / name).write_text(json.dumps(said))


def test_pictures_of_coco_have_all_their_captions(tmp_path):
    pictures(tmp_path, "train2017/0001.jpg", "train2017/0002.jpg", "val2017/0001.jpg", "test2017/0009.jpg")
    captions = [(1, "a"), (2, "b"), (1, "c "), (1, "a"), (7, "of none"), (2, 5)]
    coco(tmp_path, "captions_train2017.json", {1: "0001.jpg", 2: "0002.jpg", 3: "0003.jpg"}, captions)
    coco(tmp_path, "captions_val2017.json", {1: "0001.jpg"}, [(1, "d")])
    coco(tmp_path, "captions_de_val2017.json", {1: "0001.jpg"}, [(1, "D"), (1, "d")])
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [], "annotations": [{"image_id": 1}]}')
    records, rejects = read("coco", tmp_path)
    assert [(r["path"], r["captions"], r["license"]) for r in records] == [
        ("train2017/0001.jpg", ["a", "c"], "CC BY"),
        ("train2017/0002.jpg", ["b"], "CC BY"),
        ("val2017/0001.jpg", ["D", "d"], "CC BY"),
    ]
    assert sorted(row["code"] for row in rejects) == ["bad_caption", "bad_manifest_row", "missing_file"]
    outside = str(tmp_path / "annotations/captions_val2017.json")
    records, _ = read("coco", tmp_path / "val2017", annotations=outside)
    assert [(r["path"], r["captions"]) for r in records] == [("0001.jpg", ["d"])]


def test_annotations_that_fit_no_picture_are_an_error(tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(InputError, match="no JSON file below it holds captions"):
        read("coco", tmp_path)
    coco(tmp_path, "captions.json", {1: "b.png"}, [(1, "b")])
    with pytest.raises(InputError, match="none of its 1 images is a picture below"):
        read("coco", tmp_path)


def test_karpathy_s_splits_and_a_manifest_of_a_folder_are_read_alike(tmp_path):
    pictures(tmp_path, "flickr/0.png")
    said = {"images": [{"filepath": "flickr", "filename": "0.png", "sentences": [{"raw": "one"}, {"raw": "two"}]}]}
    (tmp_path / "dataset_flickr.json").write_text(json.dumps({**said, "dataset": "flickr"}))
    for kind, options in (("coco", {}), ("image_folder", {"captions": {"manifest": "dataset_flickr.json"}})):
        (record,), rejects = read(kind, tmp_path, **options)
        assert (record["id"], record["captions"], rejects) == (IDS[0], ["one", "two"], [])


@pytest.mark.parametrize("suffix", ["json", "parquet", "jsonl", "csv"])
def test_a_manifest_of_a_folder_is_of_any_format_and_names_several_fields_of_captions(tmp_path, suffix):
    pictures(tmp_path, "0.png", "1.png")
    rows = [{"file": f"{n}.png", "alt": f"alt {n}", "long": f"long {n}"} for n in range(2)]
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("file,alt,long\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    captions = {"manifest": path.name, "caption_field": ["long", "alt"]}
    records, rejects = read("image_folder", tmp_path, captions=captions)
    assert [r["captions"] for r in records] == [["long 0", "alt 0"], ["long 1", "alt 1"]] and not rejects


# ---- documents of the web ----


@pytest.mark.parametrize("form", ["names", "bytes", "structs"])
def test_texts_and_images_of_obelics_are_documents(tmp_path, form):
    pictures(tmp_path, "0.png", "1.png")
    make = {"names": "{}.png".format, "bytes": picture, "structs": lambda n: {"bytes": picture(n), "path": None}}[form]
    broken = {"names": "gone.png", "bytes": b"none", "structs": {"bytes": b"none", "path": None}}[form]
    rows = [
        {"images": [None, make(0), None], "texts": ["one", None, "two"]},
        {"images": [make(1), broken], "texts": [None, None]},
        {"images": [broken, None], "texts": [None, "three"]},
        {"images": [make(0)], "texts": []},
        {"images": None, "texts": ["four"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    records, rejects = read("obelics", tmp_path)
    assert [tell(record) for record in records] == [["one", 0, "two"], [1]]
    gone = "missing_file" if form == "names" else "not_an_image"
    assert codes(rejects) == [(2, gone), (3, gone), (4, "bad_segments"), (5, "bad_segments")]


def test_sentences_of_mmc4_have_their_pictures_before_them(tmp_path):
    pictures(tmp_path, "images/0.png", "images/1.png")

    def image(name: str, at: object) -> dict:
        return {"image_name": name, "raw_url": "https://host/x", "matched_text_index": at}

    rows = [
        {"text_list": ["One.", "Two.", "Three."], "image_info": [image("1.png", 1), image("0.png", 1)]},
        {"text_list": ["One.", "Two."], "image_info": [image("0.png", 0), image("gone.png", 1)]},
        {"text_list": ["One."], "image_info": [image("0.png", 3)]},
        {"text_list": ["No picture."], "image_info": []},
    ]
    (tmp_path / "shard_0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, rejects = read("mmc4", tmp_path / "shard_0.jsonl", media_root=str(tmp_path / "images"))
    assert [tell(r) for r in records] == [["One.", 1, 0, "Two. Three."], [0, "One.", "Two."], ["No picture."]]
    assert codes(rejects) == [(2, "missing_file"), (3, "bad_segments")]
    with pytest.raises(InputError, match="no row has a field 'texts'"):
        read("obelics", tmp_path)


# ---- Hugging Face ----


def shard(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts)}), path)


def texts(uri: Path, **options) -> list[str]:
    return [row["text"] for row in read("hf_dataset", uri, text_field="text", **options)[0]]


def test_files_of_a_repository_are_chosen_by_subset_and_split(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / f"data/{split}-00000-of-00001.parquet", f"plain {split}")
        shard(tmp_path / f"de/{split}-00000-of-00001.parquet", f"german {split}")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    assert texts(tmp_path) == ["plain test", "plain train", "german test", "german train"]
    assert texts(tmp_path, split="train") == ["plain train", "german train"]
    assert texts(tmp_path, subset="de") == ["german test", "german train"]
    card = "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: train\n    path: data/train-*\n"
    (tmp_path / "README.md").write_text(
        f"{card}- config_name: de\n  data_files: 'de/*'\n---\n# About",
    )
    assert texts(tmp_path, subset="plain") == ["plain train"]
    assert texts(tmp_path, subset="de", split="test") == ["german test"]
    for options, field, said in (
        ({}, "subset", "the README names plain, de; set subset"),
        ({"subset": "fr"}, "subset", "the README names no 'fr'; it names plain, de"),
        ({"subset": "plain", "split": "test"}, "split", "no file is of 'test'; the splits are train"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            texts(tmp_path, **options)
        assert caught.value.field == f"sources.0.{field}"


@pytest.mark.parametrize(
    "path, split",
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/dev-00000-of-00002.parquet", "validation"),
        ("data/extra.part-00000-of-00002-ab12.parquet", "extra.part"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("default/partial-train/0000.parquet", "train"),
        ("my_val_file.csv", "validation"),
        ("training.json", "train"),
        ("contest/latest.csv", None),
        ("a.csv", None),
    ],
)
def test_a_path_names_a_split_as_the_library_has_it(path, split):
    assert hugging_face.split_of(path) == split


def test_the_cache_of_the_hub_is_read_by_its_revision(tmp_path):
    blobs = tmp_path / "datasets--a--b/blobs"
    for name, revision in (("one", "aaa"), ("two", "bbb")):
        shard(blobs / name, f"text {name}")
        folder = tmp_path / "datasets--a--b/snapshots" / revision
        folder.mkdir(parents=True)
        (folder / "train.parquet").symlink_to(blobs / name)
    with pytest.raises(InputError, match="it holds the snapshots aaa, bbb; set uri"):
        texts(tmp_path / "datasets--a--b")
    (tmp_path / "datasets--a--b/refs").mkdir()
    (tmp_path / "datasets--a--b/refs/main").write_text("bbb")
    assert texts(tmp_path / "datasets--a--b") == ["text two"]
    snapshot = tmp_path / "datasets--a--b/snapshots/aaa"
    with pytest.raises(InputError, match="follow_links: true"):
        texts(snapshot)
    assert texts(snapshot, follow_links=True) == ["text one"]


@pytest.mark.parametrize("whole", [True, False])
def test_what_save_to_disk_wrote_is_read(tmp_path, whole):
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": picture(n), "path": f"{n}.png"} for n in range(3)], "label": [0, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder = tmp_path / "train"
    folder.mkdir()
    new = pa.ipc.new_file if whole else pa.ipc.new_stream
    with new(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (folder / "cache-77.arrow").write_bytes(b"a cache")
    for name in ("state.json", "dataset_info.json", "../dataset_dict.json"):
        (folder / name).write_text('{"splits": ["train"]}')
    records, rejects = read("hf_dataset", tmp_path, image_field="image")
    assert [(r["id"], r["label"], r["part"]) for r in records] == [
        (IDS[0], "cat", 1), (IDS[1], "dog", 2), (IDS[2], "cat", 3),
    ]  # fmt: skip
    assert not rejects


def test_a_place_in_an_arrow_file_that_is_wrong_costs_its_rows_and_not_the_process(tmp_path):
    table = pa.table({"text": [f"t{n}" for n in range(9)]})
    path = tmp_path / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    data = path.read_bytes()
    places = struct.pack("<6i", 0, 2, 4, 6, 8, 10)
    assert data.count(places) == 1
    path.write_bytes(data.replace(places, struct.pack("<6i", 0, 2, 4, 1 << 30, 8, 10)))
    rows, rejects = read("hf_dataset", tmp_path, text_field="text")
    assert {"t0", "t1", "t5", "t6", "t7", "t8"} <= {row["text"] for row in rows}
    assert set(codes(rejects)) >= {(3, "invalid_table"), (4, "invalid_table")}


def test_a_folder_of_pictures_has_its_captions_from_metadata_else_its_labels_from_folders(tmp_path):
    pictures(tmp_path, "train/cat/0.png", "train/dog/1.png", "test/dog/2.png")
    records, _ = read("hf_dataset", tmp_path, image_field="image", split="train")
    assert [(r["id"], r["label"], r["captions"]) for r in records] == [(IDS[0], "cat", []), (IDS[1], "dog", [])]
    lines = [{"file_name": "cat/0.png", "alt": "a", "long": "b"}, {"file_name": "dog/1.png", "alt": "c", "long": "d"}]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"image_field": "image", "caption_field": ["alt", "long"], "split": "train"}
    records, rejects = read("hf_dataset", tmp_path, **options)
    assert [(r["label"], r["captions"]) for r in records] == [(None, ["a", "b"]), (None, ["c", "d"])] and not rejects


# ---- Lance ----


@pytest.mark.skipif(not importlib.util.find_spec("lance"), reason="needs omniloom[lance]")
def test_a_lance_dataset_is_read_in_whole_and_in_pieces(tmp_path):
    import lance

    table = pa.table({"image": [picture(n) for n in range(4)], "text": [f"text {n}" for n in range(4)]})
    lance.write_dataset(table, tmp_path / "a.lance", max_rows_per_file=2)
    lance.dataset(tmp_path / "a.lance").delete("text = 'text 1'")
    for uri, path in ((tmp_path, "a.lance"), (tmp_path / "a.lance", "a.lance")):
        records, rejects = read("lance", uri, image_field="image")
        assert [(r["id"], r["captions"], r["part"]) for r in records] == [
            (IDS[0], ["text 0"], 1), (IDS[2], ["text 2"], 2), (IDS[3], ["text 3"], 3),
        ]  # fmt: skip
        assert not rejects and {r["path"] for r in records} == {path}
    pieces, parted, whole = cut("lance", tmp_path, 1, 1000, image_field="image")
    assert len(pieces) == 2 and parted == whole
    with pytest.raises(InputError, match="no row has a field 'nope'; the fields are image, text"):
        read("lance", tmp_path, text_field="nope")


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.lance/data").mkdir(parents=True)
    (tmp_path / "a.lance/data/x.lance").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(InputError, match=r"omniloom\[lance\]") as caught:
        read("lance", tmp_path, text_field="text")
    assert caught.value.field == "sources.0.kind"


# ---- recognition ----


def recognized(folder: Path) -> tuple[str, dict]:
    root = Root(SourceConfig(kind="any", uri=str(folder)), 0)
    name, found = recognition.recognized(Glimpse(root, list_files(root)))[0]
    return name, found.options


def test_each_layout_is_recognized_with_options_that_read_it(tmp_path):
    def make(name: str, write) -> None:
        folder = tmp_path / name
        folder.mkdir()
        write(folder)
        kind, options = recognized(folder)
        records, _ = read(kind, folder, **options)
        assert records, (name, kind, options)
        found[name] = (kind, options)

    found: dict[str, tuple[str, dict]] = {}
    table = pa.table({"jpg": [picture(n) for n in range(3)], "caption": ["a b"] * 3, "license": ["CC0"] * 3})
    make("laion", lambda f: pq.write_table(table, f / "0.parquet"))
    make("hub", lambda f: pq.write_table(table, f / "train-00000-of-00001.parquet"))
    make("alpaca", lambda f: (f / "a.json").write_text(json.dumps([{"instruction": "do", "output": "done"}])))
    make("squad", lambda f: (f / "a.json").write_text(json.dumps({"v": 1, "data": [{"content": "a text"}]})))
    make("chat", lambda f: (f / "a.jsonl").write_text(json.dumps({"id": 1, "conversations": turns("Hi", "Ho")})))

    def llava(folder: Path) -> None:
        pictures(folder, "images/coco/0.png")
        rows = [{"id": "0", "image": "coco/0.png", "conversations": turns("<image>", "Ho")}]
        (folder / "llava.json").write_text(json.dumps(rows))

    def flickr(folder: Path) -> None:
        pictures(folder, "Images/0.png", "Images/1.png")
        (folder / "captions.csv").write_text("image,caption\nImages/0.png,a\nImages/0.png,b\nImages/1.png,c\n")

    def of_coco(folder: Path) -> None:
        pictures(folder, "train2017/0.png")
        coco(folder, "captions_train2017.json", {1: "0.png"}, [(1, "a")])

    def of_coco_twice(folder: Path) -> None:
        of_coco(folder)
        pictures(folder, "val2017/1.png")
        coco(folder, "captions_val2017.json", {1: "1.png"}, [(1, "a")])
        (folder / "annotations/instances_val2017.json").write_text('{"images": [{"id": 1}], "annotations": []}')

    def obelics(folder: Path) -> None:
        rows = [{"images": [None, picture(0)], "texts": ["one", None]}]
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")

    make("llava", llava)
    make("flickr", flickr)
    make("coco", of_coco)
    make("coco twice", of_coco_twice)
    make("obelics", obelics)
    assert found == {
        "laion": ("parquet", {"image_field": "jpg", "license_field": "license"}),
        "hub": ("hf_dataset", {"image_field": "jpg", "license_field": "license"}),
        "alpaca": ("json", {"template": "{instruction}\n{output}"}),
        "squad": ("json", {"rows_field": "data", "text_field": "content"}),
        "chat": ("jsonl", {"conversations_field": "conversations"}),
        "llava": (
            "json",
            {
                "conversations_field": "conversations",
                "image_field": "image",
                "media_root": str(tmp_path / "llava/images"),
            },
        ),
        "flickr": ("image_folder", {"captions": {"manifest": "captions.csv"}}),
        "coco": ("coco", {"annotations": "annotations/captions_train2017.json"}),
        "coco twice": ("coco", {}),
        "obelics": ("obelics", {}),
    }


# ---- anything in any field ----

KEYS = ["from", "value", "role", "content", "type", "text", "image", "path"]
WORDS = ["<image>", "0.png", "image", "user"]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
SAID = {name: ANY for name in ("id", "file_name", "image_id", "caption", "license", "sentences", "name")}
ANNOTATIONS = st.lists(ANY | st.fixed_dictionaries({}, optional=SAID), max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=4))
@pytest.mark.parametrize(
    "kind, names, options",
    [
        ("jsonl", ("c", "i"), {"conversations_field": "c", "image_field": "i"}),
        ("jsonl", ("c", "i"), {"conversations_field": "c"}),
        ("jsonl", ("i", "a.b"), {"image_field": "i", "caption_field": ["a.b", "i.text"], "license_field": "i"}),
        ("obelics", ("texts", "images"), {}),
        ("mmc4", ("text_list", "image_info"), {}),
    ],
)
def test_whatever_a_row_holds_it_is_a_record_or_a_reject_with_a_reason(tmp_path, kind, names, options, pairs):
    pictures(tmp_path, "0.png")
    rows = [dict(zip(names, pair, strict=True)) for pair in pairs] + [
        dict.fromkeys((*names, "a"), {"b": [{"text": 0}]})
    ]
    rows += [{"a": {"b": ""}, "i": {"text": ""}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, rejects = read(kind, tmp_path / "a.jsonl", **options)
    told = {row["part"] for row in (*records, *rejects)}
    assert told == set(range(1, len(rows) + 1)) and "failed" not in {row["code"] for row in rejects}


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["images", "annotations", "licenses"]), ANNOTATIONS))
def test_whatever_annotations_hold_they_are_rows_or_rejects(value):
    data = json.dumps(value).encode()
    annotations = coco_format.parse(data)
    assert annotations is None or all(isinstance(row, dict | Reject) for row in coco_format.rows(annotations))
