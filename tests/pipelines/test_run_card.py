"""What MLflow shows of a run at a glance."""

from __future__ import annotations

import copy
from types import SimpleNamespace

from omniloom.pipelines import run_card
from omniloom.pipelines.config import load
from omniloom.pipelines.fingerprint import canonical
from omniloom.pipelines.plan import make_plan


def plan(tmp_path, *reasons: tuple[str, str]):
    made = make_plan(load("demo", [f"storage={tmp_path}"]))
    for planned in made.stages:
        planned.status, planned.reason = "cached", "up to date"
    for stage, reason in reasons:
        made[stage].status, made[stage].reason = "run", reason
    return made


def changed(tmp_path):
    """A plan whose training had another rate, another schedule and fewer steps the last time."""
    made = plan(tmp_path, ("train", "config: optimizer.lr ..."), ("evaluate", "input changed: train"))
    before = copy.deepcopy(canonical(made["train"].config, "train"))
    before["optimizer"] |= {"lr": 0.5, "schedule": "a, b | c"}
    made["train"].known = SimpleNamespace(manifest={"config": before | {"steps": 7}})
    return made


def test_a_run_is_called_by_what_was_changed(tmp_path):
    title = run_card.title(changed(tmp_path))
    told = [f"train.steps 7 -> {load('demo').stages.train.steps}", "train.optimizer.lr 0.5 -> 0.002"]
    assert title.startswith("demo: ") and all(change in title for change in told), title
    assert "train.optimizer.schedule a, b | c -> cosine; " in title
    forced = plan(tmp_path, ("train", "forced"), ("evaluate", "input changed: train"))
    assert run_card.title(forced) == "demo: train forced"
    assert run_card.title(plan(tmp_path, ("ingest", "never ran"), ("train", "never ran"))) == "demo: first run"
    assert len(run_card.title(plan(tmp_path, ("train", "sources changed: " + "x" * 500)))) == 120


def test_a_run_tells_who_started_it_from_what_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/omniloom", "run", "demo", "cluster.env={TOKEN: hunter2secret}", "a b"])
    monkeypatch.setenv("LOGNAME", "ada")
    tags = run_card.tags(plan(tmp_path, ("train", "forced"), ("evaluate", "input changed: train")), "abc123")
    assert tags["mlflow.user"] == "ada" and tags["mlflow.source.git.commit"] == "abc123"
    assert tags["mlflow.note.content"] == "- **train**: forced\n- **evaluate**: input changed: train"
    assert tags["mlflow.source.name"] == "omniloom run demo 'a b'" and "hunter2secret" not in str(tags)
    assert "mlflow.source.git.commit" not in run_card.tags(plan(tmp_path), None)


def made(stage: str, **metrics):
    return SimpleNamespace(
        file=lambda *parts: "/".join(["/st", stage, *parts]),
        manifest={"mlflow_run_id": f"id-of-{stage}", "config": {}},
        metrics=metrics,
    )


def test_a_finished_run_tells_what_came_of_it_and_of_what(tmp_path):
    finished = changed(tmp_path)
    differs = run_card.differences(finished)
    finished["ingest"].artifact = made(
        "ingest", records=2594, records_image=1797, records_text=797, records_train=2500, records_test=94, rejects=3
    )
    finished["train"].artifact = made("train")
    finished["evaluate"].artifact = made("evaluate", gate_passed=1)
    text = run_card.description(finished, "- **train**: x", differs, lambda run, file: f"#/{run}/{file}")
    first, sample, table, data, why = text.split("\n\n")
    assert first == "**Gate passed.** [Report](#/id-of-evaluate/report.html): `/st/evaluate/report.html`"
    assert sample == 'Sample from it: `omniloom sample /st/train/model --text --prompt "Once upon a time"`'
    assert "| train.optimizer.schedule | a, b / c | cosine |" in table.splitlines()
    assert data == "Data: 2,594 records: 1,797 image, 797 text; train 2,500, test 94; 3 rejects"
    assert why == "- **train**: x"
    nowhere = run_card.description(finished, "", "", lambda run, file: None)
    assert "Report: `/st/evaluate/report.html`" in nowhere and "before" not in nowhere
