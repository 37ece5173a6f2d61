"""Names of processes: what each part is, and what can and cannot be known of a process by its name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from omniloom.infra import owner

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux
def test_the_parts_of_a_name():
    host, pid, start, boot, namespace = owner.this_process().split(":")
    assert (host, int(pid)) == (socket.gethostname(), os.getpid())
    began = psutil.boot_time() + int(start) / os.sysconf("SC_CLK_TCK")
    assert began == pytest.approx(psutil.Process().create_time(), abs=1.5)
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert os.readlink("/proc/self/ns/pid") == f"pid:[{namespace}]"
    assert owner.lives(owner.this_process()) is True
    first = owner._state_and_start(1)  # what owns a lease in many containers
    assert owner.lives(f"{host}:1:{first[1]}:{boot}:{namespace}") is True
    assert owner.shown(owner.this_process()) == f"{host}, process {pid}" and owner.shown("alone") == "alone"


@linux
def test_a_process_lives_until_it_ends_and_a_zombie_has_ended(tmp_path):
    """Of a program whose name looks like the end of its own entry."""
    program = tmp_path / "a) Z (b"
    shutil.copy(shutil.which("sleep"), program)
    process = subprocess.Popen([program, "60"])
    try:
        while process.pid and b"a) Z (b" not in Path(f"/proc/{process.pid}/comm").read_bytes():
            time.sleep(0.01)
        *_, boot, namespace = owner.this_process().split(":")
        ticks = round((psutil.Process(process.pid).create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK"))
        names = [f"another-host:{process.pid}:{start}:{boot}:{namespace}" for start in range(ticks - 200, ticks + 201)]
        alive = [name for name in names if owner.lives(name)]
        assert len(alive) == 1, "it has one start, and the host's name says nothing"
        assert all(owner.lives(name) is False for name in names if name != alive[0])
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert owner.lives(alive[0]) is False
    finally:
        process.kill()
        process.wait()
    assert owner.lives(alive[0]) is False


@linux
@pytest.mark.parametrize(
    "change", [{1: "0"}, {1: "-1"}, {1: "x"}, {2: ""}, {3: ""}, {4: ""}, {3: "another boot"}, {4: "1"}], ids=str
)
def test_what_cannot_be_known(change):
    parts = owner.this_process().split(":")
    assert owner.lives(":".join(change.get(i, part) for i, part in enumerate(parts))) is None


@linux
def test_names_of_another_form_say_nothing():
    name = owner.this_process()
    for other in ("", "host", f"host:{os.getpid()}:abcdef", f"{name}:more", name.rpartition(":")[0]):
        assert owner.lives(other) is None


@linux
def test_a_process_of_another_user_is_judged_by_its_start(monkeypatch):
    def forbidden(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError

    name = owner.this_process()
    monkeypatch.setattr(os, "kill", forbidden)
    assert owner.lives(name) is True
    parts = name.split(":")
    assert owner.lives(":".join([*parts[:2], "1", *parts[3:]])) is False
    # /proc may hide it: then nothing is known.
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert owner._state_and_start(os.getpid()) is None


def test_without_proc_or_with_that_of_another_namespace_nobody_can_be_asked(monkeypatch):
    for answer in (OSError("no /proc"), "0", "~"):

        def readlink(path: str, answer=answer) -> str:
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(os, "readlink", readlink)
        name = owner.this_process()
        assert name.split(":")[3:] == ["", ""] and name.split(":")[1] == str(os.getpid())
        assert owner.lives(name) is None


@linux
def test_names_differ_between_processes():
    code = "from omniloom.infra import owner; print(owner.this_process())"
    names = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        ).stdout
        for _ in range(2)
    }
    assert len(names) == 2 and owner.this_process() not in names
