"""`omniloom replay`: what it refuses before anything is trained, and how it tells what it found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omniloom.infra.artifacts import ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.replay import told
from omniloom.pipelines.replaying import replay_step


class Planned(dict):
    """A plan as far as `replay_step` asks it."""

    def __init__(self, tmp_path, names=("train",), tokens=None):
        train = SimpleNamespace(
            config=SimpleNamespace(steps=10), inputs={"tokens": "pretokenize"}, fingerprint="f", uri=str(tmp_path)
        )
        super().__init__(train=train, pretokenize=SimpleNamespace(artifact=tokens))
        self.graph, self.store = SimpleNamespace(names=names), ArtifactStore(str(tmp_path))


def test_what_cannot_be_replayed_is_refused(tmp_path):
    for plan, step, why in (
        (Planned(tmp_path, names=("ingest",)), 0, "the pipeline has no stage train"),
        (Planned(tmp_path), 10, "expected less than stages.train.steps 10, got 10"),
        (Planned(tmp_path), 9, "the tokens that it is trained on are not there"),
    ):
        with pytest.raises(InputError, match=why) as caught:
            replay_step(plan, step)
        assert caught.value.field == "--step"


def test_it_tells_whether_the_step_is_the_same():
    found = {"step": 7, "from": 5, "ranks": 2, "row": {"step": 8, "loss": 2.5}, "loss": 2.5, "equal": True}
    assert told(found) == (
        "step 7, trained again from step 5 on 2 ranks; its loss is that of the row of step 8, 2.5, bit for bit"
    )
    assert told(found | {"ranks": 1, "loss": 2.25, "equal": False}).endswith(
        "on 1 rank; the row of step 8 has the loss 2.5, and here it is 2.25"
    )
    assert told(found | {"equal": None}).endswith("; no row of the curves can be compared with it")
