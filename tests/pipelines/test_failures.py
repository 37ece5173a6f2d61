"""What a user is told of a stage that died: one line with the stage, the cause, and what to do."""

from __future__ import annotations

import pickle

import pytest

from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.failures import carried
from omniloom.pipelines.failures import StageFailed, told

DATA_TEXT = """\x1b[36mray::Map(work)()\x1b[39m (pid=21447, ip=127.0.0.1)
  File "/tmp/exp1.py", line 17, in work
    if kind == "odd": raise Odd(1, b=2)
                      ^^^^^^^^^^^^^^^^^
{raised}
second line: with Details: and more
third

The above exception was the direct cause of the following exception:

\x1b[36mray::Map(work)()\x1b[39m (pid=21447, ip=127.0.0.1)
ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, configure `ray.data.DataContext.get_current()` if you believe this to be transient."""


class Odd(Exception):
    """Cannot be pickled: what a library raises need not be."""

    def __init__(self, first, *, second):
        super().__init__(f"odd {first} {second}\nand more")


def of_ray_data(raised: str) -> Exception:
    """What Ray Data raises in a stage's body: its own exception is all that is carried of the worker's."""
    from ray.exceptions import RayTaskError, UserCodeException

    cause = UserCodeException("UDF failed to process a data block.\nTo change retry attempts, ...")
    return RayTaskError("work", DATA_TEXT.format(raised=raised), cause, pid=1, ip="127.0.0.1")


def unserializable() -> Exception:
    """What Ray raises where an exception can be pickled and not be read again."""
    from ray.exceptions import UnserializableException

    return UnserializableException("ray.exceptions.RayTaskError: " + DATA_TEXT.format(raised="Odd: odd 1 2"))


def of_ray_train(*failures: Exception) -> Exception:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("pages of text", dict(enumerate(failures)))


def body_died(error: Exception) -> OmniLoomError:
    """As it goes on a cluster: carried from the body's process to the driver, in Ray's wrapping."""
    from ray.exceptions import RayTaskError

    error = pickle.loads(pickle.dumps(carried(error)))
    return told("train", RayTaskError("run_stage", "Traceback ...", error, pid=1, ip="127.0.0.1"))


@pytest.mark.parametrize(
    "error, expected",
    [
        (lambda: ValueError("the cause\nmore of it\nthe last line"), "ValueError: the cause"),
        (lambda: Odd(1, second=2), "Odd: odd 1 2"),
        (lambda: AssertionError(), "AssertionError"),
        (lambda: OmniLoomError("in words"), "in words"),
        (
            lambda: of_ray_data("OSError: [Errno 36] File name too long: 'a'"),
            "OSError: [Errno 36] File name too long: 'a'",
        ),
        (lambda: of_ray_data("my.module.Odd: odd 1 2"), "Odd: odd 1 2"),
        (lambda: of_ray_data("my.module.<locals>.work.<locals>.Odd: odd 1 2"), "Odd: odd 1 2"),
        (lambda: of_ray_data("KeyError"), "KeyError"),
        (lambda: unserializable(), "Odd: odd 1 2"),
        (lambda: of_ray_data("infra.errors.OmniLoomError: record 12: is cut"), "record 12: is cut"),
        (
            lambda: of_ray_train(
                RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer"), ValueError("rank one\n.")
            ),
            "ValueError: rank one",
        ),
        (lambda: of_ray_train(RuntimeError("Connection closed by peer")), "RuntimeError: Connection closed by peer"),
        (lambda: ValueError("x" * 5000), "ValueError: " + "x" * 500 + " ..."),
    ],
)
def test_what_a_body_raised_is_told_by_its_first_line(error, expected):
    found = body_died(error())
    assert type(found) is StageFailed and str(found) == f"stage train failed: {expected}" and found.exit_code == 1


def test_a_wrong_request_is_told_as_one_from_wherever_it_was_noticed():
    wrong = InputError("is none", field="x", file="a.bin")
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import ControllerError

    for error in (
        wrong,
        of_ray_train(RuntimeError("Connection closed by peer"), wrong),
        ControllerError(wrong),
        of_ray_train(UserExceptionWithTraceback(wrong, "Traceback ...")),
        of_ray_data("infra.errors.InputError: x: is none"),
    ):
        found = body_died(error)
        assert isinstance(found, InputError) and found.exit_code == 2
        assert (found.field, found.message) == ("stages.train.x", "is none")
    assert body_died(wrong).file == "a.bin"
    assert body_died(InputError("holds nothing")).field == "stages.train"


def test_what_ray_itself_died_of():
    """A line of ours for each, the stage named; the next run goes on."""
    from ray import exceptions

    words = {
        exceptions.WorkerCrashedError(): "a process of it was killed",
        exceptions.OutOfMemoryError("pages of text"): "memory was nearly full",
        exceptions.NodeDiedError("pages of text"): "the machine that it ran on is gone",
        exceptions.LocalRayletDiedError(): "raylet",
        exceptions.ActorDiedError(): "a worker process died",
        exceptions.TaskCancelledError(): "it was cancelled",
        exceptions.RaySystemError("something\nand pages of text"): "RaySystemError: System error: something",
    }
    for error, expected in words.items():
        found = str(told("train", error))
        assert found.startswith("stage train failed: ") and found.endswith("; the next run goes on from here"), found
        assert expected in found and "\n" not in found and "pages" not in found
    rank = body_died(of_ray_train(exceptions.ActorDiedError()))
    assert "stage train failed: a worker process died" in str(rank)


def test_what_the_driver_itself_cannot_do_names_the_stage_too():
    found = told("train", OSError(28, "No space left on device"))
    assert str(found) == "stage train failed: OSError: [Errno 28] No space left on device"


@pytest.mark.slow
def test_what_real_workers_raise():
    """Ray Data and Ray Train in a stage's body: exceptions, input errors, killed processes."""
    import os
    from types import SimpleNamespace

    import ray

    from omniloom.infra import cluster
    from omniloom.infra.progress import Progress
    from omniloom.pipelines.bodies import run_stage

    def data(work):
        from ray import data

        data.DataContext.get_current().enable_progress_bars = False
        list(data.from_items([{"a": 1}]).map(work, max_retries=1).iter_rows())

    def train(work):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from omniloom.infra.training.launch import _enter

        argument = SimpleNamespace(tracker=SimpleNamespace(close=lambda: None), progress=Progress("train"))
        TorchTrainer(
            _enter,
            train_loop_config={"function": work, "argument": argument, "threads": 1},
            scaling_config=ScalingConfig(num_workers=2),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=0)),
        ).fit()

    def wrong(row):
        raise InputError("is none", field="x")

    def odd(row):
        class Odd(Exception):  # here, as workers cannot import the tests; no more picklable than the other
            def __init__(self, first, *, second):
                super().__init__(f"odd {first} {second}\nand more")

        raise Odd(1, second=2)

    def killed(row):
        os.kill(os.getpid(), 9)

    connected = cluster.connect("local", num_cpus=3, object_store_bytes=200 << 20, log_to_driver=False)
    try:

        def told_of(way, work) -> OmniLoomError:
            stage = SimpleNamespace(run=lambda context: way(work))
            context = SimpleNamespace(tracker=SimpleNamespace(close=lambda: None), progress=Progress("train"))
            body = ray.remote(lambda: run_stage(stage, context))
            try:
                ray.get(body.options(num_cpus=0).remote(), timeout=240)
            except Exception as error:
                return told("train", error)
            raise AssertionError("nothing was raised")

        for way in (data, train):
            found = told_of(way, wrong)
            assert isinstance(found, InputError) and str(found) == "stages.train.x: is none", (way, found)
            # A rank's exception that no other process can read is told by its words.
            words = "Odd: odd 1 2" if way is data else "RuntimeError: Odd: odd 1 2"
            assert str(told_of(way, odd)) == f"stage train failed: {words}", way
            assert "stage train failed: a " in (text := str(told_of(way, killed))) and "kill" in text, text
            assert "\n" not in text
    finally:
        if connected.opened:
            cluster.shutdown()
