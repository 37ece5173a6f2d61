"""Leases: one owner at a time, among threads and processes; a dead owner's lease goes to exactly one waiter."""
from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from infra import storage
from infra.lease import Lease

COUNT = """
import sys, time
from infra.lease import Lease
uri, log, number = sys.argv[1:]
for _ in range(3):
    with Lease(uri, expiry=10, renewal=0.02):
        with open(log, "a") as file:
            file.write(f"{number} in\\n"); file.flush()
            time.sleep(0.02)
            file.write(f"{number} out\\n")
"""
HOLD = """
import sys, time
from infra.lease import Lease
with Lease(sys.argv[1], expiry=0.5, renewal=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


def held(uri: str) -> dict:
    return json.loads(storage.read_bytes(uri))


def leave_dead(uri: str, expiry: float = 1.0) -> None:
    storage.write_json(uri, {"owner": "gone:1:dead", "renewed": time.time() - 1000, "expiry": expiry})


def test_one_holds_and_the_other_waits(root):
    uri = storage.join(root, "leases/x.json")
    waited_for, order = [], []
    with Lease(uri, renewal=0.05) as first:
        second = Lease(uri, on_wait=waited_for.append, renewal=0.05)
        assert not second.try_acquire()

        def wait() -> None:
            with second:
                order.append("second")

        thread = threading.Thread(target=wait)
        thread.start()
        while not waited_for:
            time.sleep(0.005)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert [content["owner"] for content in waited_for] == [first.owner]
    assert storage.list_files(root) == {}


def test_renewal_keeps_the_lease_of_a_living_owner(root):
    uri = storage.join(root, "x.json")
    with Lease(uri, expiry=0.4, renewal=0.05) as lease:
        began, other = time.time(), Lease(uri)
        while time.time() < began + 0.8:
            assert not other.try_acquire()
            time.sleep(0.05)
        assert held(uri)["owner"] == lease.owner and held(uri)["renewed"] > began


def test_an_error_in_the_block_gives_the_lease_back(tmp_path):
    uri = str(tmp_path / "x.json")
    with pytest.raises(RuntimeError, match="in the block"), Lease(uri):
        raise RuntimeError("in the block")
    assert Lease(uri).try_acquire()


def test_renewal_outlives_a_storage_that_fails_for_a_while(tmp_path, monkeypatch):
    uri = str(tmp_path / "x.json")
    with Lease(uri, expiry=5, renewal=0.02):
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", lambda *a: (_ for _ in ()).throw(ConnectionError("down")))
            time.sleep(0.1)
        before = held(uri)["renewed"]
        deadline = time.time() + 5
        while held(uri)["renewed"] == before and time.time() < deadline:
            time.sleep(0.02)
        assert held(uri)["renewed"] > before


def test_a_dead_owners_lease_goes_to_exactly_one_of_many(root):
    uri = storage.join(root, "x.json")
    leave_dead(uri)
    leases = [Lease(uri) for _ in range(8)]
    start, won = threading.Barrier(8), []

    def take(lease: Lease) -> None:
        start.wait()
        if lease.try_acquire():
            won.append(lease)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and held(uri)["owner"] == won[0].owner
    assert list(storage.list_files(root)) == ["x.json"]


def test_a_waiter_that_looked_before_the_takeover_does_not_take_over_again(tmp_path, monkeypatch):
    """Second reads the dead lease, then first takes it over and clears its claim, then second goes on."""
    uri = str(tmp_path / "x.json")
    leave_dead(uri)
    first, second = Lease(uri), Lease(uri)
    read_json, looks = storage.read_json, []

    def read_then_let_first_in(path):
        content = read_json(path)
        if not looks:
            looks.append(path)
            assert first.try_acquire()
        return content

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_json", read_then_let_first_in)
        assert not second.try_acquire()
    assert held(uri)["owner"] == first.owner
    assert list(storage.list_files(str(tmp_path))) == ["x.json"]


def test_a_waiter_that_died_while_taking_over_blocks_nobody(tmp_path):
    uri = str(tmp_path / "x.json")
    leave_dead(uri)
    leave_dead(f"{uri}.claim")
    lease = Lease(uri)
    assert lease.try_acquire() and held(uri)["owner"] == lease.owner
    assert list(storage.list_files(str(tmp_path))) == ["x.json"]
    assert not Lease(uri).try_acquire()


def test_an_owner_that_was_taken_over_leaves_the_lease_alone(tmp_path):
    """As a machine that wakes up after a long sleep."""
    uri = str(tmp_path / "x.json")
    with Lease(uri, renewal=0.02):
        storage.write_json(uri, {"owner": "another", "renewed": time.time(), "expiry": 60})
        time.sleep(0.1)
        assert held(uri)["owner"] == "another"
    assert held(uri)["owner"] == "another"


def test_processes_exclude_each_other(tmp_path):
    uri, log = str(tmp_path / "leases/x.json"), tmp_path / "log"
    runs = [subprocess.Popen([sys.executable, "-c", COUNT, uri, str(log), str(number)]) for number in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    lines = log.read_text().splitlines()
    assert len(lines) == 18
    assert all(lines[i].split()[0] == lines[i + 1].split()[0] for i in range(0, 18, 2))
    assert [line.split()[1] for line in lines] == ["in", "out"] * 9


def test_a_killed_process_loses_its_lease(tmp_path):
    uri = str(tmp_path / "x.json")
    process = subprocess.Popen([sys.executable, "-c", HOLD, uri], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    assert not Lease(uri).try_acquire()
    process.kill()
    process.wait()
    process.stdout.close()
    killed = time.time()
    with Lease(uri, renewal=0.1) as lease:
        assert time.time() - killed < 10  # its process is gone: no wait for the expiry
        assert held(uri)["owner"] == lease.owner
