"""Plans: what runs and why, against artifacts that lie in storage. Nothing here starts Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from demo_stages import NAMES

from omniloom.infra import storage
from omniloom.infra.artifacts import ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.pipelines import graph
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import Plan, make_plan
from omniloom.pipelines.selection import Selection

NEW_LR = "stages.train.optimizer.lr=3e-4"


def statuses(plan: Plan) -> dict[str, str]:
    return {planned.name: planned.status for planned in plan.stages}


def executed(plan: Plan) -> list[str]:
    return [planned.name for planned in plan.to_execute]


def only(status: str, *names: str, others: str = "cached") -> dict[str, str]:
    return {name: status if name in names else others for name in NAMES}


def test_graph_is_in_topological_order():
    demo = graph.Graph(NAMES)
    for number, name in enumerate(demo.names):
        assert set(demo.inputs[name].values()) <= set(NAMES[:number])
    assert demo.descendants("pretokenize") == {"train", "evaluate"}
    assert demo.descendants("evaluate") == demo.ancestors("ingest") == set()
    assert demo.ancestors("train") == {"ingest", "tokenizer_image", "tokenizer_joint", "pretokenize"}


def test_a_stage_reads_each_role_from_the_nearest_stage_before_it():
    assert graph.Graph(NAMES).inputs == {
        "ingest": {},
        "tokenizer_image": {"records": "ingest"},
        "tokenizer_joint": {"records": "ingest", "tokenizer": "tokenizer_image"},
        "pretokenize": {"records": "ingest", "tokenizer": "tokenizer_joint"},
        "train": {"tokens": "pretokenize", "tokenizer": "tokenizer_joint"},
        "evaluate": {
            "records": "ingest",
            "tokenizer": "tokenizer_joint",
            "tokens": "pretokenize",
            "model": "train",
        },
    }
    every = graph.Graph(graph.KNOWN_NAMES)
    assert every.names.index("tokenizer_joint") < every.names.index("tokenizer_kl") < every.names.index("pretokenize")
    own = {"records": "recaption", "tokenizer": "tokenizer_joint"}
    assert every.inputs["tokenizer_kl"] == own | {"scorer": "train_scorer"}
    without = graph.Graph(graph.KNOWN_NAMES, unread={"tokenizer_kl": ("scorer",)})
    assert without.inputs == every.inputs | {"tokenizer_kl": own}
    assert every.inputs["recaption"] == {"records": "curate", "scorer": "train_scorer"}
    assert every.inputs["train"] == {"tokens": "pretokenize", "tokenizer": "tokenizer_kl"}
    assert every.inputs["objective_study"] == {
        "records": "recaption",
        "tokenizer": "tokenizer_kl",
        "tokens": "pretokenize",
    }
    assert every.inputs["latents"] == {"records": "recaption", "tokenizer": "tokenizer_kl"}
    assert every.inputs["evaluate"] == {
        "records": "recaption",
        "tokenizer": "tokenizer_kl",
        "tokens": "pretokenize",
        "model": "distill",
        "scorer": "train_scorer",
        "quantizer_study": "quantizer_study",
        "objective_study": "objective_study",
    }
    assert every.inputs["generation_study"] == every.inputs["objective_study"]
    assert every.descendants("quantizer_study") == every.descendants("objective_study") == {"evaluate"}
    text = graph.Graph(["ingest", "pretokenize", "train", "evaluate"])
    assert text.inputs["pretokenize"] == {"records": "ingest"} and text.inputs["train"] == {"tokens": "pretokenize"}
    image = graph.Graph(["ingest", "tokenizer_image", "pretokenize", "train"])
    assert image.inputs["train"] == {"tokens": "pretokenize", "tokenizer": "tokenizer_image"}


@pytest.mark.parametrize(
    "names, field, message",
    [
        (
            ["tokenizer_image"],
            "stages.tokenizer_image",
            r"reads records, .*; configure stages.recaption or stages.curate or stages.ingest, ",
        ),
        (
            ["ingest", "train"],
            "stages.train",
            r"reads tokens, .*; configure stages.pretokenize, .*\(stages.train=",
        ),
        (
            ["ingest", "pretokenize", "evaluate"],
            "stages.evaluate",
            "reads model, .*; configure stages.distill or stages.train, ",
        ),
        (
            ["ingest", "pretokenize", "objective_study"],
            "stages.objective_study",
            "reads tokenizer, .*; configure stages.tokenizer_kl or stages.tokenizer_joint or stages.tokenizer_image, ",
        ),
        ([], "stages", "expected at least one stage; the stages are ingest, "),
    ],
)
def test_a_part_of_the_stages_that_is_not_connected_is_refused(names, field, message):
    with pytest.raises(InputError, match=message) as caught:
        graph.Graph(names)
    assert caught.value.field == field


def test_a_third_tokenizer_stage_enters_the_plan(workspace):
    workspace.publish()
    kl = "stages.tokenizer_kl={steps: 5}"
    plan = workspace.plan(kl)
    assert statuses(plan)["tokenizer_kl"] == "run" and plan["tokenizer_kl"].config.quantizer.kind == "kl"
    assert executed(plan) == ["tokenizer_kl", "pretokenize", "train", "evaluate"]
    assert "input changed: tokenizer_kl" in plan["pretokenize"].reason
    assert executed(workspace.plan(kl, until="tokenizer_kl")) == ["tokenizer_kl"]
    with pytest.raises(InputError, match=r"tokenizer_kl is not configured .*stages.tokenizer_kl"):
        workspace.plan(only="tokenizer_kl")


def test_never_ran(workspace):
    plan = workspace.plan()
    assert statuses(plan) == only("run", *NAMES)
    assert {planned.reason for planned in plan.stages} == {"never ran"}
    assert {planned.last_seconds for planned in plan.stages} == {None}
    assert not workspace.storage.exists()  # planning writes nothing
    described = plan.to_dict()["stages"][0]
    assert described["name"] == "ingest" and described["artifact"] == plan["ingest"].uri
    assert set(described) >= {"name", "status", "reason", "fingerprint", "artifact"}
    assert len({planned.fingerprint for planned in plan.stages}) == 6


def test_all_cached(workspace):
    workspace.publish()
    before = workspace.files()
    plan = workspace.plan()
    assert statuses(plan) == only("cached", *NAMES) and executed(plan) == []
    assert {planned.reason for planned in plan.stages} == {"up to date"}
    assert [planned.last_seconds for planned in plan.stages] == [7, 8, 9, 10, 11, 12]
    assert workspace.files() == before


def test_a_new_learning_rate_runs_training_and_evaluation(workspace):
    workspace.publish()
    old = workspace.config().stages.train.optimizer.lr
    plan = workspace.plan(NEW_LR)
    assert executed(plan) == ["train", "evaluate"]
    assert plan["train"].reason == f"config: optimizer.lr {old} -> 0.0003"
    assert plan["evaluate"].reason == "input changed: train"
    assert plan["train"].last_seconds == 11
    workspace.publish("train", "evaluate", overrides=(NEW_LR,))
    assert executed(workspace.plan(NEW_LR)) == executed(workspace.plan()) == []  # both are kept


def test_many_changes_are_counted_and_long_values_cut(workspace):
    workspace.publish()
    changes = [f"stages.evaluate.{name}=7" for name in ("drawings", "captions", "texts", "num_steps", "seed")]
    assert workspace.plan(*changes)["evaluate"].reason.endswith(" and 2 more")
    plan = workspace.plan("stages.ingest.sources.0.include=[" + ", ".join(f"'*{i}.txt'" for i in range(50)) + ", '*']")
    assert (
        plan["ingest"].reason.startswith("config: sources.0.include [] -> ['*0.txt'")
        and len(plan["ingest"].reason) < 200
    )
    gate = workspace.plan("stages.evaluate.gate.bits_per_byte.max=2.0")["evaluate"].reason
    assert gate == "config: gate.bits_per_byte absent -> {'min': None, 'max': 2.0}"


def test_damaged_files_are_named(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("pretokenize").file("b.bin"))
    storage.write_bytes(workspace.artifact("evaluate").file("c.bin"), b"short")
    plan = workspace.plan()
    assert executed(plan) == ["pretokenize", "evaluate"]
    assert plan["pretokenize"].reason == "damaged: b.bin" and plan["evaluate"].reason == "damaged: c.bin"
    for name in "abcd":
        storage.remove(workspace.artifact("train").file(f"{name}.bin"))
    assert workspace.plan()["train"].reason == "damaged: a.bin, b.bin, c.bin and 1 more"


def test_an_artifact_that_is_gone(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("evaluate").uri)
    plan = workspace.plan()
    assert executed(plan) == ["evaluate"] and plan["evaluate"].reason == "its artifact is gone"
    assert plan["evaluate"].last_seconds == 12  # from the record of the pipeline


def test_changed_sources(workspace):
    workspace.publish()
    old = sum(path.stat().st_size for path in workspace.corpus.iterdir())
    (workspace.corpus / "three.txt").write_text("12345")
    plan = workspace.plan()
    assert statuses(plan) == only("run", *NAMES)
    assert plan["ingest"].reason == f"sources changed: 4 files, {old} bytes -> 5 files, {old + 5} bytes"
    assert plan["tokenizer_image"].reason == "input changed: ingest; stays if ingest comes out the same"
    (workspace.corpus / "three.txt").unlink()
    assert executed(workspace.plan()) == []
    (workspace.corpus / "one.txt").write_text("a First text.\n")
    assert workspace.plan()["ingest"].reason == (f"sources changed: 4 files, {old} bytes -> as many, not the same")


def test_moved_sources_and_storage_change_nothing(workspace, tmp_path):
    workspace.publish()
    workspace.corpus = shutil.copytree(workspace.corpus, tmp_path / "elsewhere/corpus")
    workspace.storage = shutil.move(workspace.storage, tmp_path / "elsewhere/storage")
    assert executed(workspace.plan()) == []


def test_artifacts_in_memory_and_on_s3(workspace, root):
    workspace.storage = root
    workspace.publish("ingest", "tokenizer_image")
    storage.remove(workspace.artifact("tokenizer_image").file("b.bin"))
    plan = workspace.plan(until="pretokenize")
    assert executed(plan) == ["tokenizer_image", "tokenizer_joint", "pretokenize"]
    assert plan["tokenizer_image"].reason == "damaged: b.bin" and plan["train"].status == "blocked"


def test_a_pipeline_of_another_name_shares_the_artifacts(workspace):
    workspace.publish()
    plan = workspace.plan("name=other", NEW_LR)
    assert plan["ingest"].status == "cached" and plan["train"].reason == "never ran"


def test_an_input_made_again_with_other_content(workspace):
    workspace.publish()
    workspace.publish("ingest", report="another curve")
    assert executed(workspace.plan()) == []
    workspace.publish("ingest", content="other")
    plan = workspace.plan()
    assert executed(plan) == ["tokenizer_image", "tokenizer_joint", "pretokenize", "evaluate"]
    assert plan["pretokenize"].reason == "input changed: ingest (made again, with other content)"
    assert len(storage.list_files(str(workspace.storage / "replaced" / "ingest"))) == 12


def test_a_raised_version(workspace, monkeypatch):
    workspace.publish()
    from omniloom.stages.evaluate import stage as evaluate

    monkeypatch.setattr(evaluate, "VERSION", evaluate.VERSION + 1)
    plan = workspace.plan()
    assert executed(plan) == ["evaluate"]
    assert plan["evaluate"].reason == f"version {evaluate.VERSION - 1} -> {evaluate.VERSION}"


def test_only_runs_the_stage_alone(workspace):
    workspace.publish()
    plan = workspace.plan(only="train")
    assert executed(plan) == ["train"] and plan["train"].reason == "asked for: --only"
    assert plan.blocked == []
    plan = workspace.plan(NEW_LR, only="pretokenize")
    assert executed(plan) == ["pretokenize"]
    assert plan["train"].status == plan["evaluate"].status == "blocked"
    assert plan["train"].reason.startswith("not selected; config: optimizer.lr") and plan.blocked == []


def test_only_needs_its_inputs(workspace):
    plan = workspace.plan(only="train")
    assert statuses(plan) == only("blocked", *NAMES)
    assert plan["ingest"].reason == "not selected; never ran"
    assert plan["train"].reason == "nothing usable from pretokenize and tokenizer_joint; first run --until pretokenize"
    assert [planned.name for planned in plan.blocked] == ["train"]


def test_from_runs_the_stage_and_all_after_it(workspace):
    workspace.publish()
    plan = workspace.plan(from_="pretokenize")
    assert executed(plan) == ["pretokenize", "train", "evaluate"]
    assert {planned.reason for planned in plan.to_execute} == {"asked for: --from pretokenize"}
    plan.completed("pretokenize", plan["pretokenize"].artifact)
    assert executed(plan) == ["train", "evaluate"]


def test_until_brings_up_to_date_what_is_needed(workspace):
    plan = workspace.plan(until="tokenizer_joint")
    assert executed(plan) == ["ingest", "tokenizer_image", "tokenizer_joint"]
    assert plan["pretokenize"].reason == "not selected; never ran" and plan.blocked == []
    workspace.publish()
    assert executed(workspace.plan(until="train")) == []
    assert executed(workspace.plan(NEW_LR, until="train")) == ["train"]
    assert executed(workspace.plan(NEW_LR, until="pretokenize")) == []


def test_force_and_what_follows_from_it(workspace):
    workspace.publish()
    plan = workspace.plan(force=("train",))
    assert executed(plan) == ["train"] and plan["train"].reason == "forced"
    same = workspace.artifact("train")
    plan.completed("train", same)
    assert executed(plan) == [] and plan["train"].reason == "made by this run"
    plan = workspace.plan(force=("train",))
    workspace.publish("train", content="other")
    plan.completed("train", ArtifactStore(str(workspace.storage)).find("train", same.fingerprint))
    assert executed(plan) == ["evaluate"]
    assert plan["evaluate"].reason == "input changed: train (made again, with other content)"


def test_completed_stages_unblock_those_after_them(workspace):
    plan = workspace.plan(until="tokenizer_image")
    workspace.publish("ingest")
    plan.completed("ingest", workspace.artifact("ingest"))
    assert executed(plan) == ["tokenizer_image"] and plan["tokenizer_image"].status == "run"
    assert plan["tokenizer_joint"].status == "blocked"


@pytest.mark.parametrize(
    "selection, field",
    [
        ({"only": "trian"}, "--only"),
        ({"from_": "x"}, "--from"),
        ({"until": "x"}, "--until"),
        ({"force": ("train", "x")}, "--force"),
        ({"only": "train", "until": "train"}, None),
        ({"only": "train", "force": ("ingest",)}, "--force"),
        ({"until": "ingest", "force": ("train",)}, "--force"),
    ],
)
def test_wrong_selections(selection, field):
    with pytest.raises(InputError) as caught:
        Selection(**selection).stages(graph.Graph(NAMES))
    assert caught.value.field == field
    if field != "--force":
        assert "--only and --until" in str(caught.value) or "the stages are ingest, " in str(caught.value)


def test_interrupted_work_is_resumed(workspace):
    workspace.publish("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize")
    plan = workspace.plan()
    storage.write_json(storage.join(plan.store.work_uri("train", plan["train"].fingerprint), "state", "x.json"), {})
    plan = workspace.plan()
    assert statuses(plan) == {**only("run", "evaluate"), "train": "resume"}
    assert plan["train"].reason == "was interrupted; never ran"
    assert workspace.plan(only="train")["train"].status == "resume"
    forced = workspace.plan(force=("train",))["train"]
    assert (forced.status, forced.reason) == ("run", "forced")
    assert workspace.plan(NEW_LR)["train"].status == "run"  # that work was for another fingerprint


def test_a_pin_keeps_an_artifact_and_shows_drift(workspace):
    workspace.publish()
    old = workspace.config().stages.train.optimizer.lr
    pin = f"pins.train={workspace.artifact('train').fingerprint}"
    plan = workspace.plan(pin)
    assert plan["train"].reason == "pinned" and plan["evaluate"].reason == "up to date"
    plan = workspace.plan(pin, NEW_LR)
    assert executed(plan) == []
    assert plan["train"].reason == f"pinned; drift: config: optimizer.lr {old} -> 0.0003"
    assert plan["evaluate"].reason == "up to date; drift through pinned train"
    plan = workspace.plan(pin, NEW_LR, "stages.evaluate.num_steps=5")
    assert plan["evaluate"].status == "run" and plan["evaluate"].reason.endswith("; drift through pinned train")
    assert executed(workspace.plan(pin, NEW_LR, from_="pretokenize")) == ["pretokenize", "evaluate"]


def test_drift_reaches_every_stage_behind_the_pin(workspace):
    workspace.publish()
    pin = f"pins.ingest={workspace.artifact('ingest').fingerprint}"
    (workspace.corpus / "three.txt").write_text("12345")
    plan = workspace.plan(pin)
    assert executed(plan) == []
    assert plan["ingest"].reason.startswith("pinned; drift: sources changed: 4 files")
    for name in NAMES[1:]:
        assert plan[name].reason == "up to date; drift through pinned ingest"


def test_pins_stand_in_for_stages_that_are_not_configured(workspace):
    workspace.publish()
    before = workspace.plan()
    absent = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize")
    none = [f"stages.{name}=null" for name in absent]
    pins = [f"pins.{name}={before[name].fingerprint}" for name in ("ingest", "tokenizer_joint", "pretokenize")]
    plan = workspace.plan(*none, *pins)
    assert statuses(plan) == dict.fromkeys(("ingest", "tokenizer_joint", "pretokenize", "train", "evaluate"), "cached")
    assert [planned.reason for planned in plan.stages] == ["pinned"] * 3 + ["up to date"] * 2
    assert {p.name: p.fingerprint for p in plan.stages} == {p.name: before[p.name].fingerprint for p in plan.stages}
    assert executed(workspace.plan(*none, *pins, NEW_LR)) == ["train", "evaluate"]
    assert executed(workspace.plan(*none, *pins[1:], "stages.evaluate=null", NEW_LR)) == ["train"]
    with pytest.raises(InputError, match="evaluate: reads records, which no configured stage before it makes"):
        workspace.plan(*none, *pins[1:])
    # A stage that is configured and pinned needs nothing either: its artifact is there.
    plan = workspace.plan("stages.ingest=null", "stages.evaluate=null", *none[1:3], *pins[1:])
    assert statuses(plan) == dict.fromkeys(("tokenizer_joint", "pretokenize", "train"), "cached")


def test_wrong_pins(workspace):
    workspace.publish()
    fingerprint = workspace.artifact("train").fingerprint
    for pin, selection, message in [
        ("pins.train=abc", {}, "no artifact 'abc' of train"),
        ("pins.trian=abc", {}, "no stage 'trian'"),
        (f"pins.train={fingerprint}", {"only": "train"}, "train is pinned"),
        (f"pins.train={fingerprint}", {"force": ("train",)}, "train is pinned"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            workspace.plan(pin, **selection)
        assert caught.value.field == pin.split("=")[0]


def test_a_damaged_pin_is_blocked(workspace):
    workspace.publish()
    pin = f"pins.train={workspace.artifact('train').fingerprint}"
    storage.remove(workspace.artifact("train").file("a.bin"))
    plan = workspace.plan(pin)
    assert plan["train"].status == "blocked" and plan["train"].reason == "pinned; damaged: a.bin"
    assert [planned.name for planned in plan.blocked] == ["train"] and executed(plan) == []


def test_the_demo_itself_can_be_planned(tmp_path):
    plan = make_plan(load("demo", [f"storage={tmp_path}/nothing"]))
    assert statuses(plan) == only("run", *NAMES)
    assert plan["ingest"].sources["files"] > 1797 and not (tmp_path / "nothing").exists()


def damaged_shard(workspace, name: str = "pretokenize") -> Path:
    """One bit of a file of the stage, flipped: its size is as before."""
    path = Path(workspace.artifact(name).file("b.bin"))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    return path


def test_a_flipped_bit_is_noticed_before_it_is_used(workspace, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(workspace.storage.parent / "cache"))
    workspace.publish("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize")
    assert workspace.plan().examine_inputs() == []
    damaged_shard(workspace)
    plan = workspace.plan()
    assert executed(plan) == ["train", "evaluate"]  # planning reads no content
    [told] = plan.examine_inputs()
    assert "pretokenize is damaged: b.bin" in told and plan["pretokenize"].uri in told
    assert executed(plan) == ["pretokenize", "train", "evaluate"]
    assert plan["pretokenize"].reason == "damaged: b.bin" and plan["train"].reason == "never ran"
    assert executed(workspace.plan()) == executed(plan)  # what was found is known from now on
    alone = workspace.plan(only="train")
    assert [p.name for p in alone.blocked] == ["train"] and "pretokenize" in alone["train"].reason
    workspace.publish("pretokenize")
    assert executed(workspace.plan()) == ["train", "evaluate"]


def test_what_no_stage_reads_is_not_read(workspace, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(workspace.storage.parent / "cache"))
    workspace.publish()
    damaged_shard(workspace, "tokenizer_image")
    plan = workspace.plan(only="train")
    assert plan.examine_inputs() == [] and executed(plan) == ["train"]
    damaged_shard(workspace)
    pinned = f"pins={{pretokenize: {plan['pretokenize'].fingerprint}}}"
    plan = workspace.plan(pinned, only="train")
    assert len(plan.examine_inputs()) == 1
    assert [p.name for p in plan.blocked] == ["train"]


def test_an_unreadable_manifest_is_named(workspace):
    workspace.publish()
    manifest = Path(workspace.artifact("train").file("manifest.json"))
    manifest.write_bytes(manifest.read_bytes()[:50])
    with pytest.raises(InputError) as caught:
        workspace.plan()
    assert caught.value.file == str(manifest) and "remove it" in caught.value.message
    manifest.unlink()
    assert executed(workspace.plan()) == ["train"]
