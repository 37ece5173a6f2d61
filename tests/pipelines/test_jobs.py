"""Jobs on a real cluster of two nodes, and what is shipped to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cluster_fixture import start_cluster

from omniloom.infra.errors import InputError

ROOT = Path(__file__).parents[2]


def config_file(folder: Path) -> Path:
    file = folder / "small.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "storage": "runs/small",
                "data": "corpus",
                "tracking": {"uri": "sqlite:///runs/ml.db"},
                "stages": {
                    "ingest": {
                        "sources": [
                            {"kind": "image_folder", "uri": "${data}/images"},
                            {"kind": "text", "uri": "s3://bucket/text"},
                        ]
                    }
                },
            }
        )
    )
    return file


def test_what_is_shipped(tmp_path, monkeypatch):
    """Our packages and the config with everything resolved: it means the same from another folder."""
    from omniloom.infra.tree import ROOMS
    from omniloom.pipelines.jobs import pack

    monkeypatch.chdir(tmp_path)
    file = config_file(tmp_path)
    shipped = pack(str(file), ["data=elsewhere", "seed=3"], tmp_path / "tree")
    tree = tmp_path / "tree"
    config = yaml.safe_load((tree / shipped).read_text())
    assert config["storage"] == str(tmp_path / "runs/small")
    assert config["tracking"]["uri"] == f"sqlite:///{tmp_path}/runs/ml.db"
    assert [source["uri"] for source in config["stages"]["ingest"]["sources"]] == [
        str(tmp_path / "elsewhere/images"),
        "s3://bucket/text",
    ]
    assert config["seed"] == 3
    assert {path.name for path in tree.iterdir()} == {"omniloom", "config"}
    assert {path.name for path in (tree / "omniloom").iterdir()} == {*ROOMS, "__init__.py", "REVISION"}
    assert (tree / "omniloom/stages/reporting/report.html").exists() and (tree / "omniloom/pipelines/cli.py").exists()
    assert not list(tree.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in tree.rglob("*")) < 5e6
    help_text = subprocess.run(
        [sys.executable, "-m", "omniloom.pipelines.cli", "run", "--help"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "CONFIG" in help_text


@pytest.mark.parametrize(
    "status, code, kind, killed",
    [
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", True),
        ("FAILED", 137, "JOB_ENTRYPOINT_COMMAND_ERROR", True),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", True),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", False),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", False),
        ("FAILED", 130, "JOB_ENTRYPOINT_COMMAND_ERROR", False),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", False),
        ("STOPPED", None, None, False),
        ("SUCCEEDED", 0, None, False),
    ],
)
def test_a_job_that_did_not_end_by_itself(status, code, kind, killed):
    from ray.job_submission import JobDetails, JobType

    from omniloom.pipelines.jobs import _job

    details = JobDetails(
        type=JobType.SUBMISSION, status=status, entrypoint="run", driver_exit_code=code, error_type=kind
    )
    assert _job(details).killed is killed


def test_a_job_is_given_the_time_for_its_checkpoints(tmp_path):
    from omniloom.pipelines.config import load
    from omniloom.pipelines.jobs import _closing, grace

    assert grace(load(str(config_file(tmp_path)), [])) == 0.0, "nothing trains"
    assert grace(load("demo", ["stages.train.workers.grace_seconds=90"])) == 90.0
    assert _closing({"omniloom.closing_seconds": "115"}) == "115" and _closing(None) == "25"


@pytest.mark.parametrize("address", ["", "ftp://host", "http://host:port"])
def test_an_address_that_is_none(address):
    from omniloom.pipelines.jobs import jobs

    with pytest.raises(InputError, match="expected the address") as caught:
        jobs(address)
    assert caught.value.field == "address"


def test_nothing_answers():
    from omniloom.pipelines.jobs import jobs

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray dashboard answers"):
        jobs(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 5


def test_the_interpreter(monkeypatch):
    from omniloom.pipelines.jobs import _interpreter

    monkeypatch.delenv("OMNILOOM_PYTHON", raising=False)
    assert _interpreter(None, "http://127.0.0.1:8265") == sys.executable
    assert _interpreter(None, "http://ray-head.example:8265") == "python"
    monkeypatch.setenv("OMNILOOM_PYTHON", "/opt/venv/bin/python")
    assert _interpreter(None, "127.0.0.1:8265") == "/opt/venv/bin/python"
    assert _interpreter("/usr/bin/python3", "127.0.0.1:8265") == "/usr/bin/python3"


def call(code: str, env: dict[str, str], *arguments: str) -> str:
    """Run client code in a process of its own: Ray reads its authentication settings once."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LIFE = '''
import sys, time
from pathlib import Path
from omniloom.infra.errors import InputError
from omniloom.pipelines.jobs import _client, job, jobs, logs, start, stop, wait
address, folder = sys.argv[1], Path(sys.argv[2])
# Lines come as they are written: after each the job waits until it was read.
count = """
import sys, time
from pathlib import Path
for i in range(4):
    print("line", i)
    time.sleep(0.3)
    began = time.monotonic()
    while not Path(sys.argv[1], f"read line {i}").exists():
        assert time.monotonic() - began < 40, "nobody read the line"
        time.sleep(0.05)
"""
command = [sys.executable, "-c", count, str(folder.parent)]
first = start(_client(address), command, folder, None, {"omniloom.config": "demo"})
seen = []
for line in logs(address, first, follow=True):
    if line.startswith("line"):
        seen.append(line)
        (folder.parent / f"read {line}").touch()
assert seen == [f"line {i}" for i in range(4)], seen
assert wait(address, first, 30).status == "SUCCEEDED"
assert [line for line in logs(address, first) if line.startswith("line")] == seen
shipped = start(_client(address), [sys.executable, "-c", "import os, sys; print(sorted(os.listdir('.'))); "
                                   "print(os.environ['COLOUR'], sys.executable); sys.exit(3)"],
                folder, {"COLOUR": "blue"}, {})
failed = wait(address, shipped, 60)
text = "\\n".join(logs(address, shipped))
assert failed.status == "FAILED" and "['hello.txt']" in text and f"blue {sys.executable}" in text, (failed, text)
long = start(_client(address), [sys.executable, "-c", "import time; time.sleep(600)"], folder, None, {})
while job(address, long).status != "RUNNING": time.sleep(0.2)
began = time.time()
assert stop(address, long).status == "STOPPED" and time.time() - began < 20
assert stop(address, first).status == "SUCCEEDED", "an ended job stays as it is"
known = jobs(address)
assert [j.id for j in known] == [long, shipped, first], known
assert known[2].config == "demo" and 1 < known[2].seconds < 60
for call in (lambda: job(address, "nonesuch"), lambda: list(logs(address, "nonesuch")),
             lambda: stop(address, "nonesuch")):
    try:
        call()
    except InputError as error:
        assert "knows no job 'nonesuch'" in str(error)
    else:
        raise AssertionError("an unknown job was taken")
'''

ATTACH = """
import sys
from omniloom.infra.cluster import connect, shutdown
cluster = connect(sys.argv[1])
assert (cluster.num_nodes, cluster.num_cpus, cluster.local) == (2, 2, False), cluster
import ray
@ray.remote(num_cpus=1)
def where():
    import time
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()
assert len(set(ray.get([where.remote() for _ in range(2)]))) == 2, "both nodes work"
shutdown()
"""

REFUSED = """
import sys
from omniloom.infra.cluster import connect
from omniloom.infra.errors import InputError
from omniloom.pipelines.jobs import jobs
for function, address in ((jobs, sys.argv[1]), (connect, sys.argv[2])):
    try:
        function(address)
    except InputError as error:
        assert "token" in str(error) and "RAY_AUTH_TOKEN" in str(error), error
    else:
        raise AssertionError(f"{function} took a wrong token")
try:
    jobs(sys.argv[2])
except InputError as error:
    print(error)
else:
    raise AssertionError("the GCS port was taken for a dashboard")
"""


@pytest.mark.slow
def test_a_cluster_of_two_nodes(tmp_path):
    import psutil

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/hello.txt").write_text("shipped")
    with start_cluster(tmp_path / "logs", nodes=2, num_cpus=1) as cluster:
        call(ATTACH, cluster.env, cluster.gcs)
        call(LIFE, cluster.env, cluster.dashboard, str(tmp_path / "tree"))
        call(REFUSED, {**cluster.env, "RAY_AUTH_TOKEN": "0" * 64}, cluster.dashboard, cluster.gcs)
        pids = cluster.pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
