"""One copy a machine: whoever asks at once gets the same, whoever died holds nothing, and a cache keeps to its room."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omniloom.infra import storage
from omniloom.infra.cache import BoundedCache
from omniloom.infra.once import locked, once


def test_of_many_who_ask_at_once_one_makes_it(tmp_path):
    made, target = [], tmp_path / "deep" / "file"
    together = threading.Barrier(6)

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.05)
        path.write_bytes(b"content")

    def ask(_) -> bytes:
        together.wait()
        return once(target, make).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == [b"content"] * 6
    assert len(made) == 1 and [p.name for p in target.parent.iterdir()] == ["file"]


def test_what_could_not_be_made_is_not_there_and_the_next_makes_it(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        once(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []
    assert once(tmp_path / "file", lambda path: path.write_bytes(b"whole")).read_bytes() == b"whole"


def test_a_process_that_died_holds_nothing(tmp_path):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path / "lock"):
            os.write(writer, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    entered = []

    def enter() -> None:
        with locked(tmp_path / "lock"):
            entered.append(True)

    waits = threading.Thread(target=enter)
    waits.start()
    waits.join(0.1)
    assert not entered  # it lives
    os.kill(child, 9)
    os.waitpid(child, 0)
    waits.join(10)
    assert entered


def test_a_cache_removes_what_was_asked_for_longest_ago(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path))
    cache, fetched = BoundedCache("shards", limit=350), []

    def get(name: str) -> None:
        def fetch(path: Path) -> None:
            fetched.append(name)
            path.write_bytes(bytes(100))

        assert len(cache.get(name, fetch).read_bytes()) == 100

    now = time.time()
    for age, name in enumerate("abc"):
        get(name)
        os.utime(cache.file(name), (now - 100 + age, now - 100 + age))
    get("a")  # asked for again
    get("d")
    assert sorted(storage.list_files(str(cache.folder))) == ["a", "c", "d"] and fetched == ["a", "b", "c", "d"]
    get("b")
    assert sorted(storage.list_files(str(cache.folder))) == ["a", "b", "d"]
    other = BoundedCache("shards", limit=1000)  # of another process
    for name in "xyz":
        other.get(name, lambda path: path.write_bytes(bytes(100)))
    get("last")
    assert sum(storage.list_files(str(cache.folder)).values()) <= 350
