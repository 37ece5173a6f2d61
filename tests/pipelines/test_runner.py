"""What a run does with artifacts that others publish, under the lease; the stage's body is stood in for, so no Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.pipelines.failures import StageFailed
from omniloom.pipelines.making import Maker
from omniloom.pipelines.runner import run

FORCE = {"force": ("train",)}


class WithoutBodies(Maker):
    """Publishes a file in place of running a stage on Ray, and counts."""

    def __init__(self, plan):
        self.plan, self.display, self.executed = plan, None, 0
        self.interrupted, self.pruned = threading.Event(), {}

    def _execute(self, planned, work, lease):
        self.executed += 1
        storage.write_bytes(storage.join(work, "output", "a.bin"), b"by this run")
        facts = {"metrics": {}, "input_digests": {}, "times": {"ended_unix": 9e9, "seconds": 1.0}}
        return self.store.publish(planned.name, planned.fingerprint, work, facts)


def make(plan) -> tuple[int, bytes]:
    run = WithoutBodies(plan)
    artifact = run.make(plan["train"])
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


@pytest.mark.parametrize(
    "selection, expected", [({}, (0, b"begun")), ({"only": "train"}, (0, b"begun")), (FORCE, (1, b"by this run"))]
)
def test_a_publication_that_was_interrupted(workspace, selection, expected):
    workspace.publish(*BEFORE)
    plan = workspace.plan()
    work = plan.store.work_uri("train", plan["train"].fingerprint)
    storage.write_bytes(storage.join(work, "output", "a.bin"), b"begun")
    entry = {"path": "a.bin", "bytes": 5, "sha256": storage.sha256(storage.join(work, "output", "a.bin"))}
    storage.write_json(
        storage.join(work, "publish.json"),
        {"files": [entry], "metrics": {}, "input_digests": {}, "times": {"ended_unix": 5.0, "seconds": 1.0}},
    )
    assert make(workspace.plan(**selection)) == expected


def test_a_damaged_artifact_is_made_again(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("train").file("b.bin"))
    assert make(workspace.plan()) == (1, b"by this run")


class Shown:
    """A display that keeps its notes; entered, it says that nothing may be started."""

    remaining = None

    def __init__(self):
        self.notes = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def note(self, text, stage=None, level="info"):
        self.notes.append(text)


def refuse_ray(*arguments, **fields):
    raise AssertionError("Ray was started")


def test_storage_that_cannot_be_written_is_refused_before_ray(workspace, monkeypatch):
    monkeypatch.setattr("omniloom.infra.cluster.connect_to", refuse_ray)
    workspace.publish(*BEFORE)
    monkeypatch.setattr(
        "omniloom.infra.disk.tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    plan = workspace.plan()
    with pytest.raises(InputError, match="cannot be written.*Read-only") as caught:
        run(plan, Shown())
    assert caught.value.field == "storage" and caught.value.exit_code == 2


def test_all_cached_on_a_storage_that_cannot_be_written_is_done(workspace, monkeypatch):
    monkeypatch.setattr("omniloom.infra.cluster.connect_to", refuse_ray)
    workspace.publish()
    monkeypatch.setattr(
        "omniloom.infra.disk.tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    run(workspace.plan(), Shown())


def test_a_damaged_input_is_made_again_or_blocks_before_ray(workspace, monkeypatch):
    monkeypatch.setattr("omniloom.infra.cluster.connect_to", refuse_ray)
    workspace.publish(*BEFORE)
    with open(workspace.artifact("pretokenize").file("b.bin"), "r+b") as file:
        file.write(b"P")
    shown, plan = Shown(), workspace.plan(only="train")
    with pytest.raises(InputError, match="train is blocked: .*pretokenize"):
        run(plan, shown)
    assert any("pretokenize is damaged: b.bin" in note for note in shown.notes)
    with pytest.raises(AssertionError, match="Ray was started"):
        run(plan := workspace.plan(), Shown())
    assert plan["pretokenize"].status == "run" and plan["pretokenize"].reason == "damaged: b.bin"


def test_a_publication_whose_files_were_lost_is_made_again(workspace):
    workspace.publish(*BEFORE)
    plan = workspace.plan()
    work = plan.store.work_uri("train", plan["train"].fingerprint)
    storage.write_bytes(storage.join(work, "output", "a.bin"), b"")
    storage.write_bytes(storage.join(work, "state", "checkpoints", "step-5.json"), b"{}")
    entry = {"path": "a.bin", "bytes": 5, "sha256": "0" * 64}
    storage.write_json(storage.join(work, "publish.json"), {"files": [entry], "times": {"ended_unix": 5.0}})
    made = WithoutBodies(workspace.plan())
    made.display, seen = Shown(), []
    made._execute = lambda planned, work, lease: (
        seen.append(storage.list_files(work)),
        WithoutBodies._execute(made, planned, work, lease),
    )[1]
    artifact = made.make(made.plan["train"])
    assert storage.read_bytes(artifact.file("a.bin")) == b"by this run"
    assert seen == [{"state/checkpoints/step-5.json": 2}]
    assert "train was made and not yet published" in made.display.notes[0] and "a.bin" in made.display.notes[0]


class TakenOver(WithoutBodies):
    """While the stage's body runs, another run takes its lease over and publishes."""

    def __init__(self, plan, workspace):
        super().__init__(plan)
        self.workspace, self.ended = workspace, []
        self.bodies = SimpleNamespace(end=lambda *names: self.ended.append(names))

    def _execute(self, planned, work, lease):
        storage.write_json(lease.uri, {"owner": "another", "renewed": 0, "expiry": 60})
        lease.require()
        return super()._execute(planned, work, lease)


def test_a_run_that_lost_its_lease_publishes_nothing_and_says_so(workspace):
    workspace.publish(*BEFORE)
    plan = workspace.plan()
    run = TakenOver(plan, workspace)
    with pytest.raises(StageFailed, match="^stage train failed: another run has taken over"):
        run.make(plan["train"])
    assert run.executed == 0 and plan.store.find("train", plan["train"].fingerprint) is None


def test_a_run_that_lost_its_lease_clears_nothing(workspace, monkeypatch):
    """Between the lease and the clearing of an earlier attempt's work this machine slept."""
    workspace.publish()
    plan = workspace.plan(only="train")
    work = plan.store.work_uri("train", plan["train"].fingerprint)
    find = plan.store.find

    def find_and_lose(stage, fingerprint):
        for name in storage.list_files(str(workspace.storage / "leases")):
            storage.write_json(str(workspace.storage / "leases" / name), {"owner": "another", "expiry": 60})
        storage.write_bytes(storage.join(work, "state", "of-the-other"), b"x")
        return find(stage, fingerprint)

    monkeypatch.setattr(plan.store, "find", find_and_lose)
    run = WithoutBodies(plan)
    with pytest.raises(StageFailed, match="another run has taken over"):
        run.make(plan["train"])
    assert run.executed == 0 and storage.exists(storage.join(work, "state", "of-the-other"))
