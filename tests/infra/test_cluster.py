"""Connecting to Ray: a local one on the loopback interface alone, or exactly the address that is meant."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from omniloom.infra.cluster import _own_signals, _short_messages, connect, expect_deaths, use_token
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.head import Head

LOCAL = """
import os, psutil
from omniloom.infra.cluster import ClusterConfig, connect, connect_to, shutdown
cluster = connect_to(ClusterConfig(num_cpus=1, env={"OMNILOOM_TEST": "seen"}, log_to_driver=False))
assert (cluster.local, cluster.num_nodes, cluster.num_cpus) == (True, 1, 1), cluster
import ray
assert ray.get(ray.remote(lambda: os.environ["OMNILOOM_TEST"]).remote()) == "seen"
watches = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
assert ray.get(ray.remote(lambda: os.environ[watches]).remote()) == "0" and watches not in os.environ
again = connect()
assert (again.address, again.local) == (cluster.address, False)
assert os.environ["RAY_AUTH_MODE"] == "token"
family = [psutil.Process(), *psutil.Process().children(recursive=True)]
heard = {c.laddr.ip.removeprefix("::ffff:") for p in family for c in p.net_connections() if c.status == "LISTEN"}
assert heard == {"127.0.0.1"}, heard
shutdown()
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_a_local_ray_listens_on_the_loopback_interface_alone(tmp_path):
    """In spite of an address left in the environment: `local` means local."""
    env = {**os.environ, "HOME": str(tmp_path)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        env.pop(name, None)
    subprocess.run([sys.executable, "-c", LOCAL], check=True, env=env, timeout=120)
    assert (tmp_path / ".ray/auth_token").stat().st_size > 0


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1", "auto", "host:x"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(InputError, match="expected HOST:PORT") as caught:
        connect(address)
    assert caught.value.field == "cluster.address"


def test_nothing_answers(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster answers"):
        connect(dead)
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(InputError) as caught:
        connect()
    assert caught.value.field == "RAY_ADDRESS" and time.monotonic() - began < 5


def test_a_long_temporary_folder_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="41 characters"):
        connect(temp_dir="/" + "x" * 40)


def test_token_mode(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not use_token(create=False) and "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    assert not use_token(create=True), "what the user set stays"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert use_token(create=False) and os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("was_away", [True, False])
def test_another_head_in_its_place_is_noticed(monkeypatch, was_away):
    """Which nothing else tells: what this process waits for never comes. At once where nobody had answered before."""
    now, asked, reached = [100.0], [], [True]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("omniloom.infra.head.head_id", lambda address: asked.append(now[0]) or ids[-1])

    def reach(address, seconds):
        if not reached[-1]:
            raise ConnectionRefusedError("refused")

    monkeypatch.setattr("omniloom.infra.head.reach", reach)
    ids = ["a1"]
    head = Head("127.0.0.1:1", "a1", local=False)
    for _ in range(24):
        now[0] += 5
        head.require()
    assert 3 <= len(asked) <= 4 and not head.gone
    ids.append("b2")
    if was_away:
        reached.append(False)
        now[0] += 5
        head.require()
        reached.append(True)
    changed = now[0]
    with pytest.raises(OmniLoomError, match="another one in its place.*the next run goes on from here"):
        while now[0] < changed + 60:
            now[0] += 5
            head.require()
    assert head.gone and now[0] - changed <= (5 if was_away else 35)


@pytest.mark.parametrize("local, patience", [(True, 8), (False, 45)])
def test_a_head_that_is_gone_is_noticed(monkeypatch, local, patience):
    """Before Ray ends the process, which it does a minute after the head."""
    now = [0.0]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        head = Head(f"127.0.0.1:{listener.getsockname()[1]}", "", local)
        for _ in range(50):
            now[0] += 3
            head.require()
    for _ in range(patience // 3):
        now[0] += 3
        head.require()
    now[0] += 3
    with pytest.raises(OmniLoomError, match="Ray's head .* is gone.*the next run goes on from here"):
        head.require()


def test_ray_leaves_the_handlers_of_signals(monkeypatch):
    def ours(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with _own_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        assert signal.getsignal(signal.SIGTERM) is ours
        with pytest.raises(KeyboardInterrupt), _own_signals():  # Ray's handler, while it starts
            sys.exit(15)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit), _own_signals():
            sys.exit(15)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_ray_reports_is_shown_by_its_first_sentence(monkeypatch, capsys):
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: print(*data["lines"]))
    dead = "Raylet is terminated. Termination is unexpected.\n[state-dump] NodeManager:\n[state-dump] more"
    with _short_messages():
        for _ in range(2):
            worker.print_to_stdstream({"lines": [dead], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        worker.print_to_stdstream({"lines": ["of a worker"], "pid": 12, "is_err": False}, ignore_prefix=False)
        expect_deaths()
        worker.print_to_stdstream(
            {"lines": ["Another. And more."], "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
    assert capsys.readouterr() == ("of a worker\n", "Ray: Raylet is terminated\n")
