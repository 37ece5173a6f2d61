"""Whether a worker fits its GPU, and what would make it fit."""

from __future__ import annotations

import pytest

from omniloom.infra import cluster, gpus
from omniloom.infra.errors import InputError
from omniloom.infra.nodes import Node
from omniloom.pipelines import fitting, room, takes
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.room import Room
from omniloom.stages.train.memory import USABLE

ON_GPUS = "stages.train.workers.gpus=1"
LARGE = (ON_GPUS, "stages.train.batch_rows=4096")
GIB = 1 << 30


def fit(gpu: str, *overrides: str, name: str = "train", memory: int | None = None) -> fitting.Fit:
    return fitting.of_stage(load("demo", ["storage=/nowhere", *overrides]), name, gpu, memory)


def test_what_is_needed_is_the_sum_of_the_parts_and_held_against_the_gpus_memory(tmp_path):
    plan = make_plan(load("demo", [f"storage={tmp_path}", ON_GPUS, "stages.train.workers.accelerator_type=H100"]))
    found = takes.of(plan)["train"]
    assert found.fit.needed == sum(found.worker_memory_bytes.values()) and found.fit.memory == 80 * GIB
    assert found.fit.fits and not found.fit.changes
    told = found.to_dict()
    assert (told["gpu"], told["gpu_memory_bytes"], told["fits_gpu"]) == ("H100", 80 * GIB, True)
    assert any("of 80.0 GiB (H100)" in line for line in takes.lines({"train": found}))


def test_an_unknown_kind_is_said_to_be_unknown():
    for name in ("A100", "TPU-V4"):
        found = fit(name, *LARGE)
        assert found.fits is None and "not known" in str(found) and found.to_dict() == {"gpu": name}


def overrides_of(changes: str) -> list[str]:
    """The settings that the words name."""
    said = changes.split("with ", 1)[1].split(" it needs")[0]
    return ["stages.train." + setting.replace(" ", "=") for setting in said.split(" and ")]


@pytest.mark.parametrize("memory", [20, 13, 7, 2])
def test_the_changes_that_are_named_make_it_fit(memory):
    before = fit("X", *LARGE, memory=memory * GIB)
    assert before.fits is False and before.changes.startswith("with ")
    after = fit("X", *LARGE, *overrides_of(before.changes), memory=memory * GIB)
    assert after.needed <= USABLE * memory * GIB and not after.changes


def test_settings_that_spare_nothing_are_not_named_and_where_none_is_enough_it_says_so():
    wide = (ON_GPUS, "stages.train.workers.count=1", "stages.train.batch_rows=1")
    found = fit("X", *wide, memory=1 << 20)
    assert found.changes.startswith("even with ") and "a larger GPU" in found.changes
    assert "zero_stage" not in found.changes and "accumulate" not in found.changes


def test_auto_recomputes_where_there_is_no_room():
    setting = "stages.train.engine.activation_checkpointing"
    kept, auto = (fit("X", *LARGE, f"{setting}={value}", memory=12 * GIB) for value in ("false", "auto"))
    assert not kept.fits and auto.needed < kept.needed


def test_a_part_of_a_gpu_has_a_part_of_its_memory():
    assert fit("L4", "stages.train.workers.gpus=0.5").memory == 12 * GIB


def test_a_tokenizer_on_too_small_a_gpu():
    found = fit("X", "stages.tokenizer_image.workers.gpus=1", name="tokenizer_image", memory=30 << 20)
    assert found.fits is False and "engine.activation_checkpointing true" in found.changes


def test_the_kind_is_what_is_asked_for_or_the_smallest_there_could_be():
    def kind(*nodes: Node, override: str = ON_GPUS) -> str | None:
        return room.accelerator_of(load("demo", ["storage=/nowhere", ON_GPUS, override]).stages.train.workers, nodes)

    large, small, untold = (Node(8, 8, None, name) for name in ("H100", "L4", None))
    assert kind(large, Node(8)) == "H100" and kind(large, small) == "L4" and kind(large, untold) is None
    assert kind(large, override="stages.train.workers.accelerator_type=B200") == "B200"
    assert kind() is None
    assert Node.of({"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100-80G": 1.0}).accelerator == "A100-80G"
    assert str(large) == "8 CPUs, 8 GPUs (H100)"


def test_the_autoscalers_groups_tell_their_kind(tmp_path):
    group = "cluster.autoscaling=[{nodes: 2, cpus: 8, gpus: 8, accelerator_type: L4}]"
    config = load("demo", [f"storage={tmp_path}", ON_GPUS, group])
    assert {node.accelerator for node in cluster.with_autoscaling((), config.cluster)} == {"L4"}
    assert takes.of(make_plan(config))["train"].fit.memory == gpus.known("L4").memory


def test_what_does_not_fit_or_is_of_no_such_kind_is_refused_before_it_runs():
    def lacking(*nodes: Node, overrides=LARGE) -> list[tuple[str, str]]:
        config = load("demo", ["storage=/nowhere", *overrides])
        size = {"train": {"workers": 2, "memory_per_worker_bytes": fit("T4", *overrides).needed}}
        found = room.missing(config, {"train"}, Room("the cluster", nodes), size)
        return [(error.field, error.message) for error in found]

    ((field, says),) = lacking(Node(8, 2, None, "T4"))
    assert field == "stages.train.workers" and "T4 has 16.0 GiB; with workers.accumulate 2" in says
    assert lacking(Node(8, 2, None, "H100")) == lacking(Node(8, 2, None, "unheard of")) == []
    asked = (ON_GPUS, "stages.train.workers.accelerator_type=H100")
    ((field, says),) = lacking(Node(8, 2, None, "L4"), overrides=asked)
    assert field.endswith("accelerator_type") and "a node of 8 CPUs, 2 GPUs (L4)" in says
    assert lacking(Node(8, 2, None, "H100"), overrides=asked) == []


def test_a_kind_without_gpus_has_no_effect_and_is_refused():
    with pytest.raises(InputError, match="has no effect: workers.gpus is 0") as caught:
        load("demo", ["storage=/nowhere", "stages.train.workers.accelerator_type=H100"])
    assert caught.value.field.startswith("stages.train.workers")


def test_a_bf16_training_takes_the_peak_of_its_kind(tmp_path):
    def rate(*overrides: str) -> float | None:
        kind = "stages.train.workers.accelerator_type=L4"
        config = load("demo", [f"storage={tmp_path}", ON_GPUS, kind, *overrides])
        return takes.of(make_plan(config))["train"].units_per_second

    bf16 = "stages.train.engine.precision=bf16"
    assert rate(bf16) == rate(bf16, "stages.train.workers.peak_tflops=121") and rate() is None
