"""Kinds of sources: each has its own options and no others, what makes one is what it was, and others add kinds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from distributions import install
from pydantic import ValidationError

from omniloom.models import extensions
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.annotations.manifests import parse, parse_row
from omniloom.stages.ingest.annotations.row_mapping import RowMapping
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files.listing import list_files
from omniloom.stages.ingest.kinds import SourceConfig, SourceKind
from omniloom.stages.ingest.kinds import table as kinds

OF_ALL = {"uri", "name", "include", "exclude", "follow_links", "encoding", "license", "synthetic", "hash"}
OF_ROWS = {
    *("text_field", "template", "image_field", "video_field", "conversations_field", "caption_field", "label_field"),
    *("group_field", "license_field", "media_root", "remote"),
}
OWN = {
    "image_folder": {"captions"},
    "video_folder": {"captions", "clip_seconds"},
    "text": set(),
    "jsonl": OF_ROWS,
    "interleaved": {"manifest", "group_field", "links", "media_root"},
    "parquet": OF_ROWS,
    "csv": OF_ROWS | {"columns"},
    "json": OF_ROWS | {"rows_field"},
    "hf_dataset": OF_ROWS | {"subset", "split"},
    "lance": OF_ROWS,
    "coco": {"annotations"},
    "obelics": {"media_root", "remote"},
    "mmc4": {"media_root", "remote"},
}
NEEDED = {kind: {"text_field": "t"} for kind in ("jsonl", "parquet", "csv", "json", "hf_dataset", "lance")}
WERE_ONE = ("image_folder", "video_folder", "text", "jsonl", "interleaved")
# What a source of each kind was when one class held the options of all.
FORMER = {
    "captions": None,
    "text_field": None,
    "template": None,
    "image_field": None,
    "video_field": None,
    "caption_field": None,
    "label_field": "label",
    "group_field": None,
    "manifest": None,
    "links": {},
    "name": None,
    "include": [],
    "exclude": [],
    "follow_links": False,
    "encoding": "utf-8",
    "license": None,
    "synthetic": False,
    "hash": "stat",
}


def source(kind: str, **options) -> SourceConfig:
    values = {"kind": kind, "uri": "/x", **NEEDED.get(kind, {}), **options}
    return Config.model_validate({"sources": [values]}).sources[0]


def refusals(kind: str, **options) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        source(kind, **options)
    return [(".".join(map(str, e["loc"][3:])), e["msg"].removeprefix("Value error, ")) for e in caught.value.errors()]


@pytest.mark.parametrize("kind", OWN)
def test_each_kind_takes_its_own_options_and_refuses_the_others(kind):
    assert set(kinds.KINDS[kind].Config.model_fields) == OF_ALL | OWN[kind] | {"kind"}
    for option in set().union(*OWN.values()) - OWN[kind]:
        assert refusals(kind, **{option: "x"}) == [(option, "Extra inputs are not permitted")]


@pytest.mark.parametrize(
    "kind, options, said",
    [
        ("jsonl", {"media_root": "/m"}, "media_root: goes with image_field or video_field"),
        ("jsonl", {"caption_field": "c"}, "caption_field: goes with image_field or video_field"),
        ("jsonl", {"label_field": "l"}, "label_field: goes with image_field or video_field"),
        ("jsonl", {"image_field": "i"}, "text_field and image_field exclude each other"),
        ("jsonl", {"text_field": None}, "kind jsonl needs one of text_field, template, image_field, video_field, con"),
        ("csv", {"conversations_field": "c"}, "text_field and conversations_field exclude each other"),
        ("interleaved", {"group_field": "g"}, "group_field: goes with manifest"),
        ("image_folder", {"captions": {"from": "folder", "file_field": "f"}}, "file_field: goes with manifest"),
        ("image_folder", {"captions": {"from": "sidecar", "meta_fields": ["m"]}}, "meta_fields: goes with manifest"),
        ("image_folder", {"captions": {"from": "sidecar", "template": "a {name}"}}, "template: goes with from: file"),
    ],
)
def test_options_without_a_use_are_refused(kind, options, said):
    ((_, message),) = refusals(kind, **options)
    assert message.startswith(said)


@pytest.mark.parametrize("kind", WERE_ONE)
def test_a_source_is_what_it_was_when_one_class_held_all_options(kind):
    assert canonical(source(kind)) == {**FORMER, "kind": kind, **NEEDED.get(kind, {})}


def test_an_option_that_is_set_is_part_of_what_a_source_is():
    captions = {"manifest": "m.jsonl", "group_field": "who"}
    assert canonical(source("image_folder", captions=captions))["captions"]["group_field"] == "who"
    assert canonical(source("interleaved", links={"a": "b"}))["links"] == {"a": "b"}


@pytest.mark.parametrize("kind", OWN)
def test_workers_get_the_same_config_by_json(kind):
    config = Config(sources=[source(kind, name="n", include="*.x", hash="content")])
    assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config


def test_every_option_of_ingest_is_described():
    schema = Config.model_json_schema()
    models = {"Config": schema, **schema["$defs"]}
    assert {f"{kinds.KINDS[kind].Config.__name__}" for kind in OWN} < set(models)
    options = {f"{model}.{name}": o for model, node in models.items() for name, o in node["properties"].items()}
    assert not [place for place, option in options.items() if not option.get("description")]


def test_what_sources_make_is_known_from_their_options():
    media = [source("jsonl", text_field=None, **{f"{kind}_field": "f"}) for kind in ("image", "video")]
    made = [(s, Config(sources=[s]).kinds) for s in [*map(source, WERE_ONE), *media]]
    assert [kind for _, (kind,) in made] == ["image", "video", "text", "text", "document", "image", "video"]
    talks = [source("json", text_field=None, conversations_field="c", **more) for more in ({}, {"image_field": "i"})]
    assert [Config(sources=[talk]).kinds for talk in talks] == [{"text"}, {"document"}]


def test_a_row_of_a_table_is_mapped_as_a_line_of_json_is(tmp_path):
    rows = [parse_row(b'{"q": "2+2", "a": "4", "g": "one"}'), parse(b"q,a,g\n2+2,4,one\n", "t.csv", "utf-8")[0][1]]
    config = source("jsonl", text_field=None, template="{q}={a}", group_field="g")
    mapping = RowMapping(kinds.open_source(config, 0))
    (first, _), (second, _) = (mapping.record(row, "any") for row in rows)
    assert first == second and (first["text"], first["group"]) == ("2+2=4", "one")
    with pytest.raises(MediaError, match="q: expected text or a number, got None"):
        mapping.record({"a": "4"}, "any")


# ---- kinds of other distributions ----

LINES = """
from typing import Literal
from omniloom.stages.ingest.kinds import SourceConfig, SourceKind

class LinesConfig(SourceConfig):
    kind: Literal["lines"]
    '''Each line is a text.'''

class Lines(SourceKind):
    Config, suffixes = LinesConfig, (".lines",)

    @classmethod
    def makes(cls, config):
        return "text"

    def read(self, item):
        from omniloom.stages.ingest import rows
        for part, line in enumerate(self.content(item["path"]).decode().splitlines(), 1):
            yield rows.text_row(line, part)

class Unfinished(SourceKind):
    Config, suffixes = LinesConfig, (".lines",)

class Plain(Lines):
    Config = SourceConfig

class NoSuffixes(Lines):
    suffixes = ()
"""


def distribution(folder: Path, name: str, **points: str) -> None:
    """Installs a distribution `name` of the module some_lines below `folder`."""
    project = folder / name
    project.mkdir()
    table = "".join(f'{kind} = "{value}"\n' for kind, value in points.items())
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "2.0"\n[project.entry-points."omniloom.sources"]\n{table}'
        '[tool.setuptools]\npy-modules = ["some_lines"]\n'
    )
    (project / "some_lines.py").write_text(LINES)
    install(project, folder / "site")


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Loads the kinds of the distributions that a test has made: (kinds, reasons why others cannot be used)."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield lambda: extensions.load(kinds.GROUP, list(OWN), kinds._problem)
    sys.modules.pop("some_lines", None)


def test_a_kind_from_outside_is_read_as_ours_are(tmp_path, offered, monkeypatch):
    distribution(tmp_path, "lines-source", lines="some_lines:Lines")
    loaded, unusable = offered()
    assert not unusable and issubclass(loaded["lines"], SourceKind)
    monkeypatch.setitem(kinds.KINDS, "lines", loaded["lines"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.lines").write_text("one\ntwo\n")
    (tmp_path / "data/b.txt").write_text("not of this kind")
    kind = kinds.open_source(loaded["lines"].Config(kind="lines", uri=str(tmp_path / "data")), 0)
    contents = sources._contents(kind)
    (item,) = kind.items(contents, None)
    assert [(row["text"], row["part"]) for row in kind.read(item)] == [("one", 1), ("two", 2)]


def test_the_source_of_the_documentation_works_as_typed(tmp_path, offered):
    text = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    project = tmp_path / "lines"
    project.mkdir()
    for name in ("lines_source.py", "pyproject.toml"):
        (block,) = re.findall(rf"```\w+\n(# {re.escape(name)}.*?)```", text.split("## Add a source")[1], re.DOTALL)
        (project / name).write_text(block)
    install(project, tmp_path / "site")
    loaded, unusable = offered()
    assert not unusable
    (tmp_path / "a.lines").write_text("a title\none\n\ntwo\n")
    kind = loaded["lines"](loaded["lines"].Config(kind="lines", uri=str(tmp_path / "a.lines"), skip=1), 0)
    item = kind.item(list_files(kind.root)[0])
    assert [(row["text"], row["part"]) for row in kind.read(item)] == [("one", 1), ("two", 3)]


@pytest.mark.parametrize(
    "value, reason",
    [
        ("nowhere:Kind", "nowhere:Kind cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("some_lines:LinesConfig", "is no subclass of omniloom.stages.ingest.kinds.SourceKind"),
        ("some_lines:Unfinished", "lacks makes, read"),
        ("some_lines:Plain", 'has a Config without the line `kind: Literal["lines"]`'),
        ("some_lines:NoSuffixes", "lacks suffixes"),
    ],
)
def test_a_kind_that_cannot_be_used_says_why_and_harms_no_other(tmp_path, offered, value, reason):
    distribution(tmp_path, "broken", lines=value)
    loaded, unusable = offered()
    assert not loaded and set(unusable) == {"lines"}
    assert unusable["lines"].startswith("offered by broken 2.0, ") and reason in unusable["lines"]


def test_a_name_that_two_offer_is_of_no_use(tmp_path, offered):
    distribution(tmp_path, "first", lines="some_lines:Lines", text="some_lines:Lines")
    distribution(tmp_path, "second", lines="some_lines:Lines")
    loaded, unusable = offered()
    assert not loaded
    assert unusable == {
        "lines": "offered by first 2.0 and second 2.0; uninstall all but one",
        "text": "offered by first 2.0 and by omniloom itself; uninstall all but one",
    }


def test_a_source_without_a_kind_is_told_which_there_are():
    with pytest.raises(ValidationError, match="kind: is missing; the kinds are image_folder, video_folder, "):
        Config.model_validate({"sources": [{"uri": "/x"}]})


def test_a_config_that_asks_for_an_unusable_kind_is_told_why(monkeypatch):
    monkeypatch.setitem(kinds.UNUSABLE, "lines", "offered by broken 2.0, x:Y cannot be loaded")
    assert refusals("lines") == [("", "kind: lines cannot be used; it is offered by broken 2.0, x:Y cannot be loaded")]
    assert json.loads(source("text").model_dump_json())["kind"] == "text"
