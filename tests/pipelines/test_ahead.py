"""When the processes of a training's body and ranks are asked for: before the training, and once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omniloom.infra.training import ready
from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines import ahead
from omniloom.pipelines.ahead import Ahead
from omniloom.pipelines.graph import Graph

NAMES = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate")
TRAININGS = ("tokenizer_image", "tokenizer_joint", "train")


class Asked(Ahead):
    """Whether a body's process is asked for too goes into `asked`, and nothing into a cluster."""

    def __init__(self, monkeypatch, done=()):
        configs = {name: SimpleNamespace(workers=WorkersConfig(count=2)) for name in TRAININGS}
        configs["pretokenize"] = SimpleNamespace(workers=1)  # a number of actors
        plan = SimpleNamespace(
            graph=Graph(NAMES),
            to_execute=[SimpleNamespace(name=name, config=configs.get(name)) for name in NAMES if name not in done],
        )
        super().__init__(plan)
        self.asked: list[bool] = []
        self.now = 0.0
        monkeypatch.setattr(ahead.time, "monotonic", lambda: self.now)

        monkeypatch.setattr(ahead, "_send", lambda workers, body: self.asked.append(body))

    def begin(self, name: str, *beside: str) -> None:
        self.start(next(planned for planned in self.plan.to_execute if planned.name == name), beside)

    def see(self, name: str, done: float, seconds: float) -> None:
        self.now = seconds
        self.look([name], {name: {"done": done, "total": 100, "time": seconds}})


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


def test_a_stage_that_is_no_training_starts_with_the_ranks_of_the_next(asked):
    asked.begin("ingest")
    assert asked.asked == [True]
    asked.begin("tokenizer_image")
    assert asked.asked == [True]  # they are there


def test_a_training_that_ends_soon_has_the_next_one_s_ranks_started_once(asked):
    asked.begin("tokenizer_image")
    asked.asked.clear()
    asked.plan.to_execute = [planned for planned in asked.plan.to_execute if planned.name != "ingest"]
    asked.see("tokenizer_image", 1, 100.0)
    asked.see("tokenizer_image", 11, 110.0)  # 89 s are left
    assert not asked.asked
    asked.see("tokenizer_image", 85, 184.0)
    asked.see("tokenizer_image", 90, 189.0)
    assert asked.asked == [False]  # the body's process is that of the one that ends


def test_from_the_first_training_on_its_body_s_process_serves_all_stages(asked):
    """So none is asked for the second time."""
    asked.begin("ingest")
    assert asked.environment() is None and asked.asked == [True]
    asked.begin("tokenizer_image")
    assert asked.environment() == ready.body_environment()
    asked.plan.to_execute = [planned for planned in asked.plan.to_execute if planned.name in ("pretokenize", "train")]
    asked.now = 1000.0
    asked.begin("pretokenize")
    assert asked.environment() == ready.body_environment() and asked.asked[-1] is False


def test_ranks_that_were_kept_too_long_are_asked_for_again(asked):
    asked.begin("ingest")
    asked.see("ingest", 1, 1.0)
    asked.see("ingest", 50, 1001.0)  # an hour is left
    assert len(asked.asked) == 1
    asked.see("ingest", 99.9, 2000.0)
    assert len(asked.asked) == 2


def test_no_ranks_for_a_training_that_waits_for_more_than_what_runs(asked):
    asked.plan.to_execute = [planned for planned in asked.plan.to_execute if planned.name != "ingest"]
    asked.begin("tokenizer_image")
    asked.asked.clear()
    asked.see("tokenizer_image", 1, 0.0)
    asked.see("tokenizer_image", 99, 99.0)
    assert len(asked.asked) == 1  # tokenizer_joint's; train waits for pretokenize
