"""Zips and tars as roots, whatever kind of source reads them, and files that braces stand for."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
import zipfile

import pyarrow as pa
import pytest
from ingested import lines, picture, put, take, tarred, zipped

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.ingest.files.braces import expand, folder, has_braces

PICTURES = {f"a/{n}.png": picture() for n in range(3)}
FILES = {
    **PICTURES,
    "a/metadata.jsonl": lines(*({"file_name": f"{n}.png", "text": f"number {n}"} for n in range(3))).encode(),
    "b/ü — ein sehr langer Name" + "x" * 120 + ".txt": b"A text.\n",
    "b/rows.jsonl": lines({"image": "../a/0.png", "caption": "zero"}).encode(),
    "doc.md": b"# Page\n\n![one](a/1.png)\n",
    ".hidden/c.png": picture(),
    "__MACOSX/a/._0.png": b"resource fork",
}


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


ARCHIVES = {
    "corpus.zip": zipped(FILES),
    "corpus.tar": tarred(FILES),
    "gnu.tar": tarred(FILES, tarfile.GNU_FORMAT),
    "corpus.tar.gz": gzip.compress(tarred(FILES)),
    "corpus.tgz": gzip.compress(tarred({f"./{name}": data for name, data in FILES.items()})),
    "corpus.tar.bz2": bz2.compress(tarred(FILES)),
    "corpus.tar.zst": zstd(tarred(FILES)),
}


def sources(uri: str) -> list[dict]:
    return [
        {"kind": "image_folder", "uri": uri},
        {"kind": "text", "uri": uri, "include": "*.txt"},
        {"kind": "jsonl", "uri": uri, "image_field": "image", "include": "b/*.jsonl"},
        {"kind": "interleaved", "uri": uri},
    ]


def made(uri: str) -> list[tuple]:
    _, records, rejects = take(*sources(uri))
    assert not rejects
    return sorted((row["id"], path, part, row["caption"]) for (path, part), row in records.items())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    return made(put(tmp_path_factory.mktemp("folder"), FILES))


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_the_folder_that_it_would_unpack_to(tmp_path, unpacked, name, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    put(tmp_path, {name: ARCHIVES[name]})
    assert made(str(tmp_path / name)) == unpacked and len(unpacked) == 5
    assert {row[3] for row in unpacked} == {"number 0", "number 1", "number 2", None}
    assert made(str(tmp_path / name)) == unpacked  # from the cache, where a compressed tar has one
    caches = len(list((tmp_path / "cache").glob("*.tar"))) if (tmp_path / "cache").exists() else 0
    assert caches == (not name.endswith((".zip", ".tar")))


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar"])
def test_an_archive_may_lie_in_a_store(name, unpacked):
    uri = f"memory://archives/{name}"
    storage.write_bytes(uri, ARCHIVES[name])
    assert made(uri) == unpacked


def member(name: str, type: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, link
    return info


EVIL = {"../../evil.png": picture(), "/tmp/evil2.png": picture(), "ok/../../evil3.png": picture()}
LINKS = (
    member("linked.png", tarfile.SYMTYPE, "a/fine.png"),
    member("b/up.png", tarfile.SYMTYPE, "../a/fine.png"),
    member("hard.png", tarfile.LNKTYPE, "a/other.png"),
    member("passwd.png", tarfile.SYMTYPE, "/etc/passwd"),
    member("above.png", tarfile.SYMTYPE, "../x.png"),
    member("gone.png", tarfile.SYMTYPE, "nowhere.png"),
    member("one.png", tarfile.SYMTYPE, "two.png"),
    member("two.png", tarfile.SYMTYPE, "one.png"),
    member("pipe.png", tarfile.FIFOTYPE),
    member("disk.png", tarfile.BLKTYPE),
)


def test_names_and_links_that_lead_out_are_rejects_and_nothing_is_written(tmp_path):
    fine = {"a/fine.png": picture(), "a/other.png": picture(), **EVIL}
    put(tmp_path, {"x/in/evil.tar": tarred(fine, special=LINKS), "x/in/evil.zip": zipped({**fine, "C:\\w.png": b"x"})})
    before = sorted(os.walk(tmp_path))
    metrics, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "x/in/evil.tar")})
    assert {path for path, _ in records} == {"a/fine.png", "a/other.png"} and metrics["duplicates"] == 3
    assert set(rejects) == {
        ("../../evil.png", "outside_root"),
        ("tmp/evil2.png", "outside_root"),
        ("ok/../../evil3.png", "outside_root"),
        ("passwd.png", "outside_root"),
        ("above.png", "outside_root"),
        ("gone.png", "missing_file"),
        ("one.png", "unreadable"),
        ("two.png", "unreadable"),
        ("pipe.png", "not_a_file"),
        ("disk.png", "not_a_file"),
    }
    _, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "x/in/evil.zip")})
    assert {path for path, _ in records} == {"a/fine.png", "a/other.png"}
    assert {code for _, code in rejects} == {"outside_root"} and len(rejects) == 4
    assert sorted(os.walk(tmp_path)) == before and not os.path.exists("/tmp/evil2.png")
    rows = tarred({"m.jsonl": lines({"image": "passwd.png"}, {"image": "../../evil.png"}).encode()}, special=LINKS)
    put(tmp_path, {"rows.tar": rows})
    with pytest.raises(InputError, match="outside_root 2"):
        take({"kind": "jsonl", "uri": str(tmp_path / "rows.tar"), "image_field": "image"})


def test_damaged_members_cost_themselves_alone(tmp_path):
    whole = bytearray(tarred(FILES))
    header = whole.index(b"a/1.png")
    whole[header + 150] ^= 0xFF  # its checksum
    bad = bytearray(ARCHIVES["corpus.zip"])
    at = bad.index(b"a/1.png") + 30
    bad[at : at + 8] = b"\0" * 8
    put(tmp_path, {"bad.tar": bytes(whole), "cut.tar": tarred(PICTURES)[: 512 * 3], "bad.zip": bytes(bad)})
    _, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "bad.tar"), "include": "*"})
    assert {path for path, _ in records} == {"a/0.png", "a/2.png"}
    assert any(path.startswith("byte ") and code == "corrupt" for path, code in rejects)
    _, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "bad.zip")})
    assert {path for path, _ in records} == {"a/0.png", "a/2.png"} and ("a/1.png", "unreadable") in rejects
    _, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "cut.tar")})
    assert {path for path, _ in records} == {"a/0.png"} and ("a/1.png", "truncated") in rejects


def test_an_encrypted_member_and_a_member_of_the_same_name(tmp_path):
    first, last = picture(), picture()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a.png", first)
        archive.writestr("a.png", last)
        archive.writestr("secret.png", picture())
    data = bytearray(sink.getvalue())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    put(tmp_path, {"a.zip": bytes(data), "a.png": last})
    _, records, rejects = take({"kind": "image_folder", "uri": str(tmp_path / "a.zip")})
    _, plain, _ = take({"kind": "image_folder", "uri": str(tmp_path / "a.png")})
    assert set(rejects) == {("secret.png", "unsupported")}
    assert records["a.png", 0]["id"] == plain["a.png", 0]["id"]


def test_what_is_no_archive_is_an_error_and_a_folder_may_be_called_so(tmp_path):
    put(tmp_path, {"no.zip": b"PK not", "no.tar": b"x" * 2000, "folder.zip/a.png": picture()})
    with pytest.raises(InputError, match="no.zip: BadZipFile"):
        take({"kind": "image_folder", "uri": str(tmp_path / "no.zip")})
    with pytest.raises(InputError, match="empty corpus"):
        take({"kind": "image_folder", "uri": str(tmp_path / "no.tar")})
    assert take({"kind": "image_folder", "uri": str(tmp_path / "folder.zip")})[0]["records"] == 1


def test_braces(tmp_path):
    assert expand("s-{000..002}.tar") == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert expand("{a,b}/{9..10}") == ["a/9", "a/10", "b/9", "b/10"]
    assert expand("{2..0}") == ["2", "1", "0"] and expand("{x}{}") == ["{x}{}"]
    assert has_braces("a{0..1}") and not has_braces("${x}") and folder("s3://b/c/d-{0..1}/e") == "s3://b/c"
    folder_ = put(tmp_path, {f"p{n}/{n}.png": picture() for n in range(4)} | {"lit{0..1}.txt": b"A literal name."})
    metrics, records, rejects = take({"kind": "image_folder", "uri": folder_ + "/p{1..2}/{1..2}.png"})
    assert {path for path, _ in records} == {"p1/1.png", "p2/2.png"}
    assert set(rejects) == {("p1/2.png", "missing_file"), ("p2/1.png", "missing_file")}
    assert take({"kind": "text", "uri": folder_ + "/lit{0..1}.txt"})[0]["records"] == 1
    with pytest.raises(InputError, match="none of 3 files is there"):
        take({"kind": "image_folder", "uri": folder_ + "/{5..7}.png"})


@pytest.mark.slow
def test_archives_and_shards_of_an_object_store(s3, unpacked, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    for name in ("corpus.zip", "corpus.tar", "corpus.tar.gz"):
        storage.write_bytes(f"{s3}/archives/{name}", ARCHIVES[name])
        assert made(f"{s3}/archives/{name}") == unpacked, name
    samples = {f"{n}.png": PICTURES[f"a/{n}.png"] for n in range(3)} | {
        f"{n}.txt": f"number {n}".encode() for n in range(3)
    }
    ordered = dict(sorted(samples.items()))
    storage.write_bytes(f"{s3}/shards/s-000.tar", tarred(ordered))
    storage.write_bytes(f"{s3}/shards/s-001.tar.gz", gzip.compress(tarred(ordered)))
    storage.write_bytes(f"{s3}/rows/a.jsonl.zst", zstd(lines({"text": "from a store"}).encode()))
    for uri in (f"{s3}/shards", f"{s3}/shards/s-{{000..000}}.tar", f"{s3}/shards/s-001.tar.gz"):
        metrics, records, rejects = take({"kind": "webdataset", "uri": uri}, shard_bytes=1024)
        assert {row["caption"] for row in records.values()} == {"number 0", "number 1", "number 2"} and not rejects
    metrics, _, _ = take({"kind": "jsonl", "uri": f"{s3}/rows", "text_field": "text"})
    assert metrics["records"] == 1
