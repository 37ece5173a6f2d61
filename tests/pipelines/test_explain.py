"""What a user reads where the YAML is wrong: the field and the words of YAML, what a kind takes, and what a key may
have been meant for, wherever in the config it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from omniloom.infra.errors import InputError
from omniloom.pipelines.config import load
from omniloom.pipelines.doctor import examine
from omniloom.pipelines.explain import explain
from omniloom.pipelines.origin import Origin
from omniloom.pipelines.plan import make_plan

QUANTIZER = "stages.tokenizer_image.model.quantizer"
DIFFUSION = "stages.train.diffusion"


def refused(*overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load("demo", overrides)
    assert not re.search(r"\btuple|dictionary|\bConfig\b|instance of|None|True", caught.value.message)
    return caught.value


@pytest.mark.parametrize(
    "override, field, message",
    [
        # An option of another kind
        (f"{QUANTIZER}={{kind: fsq, codebook_size: 8192}}", f"{QUANTIZER}.codebook_size", "kind fsq takes levels, "),
        (
            f"{QUANTIZER}={{kind: kl, levels: [8, 5]}}",
            f"{QUANTIZER}.levels",
            "takes latent_dim, kl_weight (levels is of",
        ),
        (f"{QUANTIZER}.tau=0.5", f"{QUANTIZER}.tau", "(tau is of kind gumbel)"),
        (
            "stages.tokenizer_image.model.num_latents=8",
            "stages.tokenizer_image.model.num_latents",
            "architecture titok",
        ),
        # An option without an effect
        (f"{DIFFUSION}.snr_gamma=5", f"{DIFFUSION}.snr_gamma", "no effect here; it is an option of weight: min_snr"),
        (f"{DIFFUSION}={{formulation: vp, data_std: 0.5}}", f"{DIFFUSION}.data_std", "formulation: edm"),
        (f"{DIFFUSION}.sigma_max=80", f"{DIFFUSION}.sigma_max", "formulation: ve and edm"),
        (f"{DIFFUSION}={{time: uniform, time_mean: 0}}", f"{DIFFUSION}.time_mean", "logit_normal and lognormal"),
        (
            "stages.train.pixel_diffusion={predict: v, min_time: 0.1}",
            "stages.train.pixel_diffusion.min_time",
            "predict: x",
        ),
        ("stages.train.model.unet_width=64", "stages.train.model.unet_width", "patchifier: unet"),
        ("stages.train.model.pixel_bottleneck=128", "stages.train.model.pixel_bottleneck", "patchifier: bottleneck"),
        ("stages.train.model.flow_head_width=64", "stages.train.model.flow_head_width", "flow_head_layers above 0"),
        (
            "stages.tokenizer_image.loss.huber_delta=0.1",
            "stages.tokenizer_image.loss.huber_delta",
            "reconstruction: huber",
        ),
        ("stages.tokenizer_image.model.rel_bias=sdpa", "stages.tokenizer_image.model.rel_bias", "compat: official"),
        (
            "stages.tokenizer_kl={loss: {adversarial_ramp: 3}}",
            "stages.tokenizer_kl.loss.adversarial_ramp",
            "has no effect",
        ),
        # The words of YAML
        ("stages.tokenizer_image.data.sizes=48", "stages.tokenizer_image.data.sizes", "a list, such as [48] (got 48)"),
        ("stages.tokenizer_image.data.sizes=x", "stages.tokenizer_image.data.sizes", "a list, such as [32] (got 'x')"),
        ("stages.tokenizer_image.data.kinds=image", "stages.tokenizer_image.data.kinds", "a list, such as [image]"),
        ("stages.ingest.sources=x", "stages.ingest.sources", "a list, such as [{key: value}]"),
        (f"{QUANTIZER}=fsq", QUANTIZER, "a mapping, such as {key: value}"),
        ("stages.train=3", "stages.train", "a mapping, such as {key: value}"),
        (f"{DIFFUSION}=[flow]", DIFFUSION, "expected a mapping, such as {key: value}"),
        (
            "stages.tokenizer_image.data.sizes={a: 1}",
            "stages.tokenizer_image.data.sizes",
            "expected a list, such as [32]",
        ),
        ("stages.train.optimizer=adamw", "stages.train.optimizer", "expected a mapping, such as {key: value}"),
        (f"{QUANTIZER}={{kind: fsq, levels: []}}", f"{QUANTIZER}.levels", "integers of at least 3, got []"),
        ("stages.train.optimizer.lr=null", "stages.train.optimizer.lr", "(got null)"),
        (
            "stages.tokenizer_image.model={architecture: titok, image_size: large}",
            "stages.tokenizer_image.model.image_size",
            "valid integer, unable to parse string as an integer (got 'large'), or expected a list, such as [32]",
        ),
        # What was meant
        ("train.steps=3", "train", "did you mean 'stages.train.steps'?"),
        ("optimizer.lr=3", "optimizer", "'stages.train.optimizer.lr'"),
        (
            "stages.train.warmup_steps=3",
            "stages.train.warmup_steps",
            "did you mean 'stages.train.optimizer.warmup_steps'?",
        ),
        ("stages.train.stepz=3", "stages.train.stepz", "did you mean 'steps'?"),
        (f"{QUANTIZER}={{kind: vq, codebook: 512}}", f"{QUANTIZER}.codebook", "did you mean 'codebook_size'?"),
        (f"{QUANTIZER}={{kind: vqq}}", f"{QUANTIZER}.kind", "'gumbel', 'kl' (got 'vqq'); did you mean 'vq'?"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_who_made_it(override, field, message):
    error = refused(override)
    assert error.field == field
    assert message in error.message.partition("\n")[0]
    assert "(from an override)" in error.message


def test_a_mapping_of_another_kind_replaces_the_one_that_is_there():
    config = load("demo", [f"{QUANTIZER}={{kind: fsq}}"])
    assert config.stages.tokenizer_image.model.quantizer.levels == (8, 5, 5, 5)
    config = load("demo", [f"{QUANTIZER}={{latent_dim: 4}}"])  # of the same kind: goes into it
    assert (config.stages.tokenizer_image.model.quantizer.dim, config.stages.tokenizer_image.model.quantizer.size) == (
        4,
        512,
    )


@pytest.mark.parametrize(
    "override",
    [
        f"{DIFFUSION}={{weight: min_snr, snr_gamma: 3}}",
        f"{DIFFUSION}={{formulation: edm, data_std: 0.5, sigma_max: 40}}",
        f"{DIFFUSION}={{sampling_grid: logsnr, sigma_min: 0.01}}",
        f"{DIFFUSION}={{predict: x, min_time: 0.1}}",
        "stages.train.pixel_diffusion={min_time: 0.1}",
        "stages.train.model={flow_head_layers: 2, flow_head_width: 64, latent_patchifier: unet, unet_width: 32}",
        "stages.tokenizer_image.loss={reconstruction: huber, huber_delta: 0.2}",
        "stages.tokenizer_image.discriminator={r1_gamma: 1, r1_every: 4}",
    ],
)
def test_an_option_that_has_an_effect_is_taken(override):
    load("demo", [override])


def test_a_dump_which_has_all_options_is_read_again():
    config = load("demo")
    for name in ("train", "tokenizer_image"):
        stage = getattr(config.stages, name)
        assert type(stage).model_validate(stage.model_dump(mode="json")) == stage


MANY = """
name: many
storage: {folder}/runs
stages:
  ingest:
    sources:
      - {{kind: text, uri: {folder}/one}}
      - {{kind: texxt, uri: {folder}/two}}
      - {{kind: text, uri: {folder}/three, wat: 3}}
  pretokenize: {{vocab_sizee: 300, features: {folder}/features}}
  train:
    batch_rowz: 3
    steps: true
    init_from: {folder}/model
    optimizer: {{lr: .inf}}
"""
ALL = (
    ("ingest.sources.0.uri", "no such file or folder: {folder}/one (line 7)"),
    ("ingest.sources.1.kind", "expected one of 'image_folder', "),
    ("ingest.sources.2.wat", "unknown key; kind text takes "),
    ("ingest.sources.2.uri", "no such file or folder: {folder}/three (line 9)"),
    ("pretokenize.vocab_sizee", "unknown key; did you mean 'vocab_size'? (line 10)"),
    ("pretokenize.features", "no such file or folder: {folder}/features (line 10)"),
    ("train.batch_rowz", "unknown key; did you mean 'batch_rows'? (line 12)"),
    ("train.steps", "expected a number, got true or false (line 13)"),
    ("train.init_from", "no such file or folder: {folder}/model (line 14)"),
    ("train.optimizer.lr", "input should be a finite number"),
)


def test_all_mistakes_are_told_at_once_by_their_lines(tmp_path):
    file = tmp_path / "many.yaml"
    file.write_text(MANY.format(folder=tmp_path))
    with pytest.raises(InputError) as caught:
        load(str(file), files=True)
    told = [(error.field, error.message) for error in caught.value.each()]
    assert [field for field, _ in told] == [f"stages.{field}" for field, _ in ALL]
    for (_, message), (_, expected) in zip(told, ALL):
        assert expected.format(folder=tmp_path) in message
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{file}: stages.ingest.sources.0.uri: no such file") and len(rest) == len(ALL) - 1
    assert all(line.startswith("  stages.") for line in rest)


def test_of_a_config_that_can_be_read_all_that_is_missing_and_does_not_fit_is_told(tmp_path):
    """By plan and by doctor: sources, an outside file, and a stage that does not fit another."""
    file = tmp_path / "many.yaml"
    text = MANY.format(folder=tmp_path)
    for wrong, right in (
        ("texxt", "text"),
        (", wat: 3", ""),
        ("sizee", "size"),
        ("rowz: 3", "rows: 4"),
        ("true", "4"),
        (".inf", "0.1"),
    ):
        text = text.replace(wrong, right)
    file.write_text(text + "    objectives: {latent_diffusion: 1}\n")
    for command in (lambda: make_plan(load(str(file))), lambda: examine(str(file), [])):
        with pytest.raises(InputError) as caught:
            command()
        told = [error.field.removeprefix("stages.") for error in caught.value.each()]
        assert told[:3] == [f"ingest.sources.{number}.uri" for number in range(3)]
        assert told[3] == "pretokenize.features"
        assert "train.init_from" in told and any(field.startswith("train.objectives") for field in told), told


def test_all_overrides_that_cannot_be_read_and_all_values_that_are_needed(tmp_path):
    with pytest.raises(InputError) as caught:
        load("demo", ["nope", "name=[1", "seed=1", "seed={", "=3"])
    assert [error.field for error in caught.value.each()] == ["nope", "seed", "=3"]
    file = tmp_path / "needs.yaml"
    file.write_text("name: needs\nstorage: ???\ndata: ???\nstages: {}\n")
    with pytest.raises(InputError) as caught:
        load(str(file), [])
    assert [(e.field, e.message) for e in caught.value.each()] == [
        (name, f"needs a value; pass it as {name}=...") for name in ("storage", "data")
    ]


# ---- on a config of its own, whose whole message is known ----


@dataclass(frozen=True)
class Point:
    x: int = 0


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    speed_of_all: int = 1
    speed_of_one: int = 1
    speed: float = 1.0
    wheels: int = 4

    @model_validator(mode="after")
    def _checked(self):
        if self.wheels == 3:
            raise ValueError("wheels: expected an even number, got 3")
        if self.wheels == 5:
            raise ValueError("nobody: drives five wheels")
        return self


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    sizes: tuple[int, ...] | list[int] = ()
    texts: list[str] = []
    pair: tuple[int, int] = (1, 1)
    shares: dict[str, float] = Field({"a": 1.0}, min_length=1)
    parts: list[Inner] = []
    inner: Inner = Inner()
    other: Inner = Inner()
    point: Point = Point()


def told(**values) -> tuple[str | None, str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": "n", **values})
    error = explain(caught.value, Outer, Origin("file.yaml", {}))
    assert error.file == "file.yaml"
    return error.field, error.message


@pytest.mark.parametrize(
    "values, field, message",
    [
        ({"name": None}, "name", "input should be a valid string (got null)"),
        # Both types of the field say the same, which is told once.
        ({"sizes": 7}, "sizes", "expected a list, such as [7] (got 7)"),
        ({"sizes": True}, "sizes", "expected a list, such as [32] (got true)"),
        ({"texts": "a"}, "texts", "expected a list, such as [a] (got 'a')"),
        ({"texts": ""}, "texts", "expected a list, such as [text] (got '')"),
        ({"parts": 3}, "parts", "expected a list, such as [{key: value}] (got 3)"),
        ({"point": 3}, "point", "expected a mapping, such as {key: value} (got 3)"),
        ({"inner": [1]}, "inner", "expected a mapping, such as {key: value}"),
        ({"inner": {"wheels": 3}}, "inner.wheels", "expected an even number, got 3"),
        ({"inner": {"wheels": 5}}, "inner", "nobody: drives five wheels"),
        # Keys that are not there: of a beginning the shortest, one that is alike, one of elsewhere, all that there are.
        ({"inner": {"spee": 1}}, "inner.spee", "unknown key; did you mean 'speed'?"),
        ({"inner": {"spd": 1}}, "inner.spd", "unknown key; did you mean 'speed'?"),
        ({"inner": {"sp": 1}}, "inner.sp", "unknown key; did you mean 'speed'?"),
        ({"inner": {"weels": 1}}, "inner.weels", "unknown key; did you mean 'wheels'?"),
        ({"inner": {"w": 1}}, "inner.w", "unknown key; known keys: speed_of_all, speed_of_one, speed, wheels"),
        ({"point": {"wheels": 1}}, "point.wheels", "unknown key; did you mean 'inner.wheels' or 'other.wheels'?"),
        ({"wheels": 1}, "wheels", "unknown key; did you mean 'inner.wheels' or 'other.wheels'?"),
        (
            {"speed_of_oone": 1},
            "speed_of_oone",
            "unknown key; did you mean 'inner.speed_of_one' or 'other.speed_of_one'?",
        ),
        (
            {"wheelz": 1},
            "wheelz",
            "unknown key; known keys: name, sizes, texts, pair, shares, parts, inner, other, point",
        ),
        ({"inner": {"other": {"wheels": 1}}}, "inner.other", "unknown key; did you mean 'other.wheels'?"),
        ({"inner": {"other": {"wheels": 1, "speed": 1}}}, "inner.other", "unknown key; did you mean 'other'?"),
        ({"pair": [1, 2, 3]}, "pair", "list should have at most 2 items after validation, not 3"),
        ({"shares": {}}, "shares", "mapping should have at least 1 item after validation, not 0"),
        ({"texts": [3]}, "texts.0", "input should be a valid string (got 3)"),
    ],
)
def test_the_whole_message(values, field, message):
    assert told(**values) == (field, message)


def test_a_key_that_is_missing_and_a_line_for_each_further_problem():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"texts": 3, "inner": {"wheels": "x"}})
    error = explain(caught.value, Outer, Origin("file.yaml", {("texts",): 2, ("inner",): 4, ("inner", "wheels"): 5}))
    lines = error.message.splitlines()
    assert (error.field, lines[0]) == ("name", "is missing")
    assert lines[1] == "  texts: expected a list, such as [text] (got 3) (line 2)"
    assert lines[2].startswith("  inner.wheels: input should be a valid integer") and lines[2].endswith("(line 5)")
