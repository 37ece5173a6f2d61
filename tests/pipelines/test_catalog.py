"""The catalog: what a storage holds, where it came from, how two of it differ, what nothing reaches, copies of it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from demo_stages import NAMES

from omniloom.infra import storage
from omniloom.infra.artifacts import MANIFEST, ArtifactStore
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.lease import Lease
from omniloom.pipelines.catalog import comparison, places
from omniloom.pipelines.catalog.collecting import collect
from omniloom.pipelines.catalog.copies import copy
from omniloom.pipelines.catalog.lineage import lineage
from omniloom.pipelines.config import load
from omniloom.pipelines.record import Record
from omniloom.pipelines.why import why

OTHER = "stages.train.optimizer.lr=0.01"
# What a training reads, and what is made from one.
BEFORE_TRAIN = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize")


def age(workspace, days: float) -> None:
    """Everything that is published came so many days ago; the manifests already say 1970."""
    for manifest in workspace.storage.rglob(MANIFEST):
        os.utime(manifest, (time.time() - days * 86400,) * 2)


def two_trainings(workspace) -> tuple[str, str]:
    """A pipeline that was run, and run again with another learning rate: the fingerprints of its trainings."""
    workspace.publish(*NAMES, content="first")
    first = workspace.artifact("train").fingerprint
    workspace.publish("train", "evaluate", overrides=(OTHER,), content="second")
    age(workspace, 2)
    return first, workspace.artifact("train", OTHER).fingerprint


def place(workspace) -> places.Place:
    return places.place(str(workspace.storage))


def gone(found: dict) -> set[tuple[str, str]]:
    return {(row["stage"], row["fingerprint"]) for row in found["garbage"]}


# ---- names ----


def test_names(workspace, tmp_path):
    first, second = two_trainings(workspace)
    where = str(workspace.storage)
    assert places.artifact(f"{where}:{first[:9]}").fingerprint == first
    assert places.artifact(f"{where}:train").fingerprint == second  # the newest
    folder = workspace.artifact("train").uri
    assert places.artifact(folder).fingerprint == places.artifact(f"{folder}/a.bin").fingerprint == first
    config = tmp_path / "demo.yaml"
    config.write_text(f"name: demo\nstorage: {where}\ndata: ???\nstages: {{}}\n")
    assert places.artifact(f"{config}:train").fingerprint == second  # used last
    for name, why_not in (
        (f"{where}:trian", "expected a stage"),
        (f"{where}:quantizer_study", "has made nothing"),
        (f"{where}:ffffff", "no artifact ffffff"),
        (f"{where}:20260101-000000-abcdef", "no run"),
        ("nowhere:train", "is no storage"),
        (where, "names no artifact"),
    ):
        with pytest.raises(InputError, match=why_not):
            places.artifact(name)


def test_list_and_show(workspace, omniloom):
    first, second = two_trainings(workspace)
    with Record(str(workspace.storage), "demo") as record:
        record.stage("train", status="finished", fingerprint=second)
    code, out, _ = omniloom("list", str(workspace.storage), "--json")
    found = json.loads(out)
    assert code == 0 and len(found["artifacts"]) == len(NAMES) + 2 and found["models"] == []
    assert {row["fingerprint"]: row["used_by"] for row in found["artifacts"] if row["stage"] == "train"} == {
        first: [],
        second: ["demo"],
    }
    assert found["runs"][0]["status"] == "finished"
    code, out, _ = omniloom("list", str(workspace.storage), "runs")
    assert code == 0 and record.id in out and first[:12] not in out
    code, out, _ = omniloom("show", f"{workspace.storage}:{first[:8]}")
    assert code == 0 and first in out and "lr: 0.002" in out and "a.bin" in out
    told = json.loads(omniloom("show", f"{workspace.storage}:{first[:8]}", "--json")[1])
    assert told["made_from_it"] == [f"evaluate/{workspace.artifact('evaluate').fingerprint}"]
    assert told["bytes"] == sum(entry["bytes"] for entry in told["files"]) and told["damaged"] == []
    assert json.loads(omniloom("show", f"{workspace.storage}:{record.id}", "--json")[1])["id"] == record.id
    assert omniloom("show", f"{workspace.storage}:{record.id}")[1].startswith(f"run {record.id} of demo: finished")


# ---- lineage and differences ----


def test_lineage_goes_up_and_down_and_not_aside(workspace, omniloom):
    first, second = two_trainings(workspace)
    code, out, _ = omniloom("lineage", f"{workspace.storage}:{first[:10]}", "--json")
    found = json.loads(out)
    stages = {node["stage"] for node in found["nodes"] if node["kind"] == "artifact"}
    assert code == 0 and stages == set(NAMES)
    assert second not in out  # made from the same tokens, and neither above nor below
    sources = [node for node in found["nodes"] if node["kind"] == "sources"]
    assert len(sources) == 1 and sources[0]["files"] == 4  # two texts, a picture and a video
    assert {
        "from": sources[0]["id"],
        "to": f"ingest/{workspace.artifact('ingest').fingerprint}",
        "role": "sources",
    } in (found["edges"])
    reads = {edge["from"].split("/")[0] for edge in found["edges"] if edge["to"] == f"train/{first}"}
    assert reads == {"pretokenize", "tokenizer_joint"}
    tokens = lineage(workspace.artifact("pretokenize"))
    made = {edge["to"] for edge in tokens["edges"] if edge["from"].startswith("pretokenize/")}
    assert {f"train/{first}", f"train/{second}"} <= made
    text = omniloom("lineage", f"{workspace.storage}:{first[:10]}")[1]
    assert text.index("came from:") < text.index("pretokenize") < text.index("was made into:") < text.index("evaluate")


def test_lineage_says_what_is_gone(workspace):
    workspace.publish()
    storage.remove(workspace.artifact("pretokenize").uri)
    node = next(n for n in lineage(workspace.artifact("train"))["nodes"] if n["id"].startswith("pretokenize/"))
    assert node["there"] is False


def test_diff(workspace, omniloom, tmp_path):
    first, second = two_trainings(workspace)
    where = str(workspace.storage)
    found = comparison.diff(f"{where}:{first[:10]}", f"{where}:{second[:10]}")
    (row,) = found["stages"]
    assert row["config"] == [{"field": "optimizer.lr", "a": 0.002, "b": 0.01}]
    assert not row["same"] and not row["inputs"] and not row["version"] and not row["sources"]
    with (
        Record(where, "demo", {"train": first}) as one,
        Record(where, "demo", {"train": second, "ingest": "gone"}) as other,
    ):
        pass
    runs = comparison.diff(f"{where}:{one.id}", f"{where}:{other.id}")
    assert [stage["config"] for stage in runs["stages"]] == [row["config"]]
    code, out, _ = omniloom("diff", f"{where}:{first[:10]}", f"{where}:{second[:10]}")
    assert code == 0 and "config optimizer.lr: 0.002 -> 0.01" in out
    assert comparison.diff(f"{where}:ingest", f"{where}:ingest")["same"]
    with pytest.raises(InputError, match="nothing to compare"):
        comparison.diff(f"{where}:ingest", f"{where}:train")


def test_why(workspace, omniloom):
    first, second = two_trainings(workspace)
    plan = workspace.plan("stages.train.optimizer.lr=0.01", "stages.train.steps=561", "stages.train.seed=4")
    found = why(plan, "train")
    assert found["status"] == "run" and found["last_used"]["fingerprint"] == second
    steps = f"steps {load('demo').stages.train.steps} -> 561"
    assert found["last_used"]["config"] == ["seed 0 -> 4", steps]
    assert found["nearest"]["fingerprint"] == first  # there is no other
    assert why(workspace.plan(OTHER), "train")["status"] == "cached"
    code, out, _ = omniloom("why", "demo", "train", *workspace.overrides("stages.train.steps=561"))
    assert code == 0 and steps in out and f"used last: {second[:12]}" in out
    assert omniloom("why", "demo", "trian", *workspace.overrides())[0] == 2


# ---- garbage ----


def test_what_nothing_reaches_goes_and_all_else_stays(workspace, omniloom):
    first, second = two_trainings(workspace)
    evaluated = workspace.artifact("evaluate").fingerprint
    before = workspace.files()
    code, out, _ = omniloom("gc", str(workspace.storage), "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and gone(found) == {("train", first), ("evaluate", evaluated)}
    assert found["bytes"] == sum(row["bytes"] for row in found["garbage"]) > 0 == found["deleted_bytes"]
    assert workspace.files() == before
    assert "--yes deletes it" in omniloom("gc", str(workspace.storage))[1] and workspace.files() == before
    code, out, _ = omniloom("gc", str(workspace.storage), "--yes", "--json")
    assert code == 0 and json.loads(out)["deleted_bytes"] == found["bytes"]
    left = {(known.stage, known.fingerprint) for known in ArtifactStore(str(workspace.storage)).all()}
    assert left == {(name, workspace.artifact(name, OTHER).fingerprint) for name in NAMES}
    assert all(stage.status == "cached" for stage in workspace.plan(OTHER).stages)
    assert collect(place(workspace))["garbage"] == []
    assert not (workspace.storage / "artifacts" / "train" / first).exists()


def test_the_young_and_the_pinned_stay(workspace, tmp_path):
    first, _ = two_trainings(workspace)
    assert not collect(place(workspace), grace_days=3)["garbage"]
    config = tmp_path / "pins.yaml"
    config.write_text(
        f"name: other\nstorage: {workspace.storage}\npins: {{train: {first}}}\nstages: {{evaluate: {{}}}}\n"
    )
    found = collect(places.place(str(config)))
    assert [row["stage"] for row in found["garbage"]] == ["evaluate"]
    assert {"stage": "train", "fingerprint": first, "why": "it is pinned"} in found["kept"]


def test_what_a_run_under_way_uses_stays(workspace):
    first, _ = two_trainings(workspace)
    with Record(str(workspace.storage), "third", {"train": first}):
        assert [row["stage"] for row in collect(place(workspace), delete=True)["garbage"]] == ["evaluate"]
    assert ("train", first) in gone(collect(place(workspace)))


def test_a_run_that_begins_while_it_is_deleted_keeps_it(workspace):
    """The two orders that there are: the run notes down what it uses before the manifest is looked for, or after."""
    first, _ = two_trainings(workspace)
    store, artifact = place(workspace).store, workspace.artifact("train")
    content = sorted(Path(artifact.uri).iterdir())
    assert not store.drop(artifact, in_use=lambda: True)
    assert sorted(Path(artifact.uri).iterdir()) == content and store.find("train", first).manifest == artifact.manifest
    # The run planned when it was there, and looks again after it has said what it uses.
    plan = workspace.plan("stages.evaluate.seed=9")
    assert plan["train"].status == "cached" and [stage.name for stage in plan.to_execute] == ["evaluate"]
    assert store.drop(artifact, in_use=lambda: False)
    assert plan.examine_inputs() == [f"train is gone from {artifact.uri}"]
    assert [stage.name for stage in plan.to_execute] == ["train", "evaluate"]


def test_what_another_run_makes_at_this_moment_stays(workspace):
    first, _ = two_trainings(workspace)
    with Lease(str(workspace.storage / "leases" / "train" / f"{first}.json")):
        found = collect(place(workspace), delete=True)
    assert {row["stage"]: row["deleted"] for row in found["garbage"]} == {"train": False, "evaluate": True}
    assert workspace.artifact("train").fingerprint == first


def test_unfinished_work_keeps_its_inputs_and_itself(workspace):
    two_trainings(workspace)
    store = place(workspace).store
    train = workspace.artifact("train")
    store.begin_work("evaluate", "e" * 64, {"train": train.digest})
    found = collect(place(workspace), delete=True)
    assert ("train", train.fingerprint) not in gone(found) and found["unfinished"][0]["fingerprint"] == "e" * 64
    assert store.has_work("evaluate", "e" * 64) and store.find("train", train.fingerprint)


def test_what_was_put_aside_or_left_behind_goes(workspace):
    workspace.publish()
    workspace.publish("evaluate", content="again")
    age(workspace, 2)
    evaluate = workspace.artifact("evaluate")
    found = collect(place(workspace), delete=True)
    assert [(row["kind"], row["stage"]) for row in found["garbage"]] == [("replaced", "evaluate")]
    assert workspace.artifact("evaluate").manifest == evaluate.manifest
    (left := workspace.storage / "artifacts" / "train" / ("d" * 64)).mkdir()
    (left / "a.bin").write_bytes(b"123")
    assert not collect(place(workspace))["garbage"]  # young: it may be on its way here
    os.utime(left / "a.bin", (0, 0))
    assert [(row["kind"], row["bytes"]) for row in collect(place(workspace), delete=True)["garbage"]] == [
        ("leftover", 3)
    ]
    assert not left.exists()


def test_models_of_an_unknown_registry_keep_everything(workspace):
    workspace.publish()
    train = workspace.artifact("train")
    manifest = json.loads(Path(train.file(MANIFEST)).read_text())
    manifest |= {"mlflow_run_id": "abc", "files": [*manifest["files"], {"path": "model/x", "bytes": 0, "sha256": ""}]}
    Path(train.file(MANIFEST)).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which models are registered is not known"):
        collect(place(workspace))


# ---- copies ----


def test_copies_are_found_by_plans_there(workspace, omniloom, tmp_path):
    workspace.publish()
    target = tmp_path / "other"
    name = f"{workspace.storage}:train"
    code, out, _ = omniloom("copy", name, str(target), "--json")
    assert code == 0 and [row["stage"] for row in json.loads(out)] == ["train"]
    rows = copy(places.artifact(name), str(target), with_ancestors=True)
    assert {row["stage"]: row["copied"] for row in rows} == {**dict.fromkeys(BEFORE_TRAIN, True), "train": False}
    plan = workspace.plan(f"storage={target}")
    assert {stage.name: stage.status for stage in plan.stages} == {
        **dict.fromkeys([*BEFORE_TRAIN, "train"], "cached"),
        "evaluate": "run",
    }
    copied = plan["train"].artifact
    assert copied.manifest == workspace.artifact("train").manifest and not plan.store.examine(copied)


def test_a_damaged_file_is_no_copy(workspace, tmp_path):
    workspace.publish()
    train = workspace.artifact("train")
    Path(train.file("b.bin")).chmod(0o644)
    data = Path(train.file("b.bin")).read_bytes()
    Path(train.file("b.bin")).write_bytes(bytes([data[0] ^ 1]) + data[1:])  # as many bytes
    with pytest.raises(OmniLoomError, match=r"b\.bin not as the manifest says"):
        copy(train, str(tmp_path / "other"))
    store = ArtifactStore(str(tmp_path / "other"))
    assert store.find("train", train.fingerprint) is None
    Path(train.file("b.bin")).write_bytes(data)
    assert copy(train, str(tmp_path / "other"))[0]["copied"] and store.find("train", train.fingerprint)
    with pytest.raises(InputError, match="lies there already"):
        copy(train, str(workspace.storage))


def test_another_content_under_the_fingerprint_is_refused(workspace, tmp_path):
    workspace.publish("ingest", content="one")
    copy(workspace.artifact("ingest"), str(tmp_path / "other"))
    workspace.publish("ingest", content="two")
    with pytest.raises(InputError, match="other content"):
        copy(workspace.artifact("ingest"), str(tmp_path / "other"))


def test_two_copies_at_a_time(workspace, tmp_path):
    workspace.publish()
    train, made = workspace.artifact("train"), []
    threads = [threading.Thread(target=lambda: made.extend(copy(train, str(tmp_path / "other")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["copied"] for row in made) == [False, True]


# ---- configs ----


def test_config_and_presets(omniloom):
    code, out, _ = omniloom("config", "demo", "stages.train.steps=7", "--json")
    written = json.loads(out)
    assert code == 0 and written["stages"]["train"]["steps"] == 7 and "cluster" not in written
    assert (
        written["stages"]["ingest"]["sources"][0]["uri"] == "digits://images" or "digits:" in out
    )  # `${data}` is filled in
    resolved = json.loads(omniloom("config", "demo", "--resolved", "--json")[1])
    assert resolved["stages"]["train"]["optimizer"]["grad_clip"] == 1.0 and os.path.isabs(resolved["storage"])
    code, out, _ = omniloom("presets", "demo")
    assert code == 0 and out.startswith("# Handwritten digits") and "name: demo" in out
    assert {row["name"] for row in json.loads(omniloom("presets", "--json")[1])} >= {"demo", "cluster"}
    assert omniloom("presets", "dmeo")[0] == 2
