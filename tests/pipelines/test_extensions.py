"""Stages of other distributions: their places, what `plan`, `schema` and errors say of them, and why one is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import corpora
import pytest
from distributions import EXAMPLES, install, omniloom

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.pipelines.extensions import with_extensions
from omniloom.pipelines.graph import BUILT_IN
from omniloom.stages.base import Stage, StageContext
from omniloom.stages.data import records

MODULE = """
from pydantic import BaseModel
from omniloom.stages.base import Stage

class Config(BaseModel):
    pass

VERSION = 1

def run(context):
    return {}

"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """distribution(module, {entry point: expression}): one with stages that the expressions make, on the path."""

    def add(module: str, stages: dict[str, str], text: str = MODULE) -> None:
        folder = tmp_path / f"{module}-source"
        folder.mkdir()
        points = "".join(f'{name} = "{module}:{name.upper()}"\n' for name in stages)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "{module}"\nversion = "1.0"\n[project.entry-points."omniloom.stages"]\n{points}'
            f'[tool.setuptools]\npy-modules = ["{module}"]\n'
        )
        lines = "".join(f"{name.upper()} = {expression}\n" for name, expression in stages.items())
        (folder / f"{module}.py").write_text(text + lines)
        install(folder, tmp_path / module)
        monkeypatch.syspath_prepend(tmp_path / module)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return add


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def test_added_stages_stand_behind_what_they_read_or_name(distribution):
    distribution(
        "places",
        {
            "b_filter": 'Stage("b_filter", __name__, ("records",), "records")',
            "a_filter": 'Stage("a_filter", __name__, ("records",), "records")',
            "late_filter": 'Stage("late_filter", __name__, ("records",), "records", after="tokenizer_joint")',
            "distilled": 'Stage("distilled", __name__, ("model", "tokens"), "model")',
            "card": 'Stage("card", __name__, ("opinion", "evaluation?"))',
            "opinion": 'Stage("opinion", __name__, ("evaluation",))',
            "second_source": 'Stage("second_source", __name__, makes="records", after="ingest")',
        },
    )
    stages, unusable = with_extensions(BUILT_IN)
    built_in, found = names(BUILT_IN), names(stages)
    assert unusable == {} and [name for name in found if name in built_in] == built_in
    judged = ["train_scorer", "recaption"]
    assert found[:7] == ["ingest", "second_source", "curate", *judged, "a_filter", "b_filter"]
    assert found[found.index("tokenizer_joint") + 1] == "late_filter"
    assert found[found.index("distill") + 1] == "distilled" and found[-3:] == ["evaluate", "opinion", "card"]


@pytest.mark.parametrize(
    "expression, text, reason",
    [
        ('Stage("other", __name__)', MODULE, "is the stage 'other', expected the name of its entry point"),
        ('"odd"', MODULE, "is no omniloom.stages.base.Stage but a str"),
        ('Stage("odd", "no_such_module")', MODULE, "cannot be imported: ModuleNotFoundError"),
        ('Stage("odd", __name__, config_name="Options")', MODULE, "lacks odd_stage.Options, a pydantic model"),
        ('Stage("odd", __name__)', MODULE.replace("VERSION = 1", ""), "lacks odd_stage.VERSION"),
        ('Stage("odd", __name__)', MODULE.replace("def run", "def walk"), "lacks odd_stage.run"),
        (
            'Stage("odd", __name__, after="ingets")',
            MODULE,
            "after 'ingets', which is no stage; the stages are ingest, ",
        ),
        ('Stage("odd", __name__, ("graphs", "records"))', MODULE, "reads graphs, which no stage makes; the roles are "),
        ('Stage("odd", __name__)', MODULE + "1 / 0\n", "cannot be loaded: ZeroDivisionError"),
    ],
)
def test_a_stage_that_cannot_be_one_is_left_out_with_the_reason(distribution, expression, text, reason):
    distribution("odd_stage", {"odd": expression}, text)
    stages, unusable = with_extensions(BUILT_IN)
    assert stages == BUILT_IN and list(unusable) == ["odd"] and reason in unusable["odd"]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    return install(EXAMPLES / "filter_stage", tmp_path_factory.mktemp("filter_stage"))


def test_the_example_is_in_plan_schema_and_errors(example, tmp_path, workspace):
    def plan(override: str) -> list[str]:
        return ["plan", "demo", *workspace.overrides(override)]

    right, schema, wrong_key, wrong_stage = omniloom(
        example,
        [*plan("stages.filter_records={min_side: 16}"), "--json"],
        ["schema"],
        plan("stages.filter_records={min_sid: 16}"),
        plan("stages.filter_record={}"),
        cwd=tmp_path,
    )
    assert right.returncode == 0, right.stderr
    names = [stage["name"] for stage in json.loads(right.stdout)["stages"]]
    assert names[:3] == ["ingest", "filter_records", "tokenizer_image"]
    name = "filter_stage__Config" if "filter_stage__Config" in schema.stdout else "Config"
    fields = json.loads(schema.stdout)["$defs"][name]
    assert schema.returncode == 0 and "shorter side" in fields["properties"]["min_side"]["description"]
    assert wrong_key.returncode == wrong_stage.returncode == 2
    assert "stages.filter_records.min_sid: unknown key; did you mean 'min_side'?" in wrong_key.stderr
    assert "stages.filter_record: unknown key; did you mean 'filter_records'?" in wrong_stage.stderr


def test_the_example_leaves_out_what_it_is_told_to(example, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(example)
    import filter_stage

    rows = list(records.iterate(corpora.ingest(tmp_path / "squares", images=6, videos=0).uri))
    for number, row in enumerate(rows):
        row |= {"width": 10 + number, "captions": [row["caption"], "no good"]}
    records.write_shard(str(tmp_path / "ingest" / records.shard_name(0)), rows)
    corpus = corpora.seal(tmp_path / "ingest", "ingest")

    def run(**options) -> tuple[dict, list[dict]]:
        work = str(tmp_path / "work")
        config = filter_stage.Config(**options)
        context = StageContext(
            "filter_records", "0" * 64, config, {"records": corpus}, work, lambda *_: None, corpora.Silent()
        )
        return filter_stage.STAGE.run(context), list(records.iterate(context.output))

    metrics, left = run(min_side=12, drop_captions="^no ")
    assert [row["width"] for row in left] == [row["width"] for row in rows if row["width"] >= 12]
    assert metrics["left_out"] == 2 and metrics["records"] == metrics["records_image"] == len(rows) - 2
    assert all(row["captions"] == [row["caption"]] and row["caption"] != "no good" for row in left)
    assert metrics | records.counts(str(tmp_path / "work" / "output")) == metrics
    lines = storage.read_bytes(str(tmp_path / "work" / "output" / "left_out.jsonl")).decode().splitlines()
    assert [json.loads(line)["reason"].split("x")[0] for line in lines] == ["10", "11"]
    with pytest.raises(InputError, match="leaves none"):
        run(min_side=1000)


def test_a_stage_that_makes_records_has_to_count_them(distribution, tmp_path):
    distribution("silent_filter", {"silent": 'Stage("silent", __name__, ("records",), "records")'})
    stages, _ = with_extensions(BUILT_IN)
    silent = next(stage for stage in stages if stage.name == "silent")
    context = StageContext("silent", "0" * 64, None, {}, str(tmp_path), lambda *_: None, corpora.Silent())
    with pytest.raises(InputError, match="silent_filter.run makes records and returns no counts of them"):
        silent.run(context)
