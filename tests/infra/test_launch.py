"""What follows a worker group's end: another try with a word about it, or the last word."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.progress import Progress, ProgressBoard
from omniloom.infra.retries import Retries
from omniloom.infra.training import checkpoint, launch, stopping
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.launch import GroupLost


class Ended:
    """A training whose group ends again and again; what it says, its pauses and its texts for MLflow."""

    def __init__(self, folder, monkeypatch, **workers):
        self.state, self.board = str(folder), ProgressBoard()
        self.pauses: list[float] = []
        self.texts: dict[str, str] = {}
        monkeypatch.setattr(launch.time, "sleep", self.pauses.append)
        tracker = SimpleNamespace(log_text=lambda text, file: self.texts.update({file: text}))
        self.argument = SimpleNamespace(state=self.state, progress=Progress("train", self.board), tracker=tracker)
        self.workers = WorkersConfig(count=2, **workers)
        self.retries = Retries(self.workers.max_failures, checkpoint.newest_step(self.state))

    def after(self, *failures: Exception) -> None:
        from ray.train.v2.api.exceptions import WorkerGroupError

        launch._after(WorkerGroupError("pages", dict(enumerate(failures))), self.argument, self.workers, self.retries)

    def checkpoint(self, step: int) -> None:
        storage.write_json(storage.join(self.state, "checkpoints", f"step-{step:08d}.json"), {"step": step})

    @property
    def notes(self) -> list[str]:
        return self.board.read().get("train", {}).get("notes", [])


@pytest.fixture
def ended(tmp_path, monkeypatch):
    return Ended(tmp_path, monkeypatch, max_failures=2)


def died() -> Exception:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("rank died", ActorDiedError())


GLOO = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:37621")


def test_a_dead_rank_starts_the_group_again(ended):
    ended.checkpoint(500)
    ended.after(GLOO, died())
    (note,) = ended.notes
    assert "a worker process died" in note and "training goes on from step 500 (restart 1 of 2)" in note
    assert ended.pauses == [1.0]


def test_a_training_that_dies_at_the_same_place_ends_with_a_clear_word(ended):
    ended.checkpoint(500)
    ended.after(died())
    ended.after(died())
    with pytest.raises(GroupLost) as last:
        ended.after(died())
    for words in ("died 3 times in a row", "step 500, which is kept", "a worker process died", "the next run goes on"):
        assert words in str(last.value)
    assert ended.pauses == [1.0, 2.0]


def test_a_training_of_weeks_survives_what_is_not_in_a_row(ended):
    for step in range(500, 10_000, 500):
        ended.checkpoint(step)
        ended.after(died())
    assert len(ended.notes) == 19 and set(ended.pauses) == {1.0}


@pytest.mark.parametrize(
    "error",
    [ValueError("token ids outside 0..399"), InputError("no such file", field="data"), OSError(28, "No space left")],
)
def test_what_the_functions_own_code_raised_is_not_tried_again(ended, error):
    with pytest.raises(Exception, match="pages"):
        ended.after(GLOO, error)
    assert not ended.notes and not ended.pauses


def test_a_storage_that_was_away_is_tried_again(ended):
    ended.after(ConnectionResetError(104, "Connection reset by peer"))
    assert "ConnectionResetError" in ended.notes[0] and ended.pauses == [1.0]


def test_a_hang_is_told_with_every_ranks_stack(ended):
    for rank, place in ((0, "all_reduce (a.py:1)"), (1, "read (b.py:2)")):
        report = {
            "rank": rank,
            "ranks": 2,
            "step": 7,
            "seconds": 61.0,
            "limit": 60.0,
            "place": place,
            "stacks": f"at {place}",
        }
        storage.write_json(storage.join(ended.state, "hangs", f"rank-{rank:05d}.json"), report)
    ended.after(died(), died())
    assert "step 7 hung" in ended.notes[0] and "rank 1 at read (b.py:2)" in ended.notes[0]
    assert "at all_reduce" in ended.texts["hangs/step-7.txt"] and "=== rank 1" in ended.texts["hangs/step-7.txt"]
    assert ended.retries.failures == 1


def test_a_drained_node_counts_as_no_failure(ended):
    for _ in range(5):
        ended.after(stopping.Stopped("stopped after step 7 of 9 (a node of it will be taken away)"))
    assert ended.notes == ["stopped after step 7 of 9 (a node of it will be taken away)"] * 5
    assert not ended.pauses and not ended.retries.failures


def test_the_drivers_wish_ends_the_training(ended):
    ended.board.ask_to_stop(["train"])
    with pytest.raises(stopping.Stopped, match="stopped after step 7"):
        ended.after(stopping.Stopped("stopped after step 7 of 9"))


def _preempted() -> Exception:
    from ray.train.v2.api.exceptions import PreemptionError
    from ray.train.v2.api.preemption import PreemptionInfo

    return PreemptionError(PreemptionInfo(None, {}), drain_timed_out=True)


def _while_starting() -> Exception:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    return ControllerError(WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize."))


def _silent() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("pages", {1: WorkerHealthCheckTimeoutError("A worker health check has been hanging")})


@pytest.mark.parametrize(
    "failure, words",
    [
        (_while_starting, "a worker process died while the workers started"),
        (_preempted, "a machine of it was taken away"),
        (_silent, "a worker process did not answer for long"),
    ],
)
def test_what_ray_train_itself_says_is_tried_again(ended, failure, words):
    launch._after(failure(), ended.argument, ended.workers, ended.retries)
    assert ended.notes == [f"{words}; training goes on from step 0 (restart 1 of 2)"] and ended.pauses == [1.0]


def test_too_few_machines_are_waited_for(ended):
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    for _ in range(9):
        launch._after(error, ended.argument, ended.workers, ended.retries)
    assert not ended.pauses and "waiting for room for 2 workers" in ended.board.read()["train"]["says"]
