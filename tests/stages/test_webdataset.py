"""WebDataset tars: what a sample is, however the tar is cut, and where it lies."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from ingested import picture, put, take, tarred

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data.media.decode import encode_mp4
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.look.looking import look
from omniloom.stages.ingest.readers import Reader


def sample(key: str, **members) -> dict[str, bytes]:
    def data(value) -> bytes:
        if isinstance(value, bytes):
            return value
        return (value if isinstance(value, str) else json.dumps(value)).encode()

    return {f"{key}.{name.replace('_', '.')}": data(value) for name, value in members.items()}


PICTURES = [picture() for _ in range(6)]


def plain(count: int = 6) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for n in range(count):
        facts = {"caption": f"number {n}", "label": "from json", "license": "cc0"}
        files |= sample(f"{n:06d}", png=PICTURES[n % 6], txt=f"number {n}\n", json=facts, cls=str(n))
    return files


def made(uri, **options) -> tuple[list[dict], dict]:
    _, records, rejects = take({"kind": "webdataset", "uri": str(uri), **options})
    return list(records.values()), rejects


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "deep/shard-000.tar"])
def test_a_sample_is_its_picture_with_captions_and_class(tmp_path, name):
    data = tarred(plain())
    put(tmp_path, {name: data if name.endswith(".tar") else gzip.compress(data)})
    records, rejects = made(tmp_path, license_field="json.license")
    assert not rejects and [row["caption"] for row in records] == [f"number {n}" for n in range(6)]
    assert [row["label"] for row in records] == [str(n) for n in range(6)]
    assert [row["captions"] for row in records] == [[f"number {n}"] for n in range(6)]
    assert {row["license"] for row in records} == {"cc0"} and json.loads(records[3]["meta"])["key"] == "000003"
    _, rows, _ = take(
        {"kind": "image_folder", "uri": put(tmp_path / "flat", {f"{n}.png": PICTURES[n] for n in range(6)})}
    )
    assert [row["id"] for row in records] == [rows[f"{n}.png", 0]["id"] for n in range(6)]


def test_which_members_are_meant(tmp_path):
    one, two, mask = picture(), picture(), picture()
    clip = encode_mp4(np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8), 4)
    files = {
        **sample("x/a", seg_png=mask, PNG=one, json={"long": "said at length", "text": "short"}),
        **sample("x/b", jpg=two, txt="beside", json={"caption": ["beside", "inside"]}),
        **sample("x/c", mp4=clip, transcript="spoken"),
        **sample("x/d", json={"text": "no picture"}),
    }
    files = {"x/": b"", "README": b"no sample", "./._a.png": b"resource fork", **files}
    put(tmp_path, {"a.tar": tarred({name: data for name, data in files.items() if name != "x/"})})
    records, rejects = made(tmp_path)
    assert [row["captions"] for row in records] == [["short"], ["beside", "inside"]]
    assert set(rejects) == {("a.tar", "missing_field")}
    masks, _ = made(tmp_path, image_field="seg.png", caption_field="json.long")
    assert [row["captions"] for row in masks] == [["said at length"]] and masks[0]["id"] != records[0]["id"]
    either, _ = made(tmp_path, image_field="jpg;png", caption_field=["txt", "json.text"])
    assert [row["captions"] for row in either] == [["short"], ["beside"]]
    assert [row["id"] for row in either] == [row["id"] for row in records]
    (video,), _ = made(tmp_path, video_field="video", caption_field="transcript")
    assert video["caption"] == "spoken" and video["frames"] == 4
    texts, _ = made(tmp_path, text_field="json.text")
    assert [row["text"] for row in texts] == ["short", "no picture"]
    with pytest.raises(InputError, match=r"no row has a field 'webp'; the fields are seg.png, png, "):
        made(tmp_path, image_field="webp")
    with pytest.raises(ValueError, match="media_root: goes with files that name others"):
        made(tmp_path, media_root="/")


def read(item_source: Config, items: list[dict]) -> list[tuple]:
    reader = Reader(item_source, 0)
    return [
        (row["part"], row.get("id") or row["code"], row.get("caption")) for item in items for row in reader.read(item)
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pieces_of_any_size_give_every_sample_once(tmp_path, format):
    # Of pax the name in a member's own header is another: ö is ? there.
    long = {tarfile.USTAR_FORMAT: "n", tarfile.GNU_FORMAT: "folder/" + "n" * 150, tarfile.PAX_FORMAT: "ö"}[format]
    files: dict[str, bytes] = {}
    for n in range(40):
        files |= sample(f"{long}{n:03d}", png=picture(), txt=f"number {n}" * (n * n), json={"n": n})
    put(tmp_path, {"a.tar": tarred(files, format)})
    config = Config.model_validate({"sources": [{"kind": "webdataset", "uri": str(tmp_path)}]})
    (item,) = sources.items(config)
    whole = read(config, [item])
    assert len(whole) == 40 and len({part for part, _, _ in whole}) == 40
    kind = Reader(config, 0).kind
    for size in (1, 512, 1024, 1536, 5000, 20_000, 70_000):
        pieces = list(kind.cut(item, size, 1000))
        assert read(config, pieces) == whole, size
        assert sum(piece["size"] for piece in pieces) == item["size"] and len(pieces) >= item["size"] // (size + 512)
    shards, _ = made(tmp_path)
    metrics, records, _ = take({"kind": "webdataset", "uri": str(tmp_path)}, shard_bytes=8192)
    assert [row["id"] for row in shards] == [row["id"] for row in records.values()]


def test_a_damaged_sample_costs_itself_alone(tmp_path):
    files = plain(5) | sample("000005", png=b"no picture", txt="x") | sample("000006", png=PICTURES[5], json="{bad")
    data = bytearray(tarred(files))
    at = data.index(b"000001.png") + 150
    data[at] ^= 0xFF
    put(tmp_path, {"bad.tar": bytes(data), "cut.tar": tarred(plain())[:-12_000], "none.tar": b"x" * 4096})
    records, rejects = made(tmp_path)
    paths = {path for path, _ in rejects}
    assert paths == {"bad.tar", "cut.tar", "none.tar"}
    codes = {code for path, code in rejects if path == "bad.tar"}
    assert codes == {"corrupt", "missing_field", "not_an_image", "invalid_json"}
    assert ("cut.tar", "truncated") in rejects and ("none.tar", "corrupt") in rejects
    assert len({row["caption"] for row in records}) == 5


def test_shards_by_braces_and_in_a_store(tmp_path):
    shards = {f"shards/s-{n:03d}.tar": tarred(sample(f"{n}", png=PICTURES[n], txt=f"shard {n}")) for n in range(4)}
    put(tmp_path, shards)
    records, rejects = made(f"{tmp_path}/shards/s-{{001..002}}.tar")
    assert [row["caption"] for row in records] == ["shard 1", "shard 2"] and not rejects
    for name, data in shards.items():
        storage.write_bytes(f"memory://wds/{name}", data)
    records, _ = made("memory://wds/shards/s-{000..003}.tar")
    assert [row["caption"] for row in records] == [f"shard {n}" for n in range(4)]
    records, _ = made(tmp_path / "shards" / "s-003.tar")
    assert [row["caption"] for row in records] == ["shard 3"]


def test_a_member_beyond_the_limit_and_one_that_a_stream_goes_past(tmp_path):
    big = io.BytesIO(b"\0" * 300_000).getvalue()
    files = sample("a", bin=big, png=PICTURES[0], txt="small") | sample("b", png=big, txt="large")
    put(tmp_path, {"a.tar.gz": gzip.compress(tarred(files)), "b.tar": tarred(files)})
    _, records, rejects = take({"kind": "webdataset", "uri": str(tmp_path)}, limits={"max_bytes": 100_000})
    assert {row["caption"] for row in records.values()} == {"small"}
    assert set(rejects) == {("a.tar.gz", "too_large"), ("b.tar", "too_large")}


def test_tars_are_recognized_by_what_their_first_samples_hold(tmp_path):
    clip = encode_mp4(np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8), 4)
    put(
        tmp_path,
        {
            "pictures/a.tar": tarred(plain()),
            "pictures/b.tar.gz": gzip.compress(tarred(plain())),
            "clips/a.tar": tarred(sample("a", mp4=clip, txt="a clip")),
            "texts/a.tar": tarred(sample("a", json={"text": "one"}) | sample("b", json={"text": "two"})),
            "code/a.tar": tarred({"src/main.c": b"int main;"}),
        },
    )
    seen = look(str(tmp_path))
    assert [(source.options["kind"], source.options["include"], source.records) for source in seen.sources] == [
        ("webdataset", ["clips/*.tar"], 1),
        ("webdataset", ["pictures/*.gz", "pictures/*.tar"], 12),
        ("webdataset", ["texts/*.tar"], 2),
    ]
    assert seen.unread == {".tar": 1}
    (one,) = look(str(tmp_path / "pictures" / "a.tar")).sources
    assert (one.options["kind"], one.records, one.captioned) == ("webdataset", 6, 6)
