"""The record of a run: what it says at each end, and that the next run closes those of killed ones."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from omniloom.infra import owner, storage
from omniloom.infra.errors import InputError
from omniloom.pipelines.record import Record, close_killed

KILLED = """
import os, sys
from omniloom.pipelines.record import Record
with Record(sys.argv[1], "demo") as record:
    print(record.id, flush=True)
    sys.stdin.read() or os.kill(os.getpid(), 9)
"""


def read(root: str, name: str) -> dict:
    return storage.read_json(storage.join(root, "runs", f"{name}.json"))


@pytest.mark.parametrize("ends, status", [(None, "finished"), (KeyboardInterrupt, "killed"), (ValueError, "failed")])
def test_how_a_run_ended(root, ends, status):
    with pytest.raises(ends) if ends else pytest.MonkeyPatch.context():
        with Record(root, "demo") as record:
            record.stage("ingest", status="finished", fingerprint="ab")
            running = read(root, record.id)
            assert running["status"] == "running" and running["owner"] == owner.this_process()
            if ends:
                raise ends
    content = read(root, record.id)
    assert content["status"] == status and content["ended"] >= content["started"]
    assert content["stages"] == {"ingest": {"status": "finished", "fingerprint": "ab"}}


def test_the_next_run_closes_what_was_killed_and_nothing_that_lives(tmp_path):
    root = str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        name = process.stdout.readline().strip()
        with Record(root, "other"):
            assert read(root, name)["status"] == "running", "it lives"
        process.stdin.close()
        process.wait()
        assert read(root, name)["status"] == "running"
    with Record(root, "other") as record:
        assert read(root, name)["status"] == "killed" and read(root, name)["ended"]
        assert read(root, record.id)["status"] == "running"


@pytest.mark.parametrize("renewed, expected", [(-30, "running"), (-3600, "killed")])
def test_a_run_of_another_machine_is_judged_by_its_renewals(tmp_path, renewed, expected):
    now = time.time()
    content = {
        "id": "x",
        "pipeline": "demo",
        "status": "running",
        "started": "2020-01-01T00:00:00+00:00",
        "owner": "elsewhere:1:2:boot:3",
        "renewed_unix": now + renewed,
        "stages": {},
    }
    storage.write_json(str(tmp_path / "runs/x.json"), content)
    close_killed(str(tmp_path))
    assert read(str(tmp_path), "x")["status"] == expected


def test_a_record_of_an_earlier_version(tmp_path):
    """It says neither who nor when: as old as its start."""
    content = {"id": "x", "pipeline": "demo", "status": "running", "started": "2020-01-01T00:00:00+00:00", "stages": {}}
    storage.write_json(str(tmp_path / "runs/x.json"), content)
    storage.write_json(str(tmp_path / "runs/y.json"), {**content, "id": "y", "status": "failed"})
    assert close_killed(str(tmp_path)) == ["x"]
    assert read(str(tmp_path), "y")["status"] == "failed"


def test_a_storage_that_takes_no_files_is_a_wrong_request(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="storage: .*file cannot be written"), Record(str(tmp_path / "file"), "demo"):
        raise AssertionError("went on")
