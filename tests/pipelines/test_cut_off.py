"""An output that comes out as it did before stops the wave: what reads it stays up to date."""

from __future__ import annotations

import os

from demo_stages import NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniloom.infra import storage

NEW_LR = "stages.train.optimizer.lr=3e-4"
LATER = NAMES[1:]


def executed(plan) -> list[str]:
    return [planned.name for planned in plan.to_execute]


def touch(workspace, time: int) -> None:
    """Other modification times, as a copy of the corpus has them: ingest runs again."""
    for file in workspace.corpus.iterdir():
        os.utime(file, (time, time))


def run_ingest(workspace, *overrides: str, content: str = "", **selection):
    """The plan of a run once its ingest is done."""
    plan = workspace.plan(*overrides, **selection)
    assert "ingest" in executed(plan)
    workspace.publish("ingest", overrides=overrides, content=content)
    plan.completed("ingest", plan.store.find("ingest", plan["ingest"].fingerprint))
    return plan


def test_the_same_records_leave_the_rest_as_it_is(workspace):
    workspace.publish()
    before = {planned.name: planned.fingerprint for planned in workspace.plan().stages}
    touch(workspace, 1_000)
    assert executed(run_ingest(workspace)) == []
    plan = workspace.plan()
    assert executed(plan) == []
    after = {planned.name: planned.fingerprint for planned in plan.stages}
    assert after["ingest"] != before["ingest"]
    assert {name: after[name] for name in LATER} == {name: before[name] for name in LATER}
    assert plan["ingest"].artifact.manifest["same_as"] == before["ingest"]


def test_other_records_do_not(workspace):
    workspace.publish()
    touch(workspace, 1_000)
    plan = run_ingest(workspace, content="other")
    assert executed(plan) == list(LATER)
    assert "same_as" not in plan["ingest"].artifact.manifest
    assert plan["tokenizer_image"].reason == "input changed: ingest"


def test_plan_says_before_what_may_stay(workspace):
    workspace.publish()
    touch(workspace, 1_000)
    plan = workspace.plan()
    assert executed(plan) == list(NAMES)
    assert plan["ingest"].reason.startswith("sources changed: ")
    assert plan["tokenizer_image"].reason == "input changed: ingest; stays if ingest comes out the same"
    assert plan["train"].reason == (
        "input changed: pretokenize, tokenizer_joint; stays if pretokenize and tokenizer_joint come out the same"
    )
    plan = workspace.plan(NEW_LR)  # trained by another rate: runs whatever ingest makes
    assert "stays" in plan["pretokenize"].reason
    assert "stays" not in plan["train"].reason and "stays" not in plan["evaluate"].reason
    assert "stays" not in workspace.plan(from_="ingest")["train"].reason


def test_a_change_of_the_config_promises_nothing_and_still_stops(workspace):
    workspace.publish()
    chunk = "stages.ingest.chunk_chars=1000"
    assert workspace.plan(chunk)["tokenizer_image"].reason == "input changed: ingest"
    assert executed(run_ingest(workspace, chunk)) == []


def test_what_is_named_last_is_the_first_one(workspace):
    workspace.publish()
    first = workspace.artifact("ingest").fingerprint
    for time in (1_000, 2_000, 3_000):
        touch(workspace, time)
        plan = run_ingest(workspace)
        assert executed(plan) == [] and plan["ingest"].artifact.manifest["same_as"] == first


def test_every_artifact_of_the_old_input_is_found_again(workspace):
    workspace.publish()
    workspace.publish("train", "evaluate", overrides=(NEW_LR,))
    touch(workspace, 1_000)
    assert executed(run_ingest(workspace)) == []
    assert executed(workspace.plan(NEW_LR)) == []


def test_the_old_artifact_may_be_gone(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("ingest").uri)
    touch(workspace, 1_000)
    assert executed(run_ingest(workspace)) == []


def test_a_pipeline_of_another_name_finds_it_too(workspace):
    workspace.publish()
    touch(workspace, 1_000)
    assert executed(run_ingest(workspace, "name=other")) == []


def test_what_follows_runs_again_where_that_is_asked_for(workspace):
    workspace.publish()
    touch(workspace, 1_000)
    assert executed(run_ingest(workspace, from_="ingest")) == list(LATER)


def test_a_stage_in_the_middle_stops_it(workspace, monkeypatch):
    from omniloom.stages.tokenizer import stage as tokenizer

    workspace.publish()
    monkeypatch.setattr(tokenizer, "VERSION", tokenizer.VERSION + 1)
    plan = workspace.plan()
    assert executed(plan) == list(LATER)
    for name in ("tokenizer_image", "tokenizer_joint"):
        workspace.publish(name)
        plan.completed(name, plan.store.find(name, plan[name].fingerprint))
    assert executed(plan) == executed(workspace.plan()) == []


def test_artifacts_from_before_equals_were_noted_down(workspace):
    """Two inputs that hold the same, each with its own artifacts after it: as they were."""
    workspace.publish()
    touch(workspace, 1_000)
    workspace.publish("ingest")
    second = workspace.artifact("ingest")
    manifest = {key: value for key, value in second.manifest.items() if key != "same_as"}
    storage.write_json(second.file("manifest.json"), manifest)
    plan = workspace.plan()
    assert plan["ingest"].status == "cached" and "same_as" not in plan["ingest"].artifact.manifest
    assert executed(plan) == list(LATER) and plan["tokenizer_image"].reason == "input changed: ingest"


def test_a_pin_to_an_equal_artifact_is_no_drift_behind_it(workspace):
    workspace.publish()
    touch(workspace, 1_000)
    pin = f"pins.ingest={run_ingest(workspace)['ingest'].fingerprint}"
    touch(workspace, 2_000)
    plan = workspace.plan(pin)
    assert executed(plan) == [] and plan["ingest"].drift and not plan["train"].drift


def test_lineage_names_the_artifact_that_was_read(workspace):
    workspace.publish("ingest")
    first = workspace.artifact("ingest").fingerprint
    touch(workspace, 1_000)
    second = run_ingest(workspace)["ingest"].fingerprint
    workspace.publish("tokenizer_image")
    assert workspace.artifact("tokenizer_image").manifest["inputs"] == {"ingest": second}
    workspace.publish("tokenizer_joint")
    plan = workspace.plan("stages.tokenizer_joint.seed=5")
    assert plan["tokenizer_joint"].reason == "config: seed 0 -> 5" and first != second


def test_work_that_was_begun_from_other_inputs_does_not_go_on(workspace):
    workspace.publish(*NAMES[:4])
    plan = workspace.plan()
    made_from = plan.made_from(plan["train"])
    assert set(made_from) == {"pretokenize", "tokenizer_joint"}
    plan.store.begin_work("train", plan["train"].fingerprint, made_from)
    assert workspace.plan()["train"].status == "resume"
    plan.store.begin_work("train", plan["train"].fingerprint, {**made_from, "pretokenize": "another"})
    assert workspace.plan()["train"].status == "run"


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), min_size=1, max_size=5))
def test_each_content_is_worked_on_once(workspace, tmp_path_factory, states):
    """Whatever times and contents the corpus goes through, what reads the records runs once for each content."""
    workspace.storage = tmp_path_factory.mktemp("storage")
    seen = set()
    for content, time in states:
        touch(workspace, 1_000 * time + ord(content))  # the listing tells time and content apart
        plan = workspace.plan(until="tokenizer_image")
        if "ingest" in executed(plan):
            workspace.publish("ingest", content=content)
            plan.completed("ingest", plan.store.find("ingest", plan["ingest"].fingerprint))
        assert executed(plan) == ([] if content in seen else ["tokenizer_image"])
        if content not in seen:
            workspace.publish("tokenizer_image", content=content)
        seen.add(content)
