"""What MLflow shows of a run at a glance."""

from __future__ import annotations

from types import SimpleNamespace

from omniloom.pipelines import run_card
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan


def plan(tmp_path, *reasons: tuple[str, str]):
    made = make_plan(load("demo", [f"storage={tmp_path}"]))
    for planned in made.stages:
        planned.status, planned.reason = "cached", "up to date"
    for stage, reason in reasons:
        made[stage].status, made[stage].reason = "run", reason
    return made


def test_a_run_is_called_by_what_was_changed(tmp_path):
    changed = plan(
        tmp_path,
        ("train", "config: optimizer.lr 0.002 -> 0.0003, steps 10 -> 20"),
        ("evaluate", "input changed: train"),
    )
    assert run_card.title(changed) == "demo: train.optimizer.lr 0.002 -> 0.0003; train.steps 10 -> 20"
    forced = plan(tmp_path, ("train", "forced"), ("evaluate", "input changed: train"))
    assert run_card.title(forced) == "demo: train forced"
    assert run_card.title(plan(tmp_path, ("ingest", "never ran"), ("train", "never ran"))) == "demo: first run"
    assert len(run_card.title(plan(tmp_path, ("train", "config: a " + "x" * 500)))) == 120


def test_a_run_tells_who_started_it_from_what_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/omniloom", "run", "demo", "cluster.env={TOKEN: hunter2secret}", "a b"])
    monkeypatch.setenv("LOGNAME", "ada")
    tags = run_card.tags(plan(tmp_path, ("train", "forced"), ("evaluate", "input changed: train")), "abc123")
    assert tags["mlflow.user"] == "ada" and tags["mlflow.source.git.commit"] == "abc123"
    assert tags["mlflow.note.content"] == "- **train**: forced\n- **evaluate**: input changed: train"
    assert tags["mlflow.source.name"] == "omniloom run demo 'a b'" and "hunter2secret" not in str(tags)
    assert "mlflow.source.git.commit" not in run_card.tags(plan(tmp_path), None)


def test_a_finished_run_tells_where_its_report_and_its_model_are(tmp_path):
    made = plan(tmp_path)
    for name in ("train", "evaluate"):
        made[name].artifact = SimpleNamespace(file=lambda *parts, name=name: "/".join(["/st", name, *parts]))
    text = run_card.description(made, "- **train**: forced")
    assert text.startswith("- **train**: forced\n\n") and "/st/evaluate/report.html" in text
    assert "omniloom sample /st/train/model" in text
