"""Every field of the two sampling types is an option everywhere: on the command line, in files of requests, in the
signature of a served model; and what each of them is told comes to the model as it is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from omniloom.infra.errors import InputError
from omniloom.models.docstrings import field_docstrings
from omniloom.models.unified.generation.sampling import OWN_SAMPLING, TextSampling, VisualSampling, knobs
from omniloom.pipelines import cli
from omniloom.stages.evaluate.config import MeasureConfig
from omniloom.stages.inference import serving
from omniloom.stages.inference.options import OPTIONS, text_sampling, visual_sampling
from omniloom.stages.inference.requests import Options, Request, read_requests
from omniloom.stages.train.config import SampleConfig

CLASSES = (TextSampling, VisualSampling)
OF_THE_MODEL = {"diffusion"}  # what it fills in; all else is chosen
FIELDS = {field.name for cls in CLASSES for field in dataclasses.fields(cls)} - OF_THE_MODEL
# Another value than each one's default: on the command line, in JSON, and as the field has it.
VALUES = {
    "max_new_tokens": ("5", 5, 5),
    "temperature": ("0.5", 0.5, 0.5),
    "top_k": ("3", 3, 3),
    "top_p": ("0.25", 0.25, 0.25),
    "objective": ("next_code", "next_code", "next_code"),
    "size": ("24x40", [24, 40], (24, 40)),
    "num_frames": ("9", 9, 9),
    "num_steps": ("7", 7, 7),
    "guidance_scale": ("3", 3, 3.0),
    "image_guidance_scale": ("1.5", 1.5, 1.5),
    "sampler": ("heun", "heun", "heun"),
    "predictor": ("amed", "amed", Path("amed")),
    "confidence_noise": ("0.5", 0.5, 0.5),
}


def together(name: str) -> dict[str, tuple]:
    """What has to be said with it: a row of `VALUES` each."""
    return {"predictor": {"sampler": ("amed", "amed", "amed")}}.get(name, {})


def seen(name: str, chosen: dict) -> list[object]:
    """The field's value in each of the types that have it."""
    both = text_sampling(chosen), visual_sampling(chosen)
    return [getattr(made, name) for made in both if hasattr(made, name)]


def test_every_field_is_described_and_is_an_option():
    assert set(OPTIONS) == FIELDS == set(VALUES)
    for cls in CLASSES:
        assert set(field_docstrings(cls)) == {field.name for field in dataclasses.fields(cls)}
        assert set(knobs(cls)) == {field.name for field in dataclasses.fields(cls)} - OF_THE_MODEL


@pytest.fixture
def sampled(monkeypatch):
    """What `omniloom sample` hands to the room that samples: its arguments by place."""
    calls = []
    monkeypatch.setattr("omniloom.stages.inference.sampling.sample", lambda *given: calls.append(given) or ())
    monkeypatch.setattr("omniloom.pipelines.trained.find_model", lambda model: model)

    def call(*arguments: str) -> tuple[list[Request], Options]:
        monkeypatch.setattr(sys, "argv", ["omniloom", "sample", "m", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return calls[-1][1:3]

    return call


@pytest.mark.parametrize("name", VALUES)
def test_every_field_is_an_option_of_the_command(name, sampled, capsys, monkeypatch):
    words = [
        word for n, row in {name: VALUES[name], **together(name)}.items() for word in (OPTIONS[n].flags[0], row[0])
    ]
    requests, options = sampled("--prompt", "x", "--image", "i", "--video", *words)
    assert set(seen(name, options.chosen(requests[0]))) == {VALUES[name][2]}
    assert name not in sampled("--prompt", "x")[1].sampling
    monkeypatch.setattr(sys, "argv", ["omniloom", "sample", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main()
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(flag in told for flag in OPTIONS[name].flags)
    assert OPTIONS[name].description[:30] in told


@pytest.mark.parametrize("name", VALUES)
def test_every_field_is_told_by_a_line_of_requests_over_the_command_line(name, tmp_path):
    row = {n: value[1] for n, value in {name: VALUES[name], **together(name)}.items()}
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"prompt": "x", **row}) + '\n{"prompt": "y"}')
    told, silent = read_requests(path)
    options = Options(task="video", sampling={"num_steps": 11, "temperature": 2.0})
    expected = tmp_path / "amed" if name == "predictor" else VALUES[name][2]
    assert set(seen(name, options.chosen(told))) == {expected}
    assert options.chosen(silent) == {"num_steps": 11, "temperature": 2.0}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"num_steps": 0', "line 1: num_steps: expected an integer at least 1, got 0"),
        ('"num_steps": "8"', "line 1: num_steps: expected an integer at least 1, got '8'"),
        ('"top_p": 1.5', "line 1: top_p: expected a number above 0 and at most 1, got 1.5"),
        ('"size": [16]', "line 1: size: expected height x width in pixels, such as 256x384, got [16]"),
        ('"size": "16"', "line 1: size: expected height x width"),
        ('"sampler": "ddpm"', "line 1: sampler: expected one of euler, heun"),
        ('"sampler": "amed"', "line 1: predictor: is missing"),
        ('"predictor": 3', "line 1: predictor: expected a file, got 3"),
        ('"num_frames": 5', "line 1: num_frames: goes with --video or --interleave"),
        ('"diffusion": {}', "line 1: diffusion: unknown field; the fields are prompt, image, seed, max_new_tokens"),
    ],
)
def test_a_wrong_choice_is_named_by_line_and_name(tmp_path, line, expected):
    path = tmp_path / "asked.jsonl"
    path.write_text(f'{{"prompt": "x", {line}}}')
    with pytest.raises(InputError) as error:
        Options().chosen(read_requests(path)[0])
    assert str(error.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("name", [name for name in VALUES if name != "predictor"])
def test_every_field_is_a_parameter_of_a_served_model(name):
    """Through MLflow's own check, which leaves out what the signature does not name; a file of the server's is none."""
    from mlflow.models.utils import _enforce_params_schema

    signature = serving.signature()
    (spec,) = [spec for spec in signature.params if spec.name == name]
    default, usual = OPTIONS[name].default, seen(name, {})
    params = _enforce_params_schema({name: VALUES[name][1]}, signature.params)
    assert set(seen_in(chosen(params), name)) == {VALUES[name][2]}
    assert seen_in(chosen(_enforce_params_schema({}, signature.params)), name) == usual
    if name in OWN_SAMPLING:  # shown by a value that it does not take, since a model may have another of its own
        with pytest.raises(ValueError, match=name):
            visual_sampling({name: spec.default})
    else:
        assert default is None or spec.default == default


def chosen(params: dict) -> tuple[TextSampling, VisualSampling]:
    return serving._chosen({name: value for name, value in params.items() if name != "seed"})


def seen_in(sampling: tuple[TextSampling, VisualSampling], name: str) -> list[object]:
    return [getattr(made, name) for made in sampling if hasattr(made, name)]


def test_a_served_model_takes_every_parameter_at_once_and_no_file():
    from mlflow.models.utils import _enforce_params_schema

    signature = serving.signature()
    assert {spec.name for spec in signature.params} == FIELDS - {"predictor"} | {"seed"}
    told = {name: row[1] for name, row in VALUES.items() if name != "predictor"} | {"seed": 3}
    assert set(_enforce_params_schema(told, signature.params)) == set(told)
    for params, expected in (
        ({"sampler": "best"}, "params: sampler: expected one of euler"),
        ({"sampler": "amed"}, "params: predictor: is missing"),
        ({"predictor": "/etc/passwd"}, "params: unknown predictor; known are confidence_noise"),
        ({"top_p": 2.0}, "params: top_p: expected a number above 0 and at most 1, got 2.0"),
        ({"size": [16]}, "params: size: expected height x width"),
    ):
        with pytest.raises(ValueError) as error:
            serving._chosen(params)
        assert str(error.value).startswith(expected)


def test_configs_of_stages_have_the_ranges_and_defaults_of_the_fields():
    for config in (SampleConfig, MeasureConfig):
        made = config()
        assert made.chosen(objective="next_code") == {"objective": "next_code"}
        assert config(num_steps=3, guidance_scale=0).chosen() == {"num_steps": 3, "guidance_scale": 0.0}
        assert {name: getattr(made, name) for name in ("num_steps", "guidance_scale")} == {
            name: getattr(VisualSampling(), name) for name in ("num_steps", "guidance_scale")
        }
        for wrong in ({"num_steps": 0}, {"guidance_scale": -0.1}, {"sampler": "heun"}):
            with pytest.raises(ValueError):
                config(**wrong)
        described = config.model_json_schema()["properties"]["num_steps"]["description"]
        assert described == field_docstrings(VisualSampling)["num_steps"].rstrip(".")
