"""Files that a config names and that no stage makes: known by what they hold, wherever and however they are named."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.text import TextTokenizer
from omniloom.pipelines.config import PipelineConfig, load, raw, validate
from omniloom.pipelines.fingerprint import canonical, fingerprint
from omniloom.pipelines.outside import digests, outside_contents, unreadable
from omniloom.pipelines.paths import with_absolute_paths
from omniloom.pipelines.plan import make_plan

PATHS = {
    "stages.pretokenize.text_tokenizer": "weights/tokenizer.json",
    "stages.pretokenize.features": "vision",
    "stages.train.init_from": "weights",
    "stages.objective_study.training.init_from": "weights",
    "stages.tokenizer_image.model.encoder": "vision",
    "stages.tokenizer_joint.perceptual.vgg": "vgg.pth",
    "stages.tokenizer_joint.perceptual.heads": "heads.pth",
    "stages.tokenizer_kl.official": "official.ckpt",
    "stages.evaluate.features.inception": "inception.safetensors",
    "stages.evaluate.features.dinov2": "vision",
    "stages.evaluate.features.clip": "vision",
    "stages.evaluate.features.i3d": "i3d.pt",
    "stages.evaluate.features.lpips.vgg": "vgg.pth",
    "stages.evaluate.features.lpips.heads": "heads.pth",
}
PIPELINE = """
name: mine
storage: runs
stages:
  ingest: {sources: [{kind: text, uri: texts}]}
  tokenizer_image: {model: {architecture: rae, encoder: none}, data: {sizes: [32]}}
  tokenizer_joint: {perceptual: {vgg: none}, loss: {perceptual_weight: 1}, data: {sizes: [32]}}
  tokenizer_kl: {official: none, data: {sizes: [32]}}
  objective_study: {training: {}, objectives: {a: next_code}}
"""
TOKENIZER = "stages.pretokenize.text_tokenizer=weights/tokenizer.json"


def overrides(spell=lambda path: path) -> list[str]:
    return [f"{field}={spell(path)}" for field, path in PATHS.items()]


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder with every file that `PATHS` names, as the current one."""
    folder = tmp_path / "here"
    for name in ("weights/config.json", "weights/model.safetensors", "vision/config.json", "vision/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"of": name}))
    for name in ("vgg.pth", "heads.pth", "official.ckpt", "inception.safetensors", "i3d.pt"):
        (folder / name).write_bytes(b"weights of " + name.encode())
    (tmp_path / "mine.yaml").write_text(PIPELINE)
    (folder / "weights/tokenizer.json").write_text(TextTokenizer.train(["some text"], 262).to_json())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def identities(files, tmp_path):
    """Of overrides, by stage a fingerprint that knows its config alone."""

    def identities(given: list[str]) -> dict[str, str]:
        return _identities(load(str(tmp_path / "mine.yaml"), given).stages)

    return identities


def _identities(stages) -> dict[str, str]:
    known = {}
    return {
        name: fingerprint(name, 1, config, {}, None, digests(outside_contents(config, known)))
        for name in stages.configured()
        if (config := getattr(stages, name))
    }


SPELLINGS = {
    "absolute": lambda path: f"{Path.cwd()}/{path}",
    "by a detour": lambda path: f"./vision/../{path}",
    "as a URI": lambda path: f"file://{Path.cwd()}/{path}",
    "with a slash behind": lambda path: f"{path}/" if Path(path).is_dir() else path,
    "from home": lambda path: f"~/{path}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_path_is_the_same(files, identities, spelling):
    assert identities(overrides(SPELLINGS[spelling])) == identities(overrides())


def test_a_copy_in_another_place_is_the_same(files, identities, tmp_path, monkeypatch, s3):
    import fsspec

    base = identities(overrides())
    shutil.copytree(files, tmp_path / "copy")
    assert identities(overrides(lambda path: f"{tmp_path}/copy/{path}")) == base
    fs, folder = fsspec.core.url_to_fs(s3)
    fs.put(str(files), f"{folder}/copy", recursive=True)
    assert identities(overrides(lambda path: f"{s3}/copy/{path}")) == base
    monkeypatch.chdir("/")
    assert identities(overrides(lambda path: f"{files}/{path}")) == base


def test_a_file_that_changes_in_place_is_another(files, identities):
    base = identities(overrides())
    for name in ("weights/tokenizer.json", "weights/model.safetensors", "vision/config.json", "vgg.pth", "heads.pth"):
        before, times = (files / name).read_bytes(), (files / name).stat()
        (files / name).write_bytes(before[:-1] + b"!")
        os.utime(files / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # the content counts, not the time
        now = identities(overrides())
        named = {field.split(".")[1] for field, path in PATHS.items() if name.startswith(path)}
        assert {stage for stage in base if now[stage] != base[stage]} >= named, name
        (files / name).write_bytes(before)
    assert identities(overrides()) == base


def test_only_what_is_read_counts(files, identities):
    base = identities(overrides())
    (files / "weights/README.md").write_text("about it")
    (files / "weights/original").mkdir()
    (files / "weights/original/params.json").write_text("{}")
    assert identities(overrides()) == base
    (files / "vision/preprocessor_config.json").write_text("{}")
    changed = identities(overrides())
    assert {stage for stage in base if changed[stage] != base[stage]} == {"tokenizer_image", "pretokenize", "evaluate"}


def test_what_is_read_beside_a_file_counts(files, identities):
    base = identities([*overrides(), TOKENIZER])
    (files / "weights/tokenizer_config.json").write_text("{}")
    assert identities([*overrides(), TOKENIZER])["pretokenize"] != base["pretokenize"]


@pytest.mark.parametrize("field", PATHS)
def test_a_path_that_is_not_there_is_refused(files, tmp_path, field):
    stage, name = field.split(".")[1], field.split(".", 2)[2]
    config = getattr(load(str(tmp_path / "mine.yaml"), [*overrides(), f"{field}=none"]).stages, stage)
    (error,) = unreadable(outside_contents(config, {}))
    assert error.message == f"no such file or folder: {files}/none" and error.field == name and error.exit_code == 2


def test_a_folder_is_no_file(workspace, files):
    (files / "empty").mkdir()
    for override, message in (
        ("text_tokenizer=weights", f"is a folder, expected a file: {files}/weights"),
        ("features=vgg.pth", f"is a file, expected a folder: {files}/vgg.pth"),
        ("features=empty", f"the folder holds no file named *.json or *.safetensors: {files}/empty"),
    ):
        config = workspace.config(f"stages.pretokenize.{override}").stages.pretokenize
        assert [error.message for error in unreadable(outside_contents(config, {}))] == [message]


def test_plan_refuses_what_is_not_there(workspace, files):
    for override in ("pretokenize.text_tokenizer=none.json", "tokenizer_joint.official=none.ckpt"):
        with pytest.raises(InputError, match="(?i)no such file") as caught:
            workspace.plan(f"stages.{override}")
        assert caught.value.field == f"stages.{override.partition('=')[0]}"
        assert caught.value.file.endswith("demo.yaml") and "(from an override)" in caught.value.message


def test_plan_names_the_file_that_changed(workspace, files):
    workspace.publish(overrides=(TOKENIZER,))
    assert workspace.plan(TOKENIZER).to_execute == []
    file = files / "weights/tokenizer.json"
    file.write_text(TextTokenizer.train(["some other text, longer"], 270).to_json())
    plan = workspace.plan(TOKENIZER)
    assert [planned.name for planned in plan.to_execute] == ["pretokenize", "train", "evaluate"]
    assert plan["pretokenize"].reason == f"file changed: stages.pretokenize.text_tokenizer ({file})"
    shutil.copytree(files / "weights", files / "new")
    moved = workspace.plan(TOKENIZER.replace("weights", "new"))["pretokenize"].reason
    assert moved.endswith(f"text_tokenizer ({files}/new/tokenizer.json), before {file}")


def test_reasons_name_the_paths(workspace, files):
    workspace.publish()
    place = f"{files}/weights/tokenizer.json"
    assert workspace.plan(TOKENIZER)["pretokenize"].reason == f"config: text_tokenizer null -> {place}"
    workspace.publish(overrides=(TOKENIZER,))
    assert workspace.plan("stages.pretokenize.frames=5")["pretokenize"].reason == (
        f"config: frames 9 -> 5, text_tokenizer {place} -> null"
    )


def test_an_artifact_from_before_paths_were_known_by_content_says_so(workspace, files):
    workspace.publish(overrides=(TOKENIZER,))
    record = workspace.storage / "pipelines/demo/pretokenize.json"
    known = storage.read_json(str(record))
    known["manifest"]["config"]["text_tokenizer"] = "weights/tokenizer.json"
    del known["manifest"]["outside"]
    storage.write_json(str(record), known)
    storage.remove(workspace.artifact("pretokenize", TOKENIZER).uri)
    assert workspace.plan(TOKENIZER)["pretokenize"].reason == (
        f"now known by what it holds: stages.pretokenize.text_tokenizer ({files}/weights/tokenizer.json)"
    )


def test_a_pinned_stage_needs_its_outside_files_no_more(workspace, files):
    workspace.publish(overrides=(TOKENIZER,))
    pin = f"pins.pretokenize={workspace.artifact('pretokenize', TOKENIZER).fingerprint}"
    (files / "weights/tokenizer.json").unlink()
    planned = workspace.plan(TOKENIZER, pin)["pretokenize"]
    assert planned.status == "cached" and planned.drift
    place = f"{files}/weights/tokenizer.json"
    assert planned.reason == f"pinned; drift: no file there: stages.pretokenize.text_tokenizer ({place})"


# ---- where paths are made absolute ----


def test_paths_are_absolute_once_the_config_is_read(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(
        "mine.yaml",
        [
            *overrides(),
            "storage=runs",
            "tracking.uri=sqlite:///ml.db",
            "tracking.artifact_root=files",
            "cluster.temp_dir=t",
            "stages.ingest.sources=[{kind: text, uri: a/}, {kind: interleaved, uri: s3://b/c, media_root: m}]",
        ],
    )
    assert config.storage == f"{tmp_path}/runs" and config.tracking.uri == f"sqlite:///{tmp_path}/ml.db"
    assert config.tracking.artifact_root == f"{tmp_path}/files" and config.cluster.temp_dir == f"{tmp_path}/t"
    first, second = config.stages.ingest.sources
    assert (first.uri, second.uri, second.media_root) == (f"{tmp_path}/a", "s3://b/c", f"{tmp_path}/m")
    for field, path in PATHS.items():
        value = config
        for name in field.split("."):
            value = getattr(value, name)
        assert value == f"{tmp_path}/{path}", field


@pytest.mark.parametrize(
    "uri", ["databricks", "http://host:5000", "postgresql://host/db", "sqlite:////data/ml.db", "sqlite:///:memory:"]
)
def test_a_store_that_is_no_file_stays_as_it_is(uri):
    if uri.endswith(":memory:"):
        with pytest.raises(InputError, match="tracking.uri"):
            load("demo", [f"tracking.uri={uri}"])
        return
    assert load("demo", [f"tracking.uri={uri}"]).tracking.uri == uri


def test_the_demo_keeps_its_built_in_sources():
    assert [source.uri for source in load("demo").stages.ingest.sources] == [
        "digits://images",
        "digits://videos",
        "digits://text",
    ]


def test_what_submit_ships_has_the_fingerprints_of_run(workspace, files, monkeypatch, tmp_path):
    given = workspace.overrides("stages.ingest.sources.0.uri=texts", TOKENIZER)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw("demo", given)))
    shutil.copytree(workspace.corpus, files / "texts")
    here = [planned.fingerprint for planned in make_plan(load(str(file))).stages]
    shipped = with_absolute_paths(raw(str(file)), validate(raw(str(file)), str(file)))
    file.write_text(yaml.safe_dump(shipped))
    monkeypatch.chdir("/")
    assert [planned.fingerprint for planned in make_plan(load(str(file))).stages] == here


MANIFESTS = {
    "pics/all.jsonl": ["all.jsonl", "./all.jsonl", "{here}/pics/all.jsonl", "file://{here}/pics/all.jsonl"],
    "all.jsonl": ["../all.jsonl", "{here}/all.jsonl", "~/all.jsonl", "{here}/moved/all.jsonl"],
    "pics/sub/all.jsonl": ["sub/all.jsonl", "~/pics/sub/all.jsonl"],
}


def test_every_spelling_of_a_manifest_is_the_same(files):
    def source(spelled: str, kind: str):
        manifest = f"manifest: '{spelled.format(here=files)}'"
        named = manifest if kind == "interleaved" else f"captions: {{{manifest}}}"
        (found,) = load("demo", [f"stages.ingest.sources=[{{kind: {kind}, uri: pics, {named}}}]"]).stages.ingest.sources
        return canonical(found)

    for kind in ("image_folder", "interleaved"):
        known = [[source(spelled, kind) for spelled in spellings] for spellings in MANIFESTS.values()]
        for same in known:
            assert same == [same[0]] * len(same)
        assert len({str(same[0]) for same in known}) == len(MANIFESTS)
    assert source("all.jsonl", "interleaved")["manifest"] == "all.jsonl"  # as it always was
    assert source("../all.jsonl", "interleaved")["manifest"] == "../all.jsonl"


# Text fields whose name or description sounds like a path and that are none: names, relations within a source.
NO_PATHS = re.compile(
    r"(captions\.|sources\.)?"
    r"(file_field|image_field|video_field|rows_field|url_field|include|exclude|from|template|links|encoding)$"
    r"|steps\.function$"
)
SOUNDS_LIKE_A_PATH = re.compile(
    r"\b(ur[il]s?|paths?|folders?|files?|root|dir|checkpoint|weights|safetensors|\.json|\.pth)\b|_(dir|root|path|uri|file)$"
)


def text_fields(schema: dict, node: dict, path: tuple[str, ...] = (), seen: tuple[str, ...] = ()):
    """(dotted path, its node) of every field of the schema that may be a text."""
    if reference := node.get("$ref"):
        if reference not in seen:
            yield from text_fields(schema, schema["$defs"][reference.rsplit("/", 1)[-1]], path, (*seen, reference))
        return
    for choice in [*node.get("anyOf", []), *node.get("oneOf", [])]:
        yield from text_fields(
            schema, {**choice, **{k: node[k] for k in ("description", "path") if k in node}}, path, seen
        )
    for name, inner in node.get("properties", {}).items():
        yield from text_fields(schema, inner, (*path, name), seen)
    for inner in (node.get("items"), node.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from text_fields(schema, inner, path, seen)
    if node.get("type") == "string" and not {"enum", "const"} & node.keys():
        yield ".".join(path), node


def test_every_field_that_sounds_like_a_path_is_marked():
    schema = PipelineConfig.model_json_schema()
    found = dict(text_fields(schema, schema))
    assert "stages.train.init_from" in found and len(found) > 20
    dataclass_marks = {"encoder"}  # a dataclass field's mark is no part of the JSON Schema
    unmarked = [
        field
        for field, node in found.items()
        if SOUNDS_LIKE_A_PATH.search(f"{field.rsplit('.', 1)[-1]} {node.get('description', '')}")
        and "path" not in node
        and field.rsplit(".", 1)[-1] not in dataclass_marks
        and not NO_PATHS.search(field)
    ]
    assert not unmarked


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    detours=st.lists(st.sampled_from([".", "weights/..", "vision/../weights/.."]), max_size=3),
    absolute=st.booleans(),
    scheme=st.booleans(),
    slash=st.booleans(),
)
def test_spelling_is_never_identity(files, detours, absolute, scheme, slash):
    prefix = f"{'file://' if scheme else ''}{files}/" if absolute else ""
    path = prefix + "/".join([*detours, "weights"]) + "/" * slash

    def config(spelled: str):
        return validate(
            {**BASE, "stages": {**BASE["stages"], "train": {**BASE["stages"]["train"], "init_from": spelled}}}, "demo"
        ).stages.train

    found = config(path)
    assert found.init_from == str(files / "weights")
    assert canonical(found) == canonical(config("weights")) and str(files) not in str(canonical(found))
    assert outside_contents(found, {}) == outside_contents(config("weights"), {})


BASE = raw("demo", ["stages.pretokenize.text_tokenizer=/any.json"])
