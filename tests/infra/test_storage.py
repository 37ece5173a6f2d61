"""Storage: the same operations on a local disk, in memory and on a real S3 server."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.storage import join

PATTERN_NAME = "a/x[1]*?.txt"  # must be taken as a name, not as a pattern


def test_files_are_written_read_and_listed(root):
    storage.write_bytes(join(root, "b/2.bin"), b"two")
    storage.write_bytes(join(root, "a/ä 1.bin"), b"")
    storage.write_bytes(join(root, "b/2.bin"), b"again")
    assert storage.read_bytes(join(root, "b/2.bin")) == b"again"
    assert list(storage.list_files(root).items()) == [("a/ä 1.bin", 0), ("b/2.bin", 5)]
    assert storage.list_files(root) == storage.list_files(root + "/")
    assert storage.exists(join(root, "b/2.bin")) and storage.exists(join(root, "b"))
    assert not storage.exists(join(root, "b/3.bin"))


def test_what_is_missing_is_none_or_empty(root):
    assert storage.read_json(join(root, "no.json")) is None
    assert storage.list_files(join(root, "no")) == {}
    storage.remove(join(root, "no"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(join(root, "no.bin"))


def test_json_round_trip_refuses_nan(root):
    value = {"ü": [1, 2.5, None, True], "nested": {"a": "b"}}
    storage.write_json(join(root, "x.json"), value)
    assert storage.read_json(join(root, "x.json")) == value
    with pytest.raises(ValueError):
        storage.write_json(join(root, "y.json"), {"loss": float("nan")})
    assert not storage.exists(join(root, "y.json"))


@pytest.mark.parametrize("name", ["a/plain.txt", PATTERN_NAME])
def test_move_copy_and_remove(root, name):
    storage.write_bytes(join(root, name), b"content")
    storage.write_bytes(join(root, "a/x1yz.txt"), b"other")  # what the pattern would match
    storage.copy_file(join(root, name), join(root, "copy", name))
    storage.move_files(root, join(root, "moved"), [name])
    assert storage.list_files(root) == {f"copy/{name}": 7, f"moved/{name}": 7, "a/x1yz.txt": 5}
    storage.remove(join(root, "copy", name))
    assert storage.list_files(root) == {f"moved/{name}": 7, "a/x1yz.txt": 5}
    storage.remove(join(root, "moved"))
    assert storage.list_files(root) == {"a/x1yz.txt": 5}


def test_folder_whose_name_looks_like_a_pattern(root):
    storage.write_bytes(join(root, "d[1]/x"), b"1")
    storage.write_bytes(join(root, "d1/x"), b"2")
    storage.remove(join(root, "d[1]"))
    assert list(storage.list_files(root)) == ["d1/x"]


def test_copies_between_filesystems(root, tmp_path):
    big = os.urandom(3 << 20)
    storage.write_bytes(join(root, "tree/a/big.bin"), big)
    storage.write_bytes(join(root, "tree/b.txt"), b"b")
    storage.copy_tree(join(root, "tree"), str(tmp_path / "down"))
    assert (tmp_path / "down/a/big.bin").read_bytes() == big
    storage.copy_tree(str(tmp_path / "down"), join(root, "up"))
    storage.move_files(str(tmp_path / "down"), join(root, "over"), ["b.txt"])
    assert storage.list_files(join(root, "up")) == {"a/big.bin": len(big), "b.txt": 1}
    assert storage.list_files(join(root, "over")) == {"b.txt": 1}
    assert storage.sha256(join(root, "up/a/big.bin")) == storage.sha256(str(tmp_path / "down/a/big.bin"))
    assert not (tmp_path / "down/b.txt").exists()


def test_one_of_many_creates_the_file(root):
    won = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        if storage.create_exclusively(join(root, "leases/x.json"), b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(join(root, "leases/x.json")) == b"%d" % won[0]
    assert list(storage.list_files(root)) == ["leases/x.json"]


def test_localize_copies_once_per_content(root, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    storage.write_bytes(join(root, "artifact/sub/x"), b"1")
    folder = storage.localize(join(root, "artifact"), "digest")
    assert (folder / "sub/x").read_bytes() == b"1"
    if storage.is_local(root):
        assert str(folder) == join(root, "artifact")
        return
    storage.write_bytes(join(root, "artifact/sub/x"), b"2")
    assert storage.localize(join(root, "artifact"), "digest") == folder
    assert (folder / "sub/x").read_bytes() == b"1"
    assert (storage.localize(join(root, "artifact"), "other") / "sub/x").read_bytes() == b"2"
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["digest", "other"]


def test_interrupted_copy_is_no_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    for name in "abc":
        storage.write_bytes(f"memory://interrupted/{name}", b"1")
    copied, copy = [], storage._copy

    def fail_at_the_second(source, target):
        copied.append(source)
        if len(copied) == 2:
            raise OSError("connection lost")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_copy", fail_at_the_second)
        with pytest.raises(OSError, match="connection lost"):
            storage.localize("memory://interrupted", "digest")
    assert sorted(p.name for p in storage.localize("memory://interrupted", "digest").iterdir()) == ["a", "b", "c"]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    target = str(tmp_path / "x.json")
    storage.write_bytes(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_bytes() == b"old"
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o644


def test_unfinished_writes_are_not_listed(tmp_path):
    (tmp_path / ".tmp-killed").write_bytes(b"part")
    (tmp_path / ".hidden").write_bytes(b"1")
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / ".tmp-folder" / "x").write_bytes(b"part")
    assert storage.list_files(str(tmp_path)) == {".hidden": 1}


@pytest.mark.parametrize("content", [b"", b"{", bytes(100), b"\xff\xfe", b"[1]", b"null", b'{"a": '])
def test_a_json_file_that_holds_none_is_named(root, content):
    storage.write_bytes(join(root, "x.json"), content)
    with pytest.raises(InputError, match="expected a JSON object") as caught:
        storage.read_json(join(root, "x.json"))
    assert caught.value.file == join(root, "x.json") and "x.json" in str(caught.value)


def test_a_json_file_that_has_to_be_there_is_read_or_named(root):
    storage.write_json(join(root, "x.json"), {"a": 1})
    assert storage.load_json(join(root, "x.json")) == {"a": 1}
    with pytest.raises(InputError, match="is missing; put it back") as caught:
        storage.load_json(join(root, "no.json"))
    assert caught.value.file == join(root, "no.json") and "no.json" in str(caught.value)


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("runs/demo") == f"{tmp_path}/runs/demo"
    assert storage.absolute("./a/../b/") == f"{tmp_path}/b"
    assert storage.absolute("~/runs") == "/home/someone/runs"
    assert storage.absolute("file:///data/run/") == "/data/run"
    assert storage.absolute("/data/run") == "/data/run"
    assert storage.absolute("s3://bucket/run/") == "s3://bucket/run"
    assert storage.absolute("memory://run") == "memory://run"
    assert storage.absolute("digits://") == "digits://"


def test_kinds_of_storage(tmp_path):
    assert storage.is_local("/a") and storage.is_local("file:///a") and not storage.is_local("s3://b/a")
    assert storage.is_process_local("memory://a") and not storage.is_process_local("/a")
    assert str(storage.local_path("file:///a/b")) == "/a/b" and storage.local_path("s3://b/a") is None
