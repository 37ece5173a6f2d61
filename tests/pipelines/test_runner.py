"""What a run does with artifacts that others publish, under the lease; the stage's body is stood in for, so no Ray."""
from __future__ import annotations

import threading
import time

import pytest

from infra import storage
from infra.lease import Lease
from pipelines.failures import StageFailed
from pipelines.runner import _Run

FORCE = {"force": ("train",)}


class RunWithoutBodies(_Run):
    """Publishes a file in place of running a stage on Ray, and counts."""

    def __init__(self, plan):
        self.plan, self.store, self.display, self.executed = plan, plan.store, None, 0
        self.interrupted = threading.Event()

    def _execute(self, planned, work, lease):
        self.executed += 1
        storage.write_bytes(storage.join(work, "output", "a.bin"), b"by this run")
        facts = {"metrics": {}, "input_digests": {}, "times": {"ended_unix": 9e9, "seconds": 1.0}}
        return self.store.publish(planned.name, planned.fingerprint, work, facts)


def make(plan) -> tuple[int, bytes]:
    run = RunWithoutBodies(plan)
    artifact = run._make(plan["train"])
    assert plan.store.find("train", artifact.fingerprint) == plan.store.last_used("demo", "train") == artifact
    assert not plan.store.has_work("train", artifact.fingerprint)
    return run.executed, storage.read_bytes(artifact.file("a.bin"))


BEFORE = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize")
BY_ANOTHER = b"train a.bin "


def test_a_stage_that_never_ran(workspace):
    workspace.publish(*BEFORE)
    assert make(workspace.plan()) == (1, b"by this run")


@pytest.mark.parametrize("selection, expected", [({}, (0, BY_ANOTHER)), (FORCE, (1, b"by this run"))])
def test_published_by_another_run_since_the_plan(workspace, selection, expected):
    workspace.publish(*BEFORE)
    plan = workspace.plan(**selection)
    workspace.publish("train")
    assert make(plan) == expected


@pytest.mark.parametrize("selection", [{"only": "train"}, FORCE])
def test_the_artifact_that_the_plan_knew_is_made_again(workspace, selection):
    workspace.publish()
    assert make(workspace.plan(**selection)) == (1, b"by this run")
    assert len(storage.list_files(str(workspace.storage / "replaced" / "train"))) == 6


@pytest.mark.parametrize("selection, expected", [({}, (0, b"begun")), ({"only": "train"}, (0, b"begun")),
                                                 (FORCE, (1, b"by this run"))])
def test_a_publication_that_was_interrupted(workspace, selection, expected):
    workspace.publish(*BEFORE)
    plan = workspace.plan()
    work = plan.store.work_uri("train", plan["train"].fingerprint)
    storage.write_bytes(storage.join(work, "output", "a.bin"), b"begun")
    entry = {"path": "a.bin", "bytes": 5, "sha256": storage.sha256(storage.join(work, "output", "a.bin"))}
    storage.write_json(storage.join(work, "publish.json"), {
        "files": [entry], "metrics": {}, "input_digests": {}, "times": {"ended_unix": 5.0, "seconds": 1.0}})
    assert make(workspace.plan(**selection)) == expected


def test_a_damaged_artifact_is_made_again(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("train").file("b.bin"))
    assert make(workspace.plan()) == (1, b"by this run")
