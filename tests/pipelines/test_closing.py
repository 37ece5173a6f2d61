"""The lines that end a run, for pipelines of every shape: they must never be what fails."""

from __future__ import annotations

import shlex

import pytest

from omniloom.infra import storage
from omniloom.pipelines.tables import closing_lines

TEXT = (
    "stages.tokenizer_image=null",
    "stages.tokenizer_joint=null",
    "stages.train.objectives={}",
    "stages.train.packing.mixture.image=0",
    "stages.train.packing.mixture.video=0",
    "stages.evaluate.gate={}",
)


def write(artifact, path: str, value: dict) -> None:
    storage.write_json(artifact.file(path), value)


def closing(workspace, *overrides: str, prompts: dict | None = None, metrics: dict | None = None, **selection) -> dict:
    """The lines by what stands before the colon, of a pipeline whose artifacts were published by hand."""
    plan = workspace.plan(*overrides, **selection)
    for planned in plan.stages:
        if planned.artifact and prompts is not None and planned.name == "train":
            write(planned.artifact, "report/prompts.json", prompts)
        if planned.artifact and metrics and planned.name in metrics:
            planned.artifact.manifest["metrics"] = metrics[planned.name]
    lines = [line.partition(": ") for line in closing_lines(plan, [])]
    assert lines[0] == ("demo", ": ", "everything is up to date")
    return {name: text.strip() for name, _, text in lines[1:]}


def sample_options(lines: dict) -> list[str]:
    words = shlex.split(lines["sample"])
    assert words[:3] == ["omniloom", "sample", lines["model"]]
    return words[3:]


def publish(workspace, *overrides: str) -> None:
    workspace.publish(*[planned.name for planned in workspace.plan(*overrides).stages], overrides=overrides)


@pytest.mark.parametrize(
    "prompts, expected",
    [
        ({"captions": ['a "red" square', "b"]}, "a 'red' square"),
        ({"captions": ["two\nlines"]}, "two lines"),
        ({"captions": []}, "a picture"),
        ({}, "a picture"),
        (None, "a picture"),
    ],
)
def test_pictures(workspace, prompts, expected):
    """With captions in the validation split, without any, and with `samples: {count: 0}`."""
    workspace.publish()
    lines = closing(
        workspace,
        prompts=prompts,
        metrics={"evaluate": {"image_class_agreement": 0.5, "recon_psnr_image": None, "note": "text"}},
    )
    assert sample_options(lines) == ["--prompt", expected]
    assert lines["metrics"] == "image_class_agreement 0.500" and lines["report"].endswith("report.html")


def test_text_alone(workspace):
    publish(workspace, *TEXT)
    lines = closing(workspace, *TEXT, prompts={"captions": []}, metrics={"evaluate": {"bits_per_byte": 2.5}})
    assert sample_options(lines) == ["--text", "--prompt", "Once upon a time"]
    assert lines["metrics"] == "bits_per_byte 2.500"


def test_descriptions_alone(workspace):
    only = ("stages.train.packing.caption_first=0",)
    publish(workspace, *only)
    assert sample_options(closing(workspace, *only, prompts={"captions": []})) == ["--image", "FILE"]


@pytest.mark.parametrize(
    "made, expected",
    [
        (("ingest",), {"ingest"}),
        (("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize"), {"pretokenize"}),
        (("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train"), {"model", "sample"}),
    ],
)
def test_a_part_of_the_stages(workspace, made, expected):
    workspace.publish(*made)
    assert set(closing(workspace, until=made[-1])) == expected


def test_empty_splits_are_said(workspace):
    workspace.publish()
    counts = {"records": 3, "records_train": 3, "records_validation": 0, "records_test": 0}
    plan = workspace.plan()
    plan["ingest"].artifact.manifest["metrics"] = counts
    notes = [line for line in closing_lines(plan, []) if line.startswith("note: ")]
    assert ["validation split is empty" in notes[0], "test split is empty" in notes[1], len(notes)] == [True, True, 2]
    plan["ingest"].artifact.manifest["metrics"] = {**counts, "records_validation": 1, "records_test": 1}
    assert not [line for line in closing_lines(plan, []) if line.startswith("note: ")]


def test_a_model_that_nothing_measures_is_said_unless_evaluate_is_null(workspace):
    workspace.publish()
    plan = workspace.plan("stages.evaluate=null")
    assert not [line for line in closing_lines(plan, []) if "measures" in line]
    plan.config.stages.model_fields_set.discard("evaluate")  # as in a file that does not name it
    assert "note: nothing measures the model; stages.evaluate={} does, with its defaults" in closing_lines(plan, [])


def test_the_last_results_are_named_where_no_model_is(workspace):
    study = ("stages.quantizer_study={training: {model: {width: 64, heads: 2}}, quantizers: {vq: {kind: vq}}}",)
    rest = tuple(f"stages.{name}=null" for name in ("tokenizer_joint", "pretokenize", "train", "evaluate"))
    publish(workspace, *study, *rest)
    plan = workspace.plan(*study, *rest)
    storage.write_bytes(plan["quantizer_study"].artifact.file("report.html"), b"<html></html>")
    plan["quantizer_study"].artifact.manifest["files"].append({"path": "report.html", "bytes": 13, "sha256": ""})
    assert [line.split(":")[0] for line in closing_lines(plan, [])] == ["demo", "tokenizer_image", "report"]
    assert closing_lines(plan, [])[2].endswith(plan["quantizer_study"].artifact.file("report.html"))
