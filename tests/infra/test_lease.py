"""Leases: one owner at a time, among threads and processes; a dead owner's lease goes to exactly one waiter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from omniloom.infra import storage
from omniloom.infra.lease import Holder, Lease, LeaseLost, WaitEnded

COUNT = """
import sys, time
from omniloom.infra.lease import Lease
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
from omniloom.infra.lease import Lease
lost = lambda: print("lost", flush=True)
with Lease(sys.argv[1], on_lost=lost, expiry=float(sys.argv[2]), renewal=0.1):
    print("held", flush=True)
    time.sleep(60)
"""
TAKE = """
import sys, time
from omniloom.infra.lease import Lease
lease, end = Lease(sys.argv[1]), time.monotonic() + float(sys.argv[2])
print("waits", flush=True)
while time.monotonic() < end:
    if lease.try_acquire():
        print("taken", flush=True)
        break
    time.sleep(0.05)
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def held(uri: str) -> dict:
    return json.loads(storage.read_bytes(uri))


def leave(uri: str, owner: str, expiry: float = 60.0, **more) -> None:
    storage.write_json(uri, {"owner": owner, "renewed": time.time(), "expiry": expiry, **more})


@pytest.fixture(scope="module")
def ended() -> str:
    """The owner of a lease whose process of this machine has ended."""
    code = "from omniloom.infra.lease import Lease; print(Lease('x').owner)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def acquired_after(lease: Lease, patience: float) -> float | None:
    """Seconds until the lease is ours; None where it is not within `patience` seconds."""
    began = time.monotonic()
    while not lease.try_acquire():
        if time.monotonic() - began > patience:
            return None
        time.sleep(0.02)
    return time.monotonic() - began


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


def test_a_dead_owners_lease_goes_to_exactly_one_of_many(root, ended):
    uri = storage.join(root, "x.json")
    leave(uri, ended)
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


def test_a_waiter_that_looked_before_the_takeover_does_not_take_over_again(tmp_path, monkeypatch, ended):
    """Second reads the dead lease, then first takes it over and clears its claim, then second goes on."""
    uri = str(tmp_path / "x.json")
    leave(uri, ended)
    first, second = Lease(uri), Lease(uri)
    read_bytes, looks = storage.read_bytes, []

    def read_then_let_first_in(path):
        content = read_bytes(path)
        if not looks:
            looks.append(path)
            assert first.try_acquire()
        return content

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", read_then_let_first_in)
        assert not second.try_acquire()
    assert held(uri)["owner"] == first.owner
    assert list(storage.list_files(str(tmp_path))) == ["x.json"]


def test_a_waiter_that_died_while_taking_over_blocks_nobody(tmp_path, ended):
    uri = str(tmp_path / "x.json")
    leave(uri, ended)
    leave(f"{uri}.claim", ended)
    lease = Lease(uri)
    assert lease.try_acquire() and held(uri)["owner"] == lease.owner
    assert list(storage.list_files(str(tmp_path))) == ["x.json"]
    assert not Lease(uri).try_acquire()


def test_a_waiter_of_another_machine_that_died_while_taking_over_blocks_nobody(tmp_path):
    uri = str(tmp_path / "x.json")
    leave(uri, "gone:1:dead", expiry=0.2)
    leave(f"{uri}.claim", "gone:2:dead", expiry=0.2)
    assert acquired_after(Lease(uri), 10) > 0.4, "the lease's expiry, then the claim's"
    assert list(storage.list_files(str(tmp_path))) == ["x.json"]


def test_an_owner_that_was_taken_over_leaves_the_lease_alone_and_is_told_once(tmp_path):
    """As a machine that wakes up after a long sleep."""
    uri, told = str(tmp_path / "x.json"), []
    with Lease(uri, renewal=0.02, on_lost=lambda: told.append(threading.current_thread().name)) as lease:
        lease.require()
        leave(uri, "another")
        with pytest.raises(LeaseLost, match="another run has taken over"):
            lease.require()
        time.sleep(0.2)
        assert held(uri)["owner"] == "another"
    assert held(uri)["owner"] == "another" and told == ["lease"]


def test_a_lease_that_is_gone_was_lost(tmp_path):
    """Whoever took it over may be done with it, and with what was to be made, by now."""
    uri, told = str(tmp_path / "x.json"), []
    with Lease(uri, renewal=0.02, on_lost=lambda: told.append("lost")):
        storage.remove(uri)
        time.sleep(0.2)
        assert told == ["lost"] and storage.list_files(str(tmp_path)) == {}


# --- whose clock, and whose process


class Clock:
    """A monotonic clock of the waiter that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def acquired(self, lease: Lease, seconds: float) -> bool:
        """Look once a second for so long."""
        for _ in range(round(seconds)):
            self.now += 1
            if lease.try_acquire():
                return True
        return False


@pytest.mark.parametrize("skew", [-3600.0, -90.0, 90.0, 3600.0])
def test_clocks_do_not_matter(tmp_path, monkeypatch, skew):
    """A living owner of another machine keeps its lease and a dead one loses it, however wrong its clock is."""
    uri, clock = str(tmp_path / "x.json"), Clock(monkeypatch)
    lease = Lease(uri)
    for renewal in range(10):  # lives: the content changes
        leave(uri, "other:1:1:boot:1:abc", renewed=time.time() + skew, renewals=renewal)
        assert not clock.acquired(lease, 50)
    assert not clock.acquired(lease, 10) and clock.acquired(lease, 2)  # dead: 60 s without a change


@pytest.mark.parametrize("owner", ["other:{pid}:1234abcd", "{host}:{pid}:1234abcd", "{host}:1:1234abcd"])
def test_a_lease_of_an_earlier_version(tmp_path, owner):
    """HOST:PID:HEX says nothing of boot and namespace: only the expiry counts, even for a pid that is not there."""
    import socket

    uri = str(tmp_path / "x.json")
    leave(uri, owner.format(host=socket.gethostname(), pid=2**22 + 1), expiry=0.4)
    assert acquired_after(Lease(uri), 10) > 0.4


def test_a_damaged_lease_is_taken_over_once_nobody_renews_it(tmp_path):
    uri = str(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"")
    assert 0.3 < acquired_after(Lease(uri, expiry=0.3), 10)


def test_a_waiter_that_slept_has_not_watched(tmp_path, monkeypatch):
    """A machine that was suspended with owner and waiter on it: the waiter that wakes first sees an old lease."""
    uri, clock = str(tmp_path / "x.json"), Clock(monkeypatch)
    leave(uri, "other:1:1:boot:1:abc")
    lease = Lease(uri)
    assert not lease.try_acquire()
    clock.now += 5000
    assert not lease.try_acquire(), "one look after a long sleep counts as 15 s"
    assert not clock.acquired(lease, 45) and clock.acquired(lease, 1)


def test_a_reused_process_id_is_not_the_owner(tmp_path):
    """This process's id with another start time: the owner has ended, and nobody waits for the expiry."""
    uri = str(tmp_path / "x.json")
    host, pid, start, *rest = Lease(uri).owner.split(":")
    leave(uri, ":".join([host, pid, str(int(start) - 1), *rest]))
    assert acquired_after(Lease(uri), 10) < 1


@pytest.mark.parametrize("place", [3, 4])
def test_a_process_of_another_boot_or_namespace_is_not_judged_by_its_id(tmp_path, place):
    """Same host name, an id that is not there: another machine, container or boot; its lease has its time."""
    uri = str(tmp_path / "x.json")
    parts = Lease(uri).owner.split(":")
    parts[1], parts[place] = str(2**22 + 1), "another"
    leave(uri, ":".join(parts), expiry=0.4)
    assert acquired_after(Lease(uri), 10) > 0.4


def start(code: str, *arguments: str, before: list[str] | None = None) -> subprocess.Popen:
    process = subprocess.Popen(
        [*(before or []), sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() in ("held\n", "waits\n")
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"]).returncode != 0,
    reason="this machine makes no pid namespaces",
)
@pytest.mark.parametrize("inside", ["owner", "waiter"])
def test_a_living_owner_in_another_pid_namespace_keeps_its_lease(tmp_path, inside):
    """Two containers of one host name: `docker --network host`, `hostNetwork: true`."""
    uri = str(tmp_path / "x.json")
    owner = start(HOLD, uri, "1.0", before=NAMESPACE if inside == "owner" else None)
    try:
        waiter = start(TAKE, uri, "1.5", before=NAMESPACE if inside == "waiter" else None)
        assert waiter.communicate(timeout=60)[0] == ""
        assert held(uri)["owner"].split(":")[4] != Lease(uri).owner.split(":")[4] or inside == "waiter"
    finally:
        end(owner)


def test_an_owner_that_was_stopped_is_taken_over_and_told_when_it_wakes(tmp_path):
    uri = str(tmp_path / "x.json")
    owner = start(HOLD, uri, "0.5")
    try:
        os.kill(owner.pid, signal.SIGSTOP)
        lease = Lease(uri)
        assert acquired_after(lease, 20) > 0.4
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.stdout.readline() == "lost\n"
        assert held(uri)["owner"] == lease.owner
    finally:
        end(owner)


def test_processes_exclude_each_other(tmp_path):
    uri, log = str(tmp_path / "leases/x.json"), tmp_path / "log"
    runs = [subprocess.Popen([sys.executable, "-c", COUNT, uri, str(log), str(number)]) for number in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    lines = log.read_text().splitlines()
    assert len(lines) == 18
    assert all(lines[i].split()[0] == lines[i + 1].split()[0] for i in range(0, 18, 2))
    assert [line.split()[1] for line in lines] == ["in", "out"] * 9


def test_a_killed_process_loses_its_lease(tmp_path):
    """At once, and also while its parent has not waited for it: a zombie holds nothing."""
    uri = str(tmp_path / "x.json")
    process = start(HOLD, uri, "60")
    try:
        assert not Lease(uri).try_acquire()
        os.kill(process.pid, signal.SIGKILL)
        killed = time.time()
        with Lease(uri, renewal=0.1) as lease:
            assert time.time() - killed < 10  # its process is gone: no wait for the expiry
            assert held(uri)["owner"] == lease.owner
    finally:
        end(process)


def test_waiting_can_be_given_up(tmp_path):
    """A run that is interrupted while another makes what it wants ends at once."""
    uri, give_up = str(tmp_path / "x.json"), threading.Event()
    with Lease(uri):
        with pytest.raises(WaitEnded), Lease(uri, on_wait=lambda held: give_up.set(), give_up=give_up):
            raise AssertionError("the lease was taken twice")


def test_a_worker_that_was_left_behind_is_told(tmp_path, ended):
    """Its run was killed, or another run goes on with the same work folder."""
    state = str(tmp_path / "state")
    Holder(state).require()  # nobody noted whose work it is
    for first, later in ((Lease("x").owner, Lease("x").owner), (ended, ended)):
        Holder.write(state, first)
        worker = Holder(state)
        if first != ended:
            worker.require()
        Holder.write(state, later)
        with pytest.raises(LeaseLost):
            worker.require()


def test_a_waiter_looks_a_few_times_a_second_at_most(tmp_path, monkeypatch):
    """Twice a renewal, and once a second where renewals are far apart: stores bill by requests."""
    uri, looks = str(tmp_path / "lease.json"), []
    create = storage.create_exclusively
    with Lease(uri):
        monkeypatch.setattr(storage, "create_exclusively", lambda *a: looks.append(time.monotonic()) or create(*a))
        for renewal, pause in ((0.4, 0.2), (60.0, 1.0)):
            give_up = threading.Event()
            looks.clear()
            waiting = threading.Timer(2.5 * pause, give_up.set)
            waiting.start()
            with pytest.raises(WaitEnded), Lease(uri, renewal=renewal, give_up=give_up):
                pass
            gaps = [b - a for a, b in zip(looks, looks[1:])]
            assert 2 <= len(looks) <= 3 and all(gap >= 0.9 * pause for gap in gaps)


def test_how_long_a_lease_holds_where_nothing_is_said(tmp_path):
    lease = Lease(str(tmp_path / "lease.json"))
    assert (lease.expiry, lease.renewal) == (60.0, 10.0) and not lease.give_up.is_set() and not lease.lost.is_set()
