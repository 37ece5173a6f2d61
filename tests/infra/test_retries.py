"""What is tried again, how often and after which pause; and what a worker's error says about that."""

from __future__ import annotations

import errno

import pytest

from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.failures import BodyFailed, carried, of_passing_kind
from omniloom.infra.retries import Retries


def test_failures_in_a_row_are_bounded_and_pauses_double():
    retries = Retries(8, reached=5)
    assert [retries.failed(5) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, None]
    assert retries.often == "9 times in a row"


def test_progress_begins_the_count_anew():
    """Weeks of work survive any number of failures that are not in a row."""
    retries = Retries(1, reached=0)
    assert [retries.failed(step) for step in range(500, 50_000, 500)] == [1.0] * 99
    assert retries.told == "restart 1 of 1, 99 in all"
    assert retries.failed(49_500) is None, "the same step again"


def test_falling_back_is_no_progress():
    """A damaged checkpoint: what was reached once must be passed."""
    retries = Retries(2, reached=10)
    assert retries.failed(10) == 1.0 and retries.failed(5) == 2.0 and retries.failed(10) is None


def test_none_are_allowed():
    assert Retries(0, reached=0).failed(0) is None
    assert Retries(0, reached=0).failed(1) is None, "progress or not"


class EndpointConnectionError(Exception):
    """As botocore calls it."""


PASSES = [
    ConnectionResetError("reset"),
    TimeoutError("timed out"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EREMOTEIO, "We encountered an internal error. Please try again."),
    EndpointConnectionError("Could not connect to the endpoint URL"),
    RuntimeError("EndpointConnectionError: Could not connect"),
    RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:37621"),
    BodyFailed("ConnectionRefusedError: [Errno 111] Connect call failed ('127.0.0.1', 1)"),
]
STAYS = [
    OSError(errno.ENOSPC, "No space left on device"),
    FileNotFoundError(errno.ENOENT, "No such file"),
    PermissionError("Access Denied"),
    ValueError("token ids outside 0..399"),
    RuntimeError("step 2: grad_norm is inf"),
    BodyFailed("OSError: [Errno 28] No space left on device"),
    InputError("expected a folder", field="sources"),
    OmniLoomError("no checkpoint is intact; Connection closed"),
    KeyError("TimeoutErrors"),
]


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_what_may_pass(error):
    assert of_passing_kind(error) and of_passing_kind(carried(error))


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_what_comes_again(error):
    assert not of_passing_kind(error) and not of_passing_kind(carried(error))
