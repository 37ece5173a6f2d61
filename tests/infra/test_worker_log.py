"""A worker's log: what Python, native code and progress say, where it goes beside, and that it ends with the block."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from omniloom.infra import storage, worker_log
from omniloom.infra.progress import Progress

_WORKER = """
import ctypes, os, sys, warnings
from omniloom.infra import worker_log
from omniloom.infra.progress import Progress

uri, how = sys.argv[1:]
print("before")
with worker_log.kept(uri, "rank-0"):
    print("printed s3://user:secret@host/x")
    warnings.warn("an old name")
    os.write(2, b"native\\n")
    Progress("train").say("starting 2 workers")
    assert worker_log.folder() == uri
    if how == "killed":
        sys.stdout.flush()
        ctypes.string_at(0)
    if how == "raises":
        raise ValueError("no room at s3://user:secret@host/x")
print("after")
"""


def worker(uri: str, how: str = "ends") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", _WORKER, uri, how], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["ends", "raises", "killed"])
def test_all_that_a_worker_says_is_in_its_log(tmp_path, how):
    done = worker(f"{tmp_path}/runs/logs", how)
    assert done.stdout.startswith("before\n") and ("after" in done.stdout) == (how == "ends")
    log = (tmp_path / "runs/logs/rank-0.log").read_text()
    assert "before" not in log and "after" not in log and "secret" not in log
    lines = log.splitlines()
    assert "rank-0: process " in lines[0] and lines[1] == "printed s3://***@host/x"
    assert "UserWarning: an old name" in log and "native" in lines
    assert any(line.endswith(" starting 2 workers") for line in lines)
    if how == "raises":
        assert "ValueError: no room at s3://***@host/x" in log and "Traceback" in log
    if how == "ends":
        assert lines[-1].endswith(" ended")
        told = done.stdout + done.stderr
        assert "printed s3://***@host/x" in told and "native" in told, "Ray shows it where it is asked to"


def test_a_remote_storage_has_the_log_at_the_end(s3):
    uri = storage.join(s3, "logs")
    assert worker(uri).returncode == 0
    assert b"starting 2 workers" in storage.read_bytes(storage.join(uri, "rank-0.log"))


def test_a_second_block_and_a_folder_that_cannot_be_made_change_nothing(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    with worker_log.kept(f"{tmp_path}/file/logs", "body"):
        Progress("train").note("nobody keeps it")
        assert worker_log.folder() is None
    with worker_log.kept(None, "body"):
        assert worker_log.folder() is None
    with worker_log.kept(str(tmp_path), "body"), worker_log.kept(str(tmp_path), "other"):
        os.write(1, b"one\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["body.log", "file"]
    assert "one\n" in (tmp_path / "body.log").read_text()
    os.write(1, b"two\n")
    assert "two" in capfd.readouterr().out and "two" not in (tmp_path / "body.log").read_text()
