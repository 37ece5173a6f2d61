"""Configs: what is wrong is told with the file and the field, and with the line where the file has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.config import TiTokConfig
from omniloom.models.tokenizer.quantizers.config import VQConfig
from omniloom.models.unified.config import UnifiedConfig
from omniloom.pipelines import yaml_dialect
from omniloom.pipelines.checks import check_stages
from omniloom.pipelines.config import PRESETS, PipelineConfig, find, load
from omniloom.stages.tokenizer.config import NamedRAEConfig
from omniloom.stages.train.config import TrainConfig

PIPELINE = """\
name: mine
storage: runs/mine
data: /corpus
seed: 3

tracking: {experiment: mine}

stages:
  ingest:
    sources:
      - {kind: image_folder, uri: "${data}/images", captions: {manifest: manifest.jsonl}}
      - {kind: text, uri: "${data}/text"}
    splits: {train: 0.8, validation: 0.1, test: 0.1}
    shard_items: 600
  tokenizer_image:
    model:
      width: 32
      heads: 4
      quantizer: {kind: vq, codebook_size: 64}
    data: {kinds: [image], sizes: [32], image_batch: 8}
    seed: ${seed}
  tokenizer_joint:
    data: {image_ratio: 0.5}
  pretokenize: {}
  train:
    diffusion: {predict: v}
    batch_rows: 16
    seed: ${seed}
    workers: {count: 2}
  evaluate:
    seed: 1
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(PIPELINE)
    return path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def line_of(file: Path, text: str) -> int:
    return next(number for number, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def checked(file: Path | str, *overrides: str, files: bool = True) -> PipelineConfig:
    config = load(str(file), overrides)
    check_stages(config, files=files)
    return config


def failure(file, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load(str(file), overrides)
    return caught.value


def test_a_preset_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("demo")
    assert config == load("demo.yaml") == load("pipelines/presets/demo.yaml") == load(str(PRESETS / "demo.yaml"))
    assert config.storage == str(tmp_path / "runs/demo")
    assert config.stages.train.seed == config.seed


@pytest.mark.parametrize("preset", sorted(path.name for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid(preset, tmp_path):
    load(preset, [f"data={tmp_path}"])


def test_overrides(file):
    config = load(
        str(file),
        [
            "seed=7",
            "stages.train.optimizer.lr=3e-4",
            "stages.ingest.sources.1.uri=/texts",
            "stages.evaluate.gate={bits_per_byte: {max: 2}}",
            "stages.tokenizer_image.data.sizes=[16, 32]",
            "cluster.env.A=b=c",
            "storage=s3://bucket/run/",
            "tracking.register_as=",
        ],
    )
    assert config.seed == config.stages.train.seed == 7
    assert config.stages.train.optimizer.lr == 3e-4
    assert config.stages.ingest.sources[1].uri == "/texts"
    assert config.stages.evaluate.gate.bounds["bits_per_byte"].max == 2
    assert config.stages.tokenizer_image.data.sizes == (16, 32)
    assert config.cluster.env == {"A": "b=c"}
    assert config.storage == "s3://bucket/run"
    assert config.tracking.register_as is None


@pytest.mark.parametrize(
    "old, new, field, suggestion",
    [
        ("batch_rows:", "batchrows:", "stages.train.batchrows", "did you mean 'batch_rows'?"),
        ("shard_items:", "shard_item:", "stages.ingest.shard_item", "did you mean 'shard_items'?"),
        (
            "codebook_size:",
            "codebooksize:",
            "stages.tokenizer_image.model.quantizer.codebooksize",
            "did you mean 'codebook_size'?",
        ),
        (
            "captions: {manifest:",
            "captions: {manifesto:",
            "stages.ingest.sources.0.captions.manifesto",
            "did you mean 'manifest'?",
        ),
        ("evaluate:", "evalute:", "stages.evalute", "did you mean 'evaluate'?"),
        ("tracking:", "zzz:", "zzz", "known keys: name, storage, "),
    ],
)
def test_unknown_key(file, old, new, field, suggestion):
    change(file, old, new)
    error = failure(file)
    assert (error.file, error.field) == (str(file), field)
    assert "unknown key" in error.message and suggestion in error.message
    assert f"(line {line_of(file, new)})" in error.message


@pytest.mark.parametrize(
    "old, new, field, expected",
    [
        ("shard_items: 600", "shard_items: many", "stages.ingest.shard_items", "valid integer"),
        ("shard_items: 600", "shard_items: 0", "stages.ingest.shard_items", "greater than or equal to 1"),
        ("shard_items: 600", "shard_items: 1.5", "stages.ingest.shard_items", "valid integer"),
        ("kind: text", "kind: texts", "stages.ingest.sources.1.kind", "'text'"),
        ("name: mine", "name: [mine]", "name", "valid string"),
        ("name: mine", "name: ../mine", "name", "pattern"),
        ("batch_rows: ", "batch_rows: -", "stages.train.batch_rows", "greater than or equal to 1"),
        ("image_ratio: ", "image_ratio: 9", "stages.tokenizer_joint.data.image_ratio", "less than or equal to 1"),
        ("predict: v", "predict: w", "stages.train.diffusion.predict", "'x', 'noise' or 'v'"),
        ("heads: 4\n", "heads: four\n", "stages.tokenizer_image.model.heads", "valid integer"),
        ("splits: {train: 0.8", "splits: {train: 0.9", "stages.ingest.splits", "= 1, got 1.1"),
        ("batch_rows: 16", "batch_rows: 15", "stages.train.batch_rows", "workers.count"),
    ],
)
def test_wrong_type_or_value(file, old, new, field, expected):
    change(file, old, new)
    error = failure(file)
    assert (error.file, error.field) == (str(file), field)
    assert expected in error.message and "(line " in error.message
    assert str(error).startswith(f"{file}: {field}: ")


TITOK = "width: 32\n      architecture: titok\n      image_size: 32\n"


@pytest.mark.parametrize(
    "old, new, field, expected",
    [
        ("heads: 4\n", "temporal_layers: 4\n", "temporal_layers", "unknown key; did you mean 'encoder_layers'?"),
        ("heads: 4\n", "num_latent: 4\n", "num_latent", "unknown key; did you mean 'num_latents'?"),
        ("heads: 4\n", "heads: four\n", "heads", "valid integer"),
        ("heads: 4\n", "num_latents: 4.5\n", "num_latents", "valid integer"),
        ("codebook_size:", "codebooksize:", "quantizer.codebooksize", "unknown key; did you mean 'codebook_size'?"),
        ("kind: vq", "kind: vqq", "quantizer.kind", "'vq'"),
        ("image_size: 32", "image_size: large", "image_size", "valid integer"),
        ("image_size: 32", "image_size: [32, 32, 3]", "image_size", "at most 2 items"),
        ("titok", "tiktok", "architecture", "expected one of 'omni', 'titok', 'rae'"),
        ("titok", "[titok]", "architecture", "expected one of 'omni', 'titok', 'rae'"),
    ],
)
def test_a_mistake_in_a_model_names_the_key_of_its_own_architecture(file, old, new, field, expected):
    change(file, "width: 32\n", TITOK)
    assert load(str(file)).stages.tokenizer_image.model == TiTokConfig(
        width=32, heads=4, image_size=32, quantizer=VQConfig(codebook_size=64)
    )
    change(file, old, new)
    error = failure(file)
    assert (error.file, error.field) == (str(file), f"stages.tokenizer_image.model.{field}")
    assert expected in error.message and f"(line {line_of(file, new.strip())})" in error.message


RAE = "width: 32\n      architecture: rae\n      encoder: s3://models/siglip\n"


@pytest.mark.parametrize(
    "old, new, field, expected",
    [
        ("heads: 4\n", "decoder_layer: 4\n", "decoder_layer", "unknown key; did you mean 'decoder_layers'?"),
        ("encoder: s3://models/siglip", "encoder: 3", "encoder", "valid string"),
        ("heads: 4\n", "heads: four\n", "heads", "valid integer"),
    ],
)
def test_a_mistake_in_an_rae(file, old, new, field, expected):
    change(file, "width: 32\n", RAE)
    text = file.read_text()
    start = text.index("      quantizer:")
    file.write_text(text[:start] + text[text.index("\n", start) + 1 :])
    assert load(str(file)).stages.tokenizer_image.model == NamedRAEConfig("s3://models/siglip", width=32, heads=4)
    change(file, old, new)
    error = failure(file)
    assert (error.file, error.field) == (str(file), f"stages.tokenizer_image.model.{field}")
    assert expected in error.message


def test_keys_of_a_titok_are_unknown_to_the_default_model(file):
    change(file, "heads: 4\n", "num_latents: 4\n")
    error = failure(file)
    assert error.field == "stages.tokenizer_image.model.num_latents"
    assert "unknown key" in error.message and "encoder_layers" not in error.message


def test_a_titok_and_its_data_must_fit(file):
    change(file, "width: 32\n", TITOK)
    assert load(str(file), ["stages.tokenizer_image.model.image_size=[32, 32]"])
    for field, value, expected in (
        ("data.sizes", "[48]", "makes pictures of 48x48"),
        ("data.kinds", "[image, video]", "for images alone"),
    ):
        error = failure(file, f"stages.tokenizer_image.{field}={value}")
        assert error.field == f"stages.tokenizer_image.{field}" and expected in error.message


def test_missing_field(file):
    change(file, "storage: runs/mine\n", "")
    error = failure(file)
    assert (error.file, error.field, error.message) == (str(file), "storage", "is missing")


def test_a_language_model_needs_no_visual_tokenizer(file):
    alone = ["stages.tokenizer_image=null", "stages.tokenizer_joint=null"]
    config = load(str(file), [*alone, "stages.train.objectives={}"])
    assert config.stages.train.trained == () and config.stages.configured() == [
        "ingest",
        "pretokenize",
        "train",
        "evaluate",
    ]
    with pytest.raises(InputError, match="latent_diffusion needs a visual tokenizer") as caught:
        checked(file, *alone)
    assert caught.value.field == "stages.train.objectives"


def test_several_mistakes_are_told_at_once(file):
    change(file, "shard_items: 600", "shard_items: 0")
    change(file, "batch_rows:", "batchrows:")
    text = str(failure(file))
    assert "stages.ingest.shard_items" in text and "stages.train.batchrows" in text


def test_a_wrong_override_is_not_blamed_on_a_line(file):
    for override, field in (
        ("stages.train.steps=abc", "stages.train.steps"),
        ("stages.train=3", "stages.train"),
        ("storage=", "storage"),
        ("stages.ingest.sources=[]", "stages.ingest.sources"),
        ("stages.train.stps=3", "stages.train.stps"),
    ):
        error = failure(file, override)
        assert (error.file, error.field) == (str(file), field)
        assert "(from an override)" in error.message and "(line" not in error.message


@pytest.mark.parametrize(
    "override, field",
    [
        ("seed", "seed"),
        ("=3", "=3"),
        ("", None),
        ("seed=[", "seed"),
        ("seed={a: b: c}", "seed"),
        ("stages.ingest.sources.9.uri=x", "stages.ingest.sources.9.uri"),
        ("stages.ingest.sources.first.uri=x", "stages.ingest.sources.first.uri"),
        ("seed=${nope}", "seed"),
        ("seed=${oc.env:OMNILOOM_NOT_SET}", "seed"),
        ("seed=${", "seed"),
        ("seed=!!python/object:os.system {}", "seed"),
        ("seed=???", "seed"),
    ],
)
def test_bad_override(file, override, field):
    error = failure(file, override)
    assert error.file == str(file) and (error.field or None) == field
    assert "full_key" not in error.message and "\n" not in error.message


def test_a_value_that_must_be_given(file):
    change(file, "data: /corpus", "data: ???")
    error = failure(file)
    assert (error.file, error.field) == (str(file), "data")
    assert "needs a value" in error.message and "data=" in error.message
    assert load(str(file), ["data=/pictures"]).stages.ingest.sources[0].uri == "/pictures/images"


def test_interpolation_that_does_not_resolve(file):
    change(file, "seed: ${seed}", "seed: ${sed}")
    error = failure(file)
    assert (error.file, error.field) == (str(file), "stages.tokenizer_image.seed") and "'sed'" in error.message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("- a\n- b\n", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("a: [1, 2", "is not readable YAML"),
        ("a: 1\na: 2\n", "is not readable YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not readable YAML"),
        ("\x00", "is not readable YAML"),
        ("", "is missing"),
    ],
)
def test_unreadable_files(tmp_path, text, expected):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    error = failure(file)
    assert error.file == str(file) and expected in error.message and not os.path.exists(tmp_path / "ls")


def test_not_utf8(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    assert "is not readable YAML" in failure(tmp_path / "bad.yaml").message


def test_missing_file(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path, "no-such-preset"):
        error = failure(path)
        assert error.file == str(path) and "no such config file" in error.message and "demo" in error.message
    assert find("demo") == PRESETS / "demo.yaml"


def test_the_schema_covers_the_file():
    properties = PipelineConfig.model_json_schema()["properties"]
    assert set(yaml.safe_load(PIPELINE)) <= set(properties)


def test_configs_import_without_what_only_stages_need():
    code = (
        "import sys; import omniloom.pipelines.config, omniloom.pipelines.plan; omniloom.pipelines.config.load('demo');"
        "print(sorted({'torch', 'ray', 'mlflow', 'deepspeed', 'pandas', 'sklearn', 'av', 'PIL'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_override_with_an_empty_mapping_empties(file: Path) -> None:
    chosen = ["stages.train.objectives={next_code: 1}"]
    both = load(str(file), [*chosen, "stages.train.objectives={masked_code: 1}"])
    assert both.stages.train.trained == ("next_code", "masked_code")
    assert load(str(file), [*chosen, "stages.train.objectives={}"]).stages.train.trained == ()


def test_raw_pixels_are_asked_for_where_they_are_trained_on(file: Path) -> None:
    raw_pixels = "pixel_diffusion cannot be trained: .* no raw pixels; set stages.pretokenize.pixel_patch"
    with pytest.raises(InputError, match=f"stages.train.objectives: {raw_pixels}"):
        checked(file, "stages.train.objectives={pixel_diffusion: 1}")
    config = load(str(file), ["stages.train.objectives={pixel_diffusion: 1}", "stages.pretokenize.pixel_patch=8"])
    assert config.stages.train.trained == ("pixel_diffusion",)
    with pytest.raises(InputError, match=f"stages.objective_study.objectives.pixel_diffusion: {raw_pixels}"):
        checked(file, "stages.objective_study.training.steps=5")
    study = checked(file, "stages.objective_study={training: {}, objectives: {codes: next_code}}")
    assert "objective_study" in study.stages.configured()


def test_features_are_asked_for_where_hidden_states_are_aligned(file: Path) -> None:
    with pytest.raises(InputError, match="stages.train.alignment: needs .* set stages.pretokenize.features to its"):
        checked(file, "stages.train.alignment={}")
    with pytest.raises(InputError, match="objective_study.training.alignment: needs a frozen encoder's features"):
        checked(file, "stages.objective_study={training: {alignment: {}}, objectives: {latents: latent_diffusion}}")
    config = checked(file, "stages.train.alignment={layer: 1}", "stages.pretokenize.features=/encoder", files=False)
    assert (config.stages.train.alignment.layer, config.stages.train.alignment.weight) == (1, 0.5)


def with_source(file: Path) -> None:
    change(file, '{kind: text, uri: "${data}/text"}', "{kind: jsonl, uri: /x, text_field: t}")


@pytest.mark.parametrize(
    "text",
    [
        "/data/set #2",
        "2024",
        "no",
        "1.10",
        "2026-11-27",
        "&x",
        "a: b",
        "[x",
        "1e3",
        "{",
        "*",
        "0x1F",
        "true",
        "C:\\new\\table",
        "%20",
        "!x",
        "a, b",
    ],
)
def test_an_override_of_a_text_is_taken_as_it_is_written(file, text):
    config = load(str(file), [f"data={text}", f"cluster.env.A={text}", f"stages.ingest.sources.0.name={text}"])
    assert config.data == config.cluster.env["A"] == config.stages.ingest.sources[0].name == text


def test_an_override_in_quotes_is_yaml_and_null_is_none(file):
    with_source(file)
    config = load(str(file), ["data='1.10'", r'stages.ingest.sources.1.text_field="a\tb"', "tracking.register_as=null"])
    assert (config.data, config.stages.ingest.sources[1].text_field) == ("1.10", "a\tb")
    assert config.tracking.register_as is None
    assert load(str(file), ["data=${name}/x"]).data == "mine/x"


@pytest.mark.parametrize("text, steps", [("1e3", 1000), ("010", 10), ("1000", 1000), ("0x10", 16)])
def test_numbers_are_the_same_in_the_file_and_in_an_override(file, text, steps):
    assert load(str(file), [f"stages.train.steps={text}"]).stages.train.steps == steps
    change(file, "batch_rows: 16", f"batch_rows: 16\n    steps: {text}")
    assert load(str(file)).stages.train.steps == steps


@pytest.mark.parametrize("text", ["1:30", "true", "yes", "2026-11-27"])
def test_what_is_no_number_is_refused_in_the_file_and_in_an_override(file, text):
    error = failure(file, f"stages.train.steps={text}")
    assert error.field == "stages.train.steps"
    change(file, "batch_rows: 16", f"batch_rows: 16\n    steps: {text}")
    assert failure(file).field == "stages.train.steps"


def test_keys_are_text_and_stand_once(file):
    change(file, "evaluate:\n", "evaluate:\n    ~: 2\n")
    assert failure(file).field == "stages.evaluate.~"
    file.write_text(PIPELINE + "    seed: 2\n")
    error = failure(file)
    assert "'seed' is there twice" in error.message and f"line {len(PIPELINE.splitlines()) + 1}" in error.message


def test_messages_use_the_words_of_yaml(file):
    assert "a list, such as [32]" in failure(file, "stages.tokenizer_image.data.sizes=32").message
    assert "expected a mapping" in failure(file, "stages.ingest.splits=0.8").message
    assert "did you mean 'stages.train.steps'?" in failure(file, "train.steps=3").message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_dumped_for_a_job_is_read_back(values):
    assert yaml_dialect.load(yaml_dialect.dump(values)) == values


def test_a_stage_that_is_null_is_left_out_and_so_is_one_that_is_not_written_down(file):
    def stages(*overrides: str) -> list[str]:
        return load(str(file), overrides).stages.configured()

    whole = ["ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate"]
    assert stages() == whole
    assert stages("stages.evaluate=null") == whole[:5]
    assert stages("stages.tokenizer_joint=null") == ["ingest", "tokenizer_image", *whole[3:]]
    error = failure(file, "stages.pretokenize=null")
    assert (error.file, error.field) == (str(file), "stages.train")
    assert "reads tokens, which no configured stage before it makes; configure stages.pretokenize" in error.message
    assert stages("stages.pretokenize=null", "stages.train=null", "stages.evaluate=null") == whole[:3]
    file.write_text(PIPELINE[: PIPELINE.index("  tokenizer_image:")])
    assert stages() == ["ingest"]
    assert stages("stages.pretokenize={}") == ["ingest", "pretokenize"]
    assert failure(file, "stages.ingest=null").field == "stages"
    assert failure(file, "stages.ingets=null").message.startswith("unknown key; did you mean 'ingest'?")
    assert stages("stages.pretokenize=null", "stages.pretokenize.frames=5") == ["ingest", "pretokenize"]
    message = failure(file, "stages.evaluate={}").message
    assert message.startswith("reads tokens and model, ")
    assert (
        "configure stages.pretokenize and stages.distill or stages.train, pin an artifact, or leave evaluate out"
        in message
    )


def test_a_stage_takes_over_what_one_says_that_an_override_leaves_out():
    whole = load("demo").stages
    config = load(
        "demo", ["stages.tokenizer_image=null", "stages.tokenizer_joint.model=${stages.tokenizer_image.model}"]
    )
    assert config.stages.tokenizer_image is None and config.stages.tokenizer_joint.loss == whole.tokenizer_image.loss
    assert config.stages.tokenizer_joint.model == whole.tokenizer_image.model


def test_what_an_older_version_kept_of_a_training_is_read():
    """Its manifest lacks the fields that came later, and has all others, with those that have no effect."""
    kept = load("demo").stages.train.model_dump(mode="json")
    later = {name for name, field in UnifiedConfig.__dataclass_fields__.items() if field.metadata.get("later")}
    assert {"mup", "modulation"} <= later
    for name in later:
        kept["model"].pop(name, None)
    assert TrainConfig.model_validate(kept) == load("demo").stages.train
    with pytest.raises(ValueError, match="pixel_bottleneck: has no effect here"):
        TrainConfig.model_validate({**kept, "model": {"width": 64, "heads": 2, "pixel_bottleneck": 8}})


@pytest.mark.parametrize("preset, last", [("tokenizer", "tokenizer_joint"), ("quantizers", "quantizer_study")])
def test_presets_of_a_part_end_there(preset, last, tmp_path):
    assert load(preset, [f"data={tmp_path}"]).stages.configured()[-1] == last


def test_a_cluster_needs_data():
    with pytest.raises(InputError, match="data: needs a value"):
        load("cluster")


@pytest.mark.parametrize(
    "gate, message",
    [
        ("{image_class_agreemnt: {min: 0.9}}", "did you mean 'image_class_agreement'?"),
        ("{bits_per_byte: 3.0}", "better when lower"),
        ("{bits_per_byte: {most: 3.0}}", "unknown key; known keys: min, max"),
        ("{caption_accuracy_next_code: {min: 0.9}}", "not measured by this pipeline; did you mean 'caption_accuracy'?"),
        ("{caption_accuracy: {min: high}}", "valid number"),
        ("{better_than_champion: bits_per_bite}", "'bits_per_byte'"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused(gate, message):
    with pytest.raises(InputError) as caught:
        checked("demo", f"stages.evaluate.gate={gate}")
    assert message in str(caught.value) and "evaluate.gate" in str(caught.value)


def test_a_champion_needs_a_registry():
    gate = "stages.evaluate.gate={better_than_champion: [bits_per_byte]}"
    assert load("demo", [gate]).stages.evaluate.gate.better_than_champion == ("bits_per_byte",)
    with pytest.raises(InputError, match="better_than_champion: only .* tracking.register_as"):
        load("demo", [gate, "tracking.register_as=null"])


def test_a_language_model_has_no_gate_on_pictures():
    text = [
        "stages.tokenizer_image=null",
        "stages.tokenizer_joint=null",
        "stages.train.objectives={}",
        "stages.train.packing.mixture={}",
    ]
    assert load("demo", [*text, "stages.evaluate.gate={}"]).stages.evaluate.gate.bounds == {}
    with pytest.raises(InputError, match="gate.image_class_agreement: is not measured by this pipeline"):
        checked("demo", *text)


@pytest.mark.parametrize(
    "given, name", [((), "tiny"), (("tracking.register_as=other",), "other"), (("tracking.register_as=null",), None)]
)
def test_a_model_is_registered_by_the_pipelines_name_unless_null_is_written_down(tmp_path, given, name):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "tiny",
                "storage": str(tmp_path / "st"),
                "stages": {
                    "ingest": {"sources": [{"kind": "text", "uri": str(tmp_path)}]},
                    "pretokenize": {},
                    "train": {"objectives": {}},
                },
            }
        )
    )
    assert load(str(file), given).tracking.register_as == name
    for refused in ("team/model", "cat:v1", "it's"):
        with pytest.raises(InputError, match="tracking.register_as: expected a name without"):
            load(str(file), [f"tracking.register_as={refused}"])


def test_distill_is_the_demo_with_a_stage():
    """What a finished demo made is there for it."""
    ours, theirs = load("distill"), load("demo")
    assert ours.storage == theirs.storage and ours.graph.inputs["evaluate"]["model"] == "distill"
    for name in theirs.stages.configured():
        assert getattr(ours.stages, name) == getattr(theirs.stages, name)
