"""What sampling costs: settings from the same noise, the rule that chooses one, and where the choice goes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
import small_models
from PIL import Image
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.folder import Parts, write_folder
from omniloom.models.hf.repository import OmniLoomForGeneration, write_repository
from omniloom.models.model import OmniLoom
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.pipelines import trained
from omniloom.stages.base import StageContext
from omniloom.stages.evaluate import stage as evaluate
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.items import values_of
from omniloom.stages.evaluate.sweep_config import SamplingSweep, check_sweep
from omniloom.stages.evaluate.swept import Setting, choose
from omniloom.stages.inference import marks
from omniloom.stages.inference.options import visual_sampling
from omniloom.stages.inference.requests import Options, Request
from omniloom.stages.inference.sampling import load, sample

TIMES = {"seconds": 1.0, "ended": "2026-11-28T00:00:00+00:00", "ended_unix": 1.0}
RNG = np.random.default_rng(0)
IDS = [str(number) for number in range(200)]


def setting(seconds: float, **figures) -> Setting:
    fields = {"num_steps": int(seconds * 10), "guidance_scale": 2.0, "sampler": "euler"}
    return Setting(fields, seconds, {name: values_of(IDS, values) for name, values in figures.items()})


def rights(share: float) -> np.ndarray:
    return np.arange(200) < share * 200


def test_the_cheapest_of_those_that_are_not_worse():
    found = choose(
        [
            setting(0.1, image_class_agreement=rights(0.5)),
            setting(0.3, image_class_agreement=rights(0.89)),
            setting(0.2, image_class_agreement=rights(0.885)),
            setting(0.9, image_class_agreement=rights(0.9)),
        ],
        200,
        0,
    )
    assert found.best == {"image_class_agreement": 3}
    assert [entry.worse for entry in found.settings] == [("image_class_agreement",), (), (), ()]
    assert found.chosen == 2 and found.own["num_steps"] == 2


def test_every_figure_counts_and_lower_may_be_better():
    distance = RNG.normal(5, 1, 200)
    found = choose(
        [
            setting(0.1, image_coverage=rights(0.9), fid=distance + 2),
            setting(0.2, image_coverage=rights(0.9), fid=distance),
            setting(0.3, image_coverage=rights(0.9), fid=distance - 1e-9),
        ],
        200,
        0,
    )
    assert found.best["fid"] == 2 and found.settings[0].worse == ("fid",)
    apart = choose(
        [
            setting(0.1, image_coverage=rights(0.9), fid=distance + 2),
            setting(0.2, image_coverage=rights(0.1), fid=distance),
            setting(0.3, image_coverage=rights(0.1), fid=distance + 3),
        ],
        200,
        0,
    )
    assert [len(entry.worse) for entry in apart.settings] == [1, 1, 2] and apart.chosen == 0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_steps": [4, 4]}, "values that differ"),
        ({"num_steps": []}, "at least one"),
        ({"num_steps": 0}, "at least 1"),
        ({"guidance_scale": [-1]}, "at least 0"),
        ({"guidance_scale": [float("nan")]}, "finite"),
        ({"sampler": ["amed"]}, "expected any of euler, heun"),
        ({"drawings": 5}, "greater than or equal to 20"),
        ({"steps": 3}, "Extra inputs"),
    ],
)
def test_what_is_no_sweep(fields, message):
    with pytest.raises(ValidationError, match=message):
        SamplingSweep.model_validate(fields)


def test_settings_that_the_objective_does_not_have():
    check_sweep(SamplingSweep(), ("latent_diffusion",))
    check_sweep(SamplingSweep(), ("masked_code",))
    for objectives, fields, field in (
        ((), {}, "sweep"),
        (("masked_code",), {"sampler": ["heun"]}, "sweep.sampler"),
        (("next_code",), {}, "sweep.num_steps"),
    ):
        with pytest.raises(InputError, match="has no effect") as caught:
            check_sweep(SamplingSweep.model_validate(fields), objectives)
        assert caught.value.field == field


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """An untrained model on squares of four colours."""
    root = tmp_path_factory.mktemp("sweep")
    folder = root / "artifacts"
    made = corpora.ingest(folder / "ingest", images=160, videos=3)
    found = small_models.of_squares(folder, made, videos=0, noise=0.1)
    for artifact in found.values():
        artifact.manifest.setdefault("metrics", {})
        artifact.manifest["times"] = TIMES
    return found


@pytest.fixture(scope="module")
def swept(inputs, tmp_path_factory):
    """An evaluation with a sweep: its metrics and its output."""
    work = tmp_path_factory.mktemp("work")
    config = {
        "split": "validation",
        "cpus": 1,
        "drawings": 0,
        "captions": 0,
        "videos": 0,
        "texts": 0,
        "reconstructions": 1,
        "class_examples": 2,
        "sweep": {"num_steps": [1, 3], "guidance_scale": [1.0, 3.0], "sampler": ["euler", "ddim"], "drawings": 20},
    }
    tracker = corpora.Silent()
    tracker.settings = SimpleNamespace(register_as=None)
    context = StageContext(
        "evaluate", "e" * 64, EvaluateConfig.model_validate(config), inputs, str(work), corpora.Silent(), tracker
    )
    return evaluate.run(context), work / "output"


def test_a_sweep_in_the_evaluation(inputs, swept):
    metrics, output = swept
    told = json.loads((output / "sampling.json").read_text())
    assert len(told["settings"]) == 8 and told["pictures"] == 20
    assert told["model"] == inputs["model"].fingerprint
    assert {name: metrics[f"sampling_{name}"] for name in told["chosen"]} == told["chosen"]
    assert all(entry["seconds"] > 0 and "image_coverage" in entry for entry in told["settings"])
    html = (output / "report.html").read_text()
    assert "What sampling costs" in html and "(chosen)" in html and "seconds a picture" in html
    # Straight paths of flow: both samplers take the same steps, and from the same noise draw the same pictures.
    by_setting = {(e["num_steps"], e["guidance_scale"], e["sampler"]): e for e in told["settings"]}
    for steps in (1, 3):
        for scale in (1.0, 3.0):
            one, other = (by_setting[steps, scale, name] for name in ("euler", "ddim"))
            assert one["image_coverage"]["value"] == pytest.approx(other["image_coverage"]["value"], abs=0.1)


def test_the_choice_is_the_models_own(inputs, swept, tmp_path):
    metrics, output = swept
    own = json.loads((output / "sampling.json").read_text())["chosen"]
    before, after = load(inputs["model"].uri, "cpu"), load(str(output / "model"), "cpu")
    assert before.config.sampling == {} and before.usual == VisualSampling()
    assert after.config.sampling == own and after.usual == VisualSampling(**own)
    drawn = after.text_to_image(["a red square"], seeds=[3])
    assert np.array_equal(drawn, before.text_to_image(["a red square"], VisualSampling(**own), seeds=[3]))
    assert not np.array_equal(drawn, before.text_to_image(["a red square"], seeds=[3]))
    assert np.array_equal(
        after.text_to_image(["a red square"], VisualSampling(), seeds=[3]),
        before.text_to_image(["a red square"], seeds=[3]),
    )
    # What is chosen comes before the model's own; what is left open is that.
    assert visual_sampling({"num_steps": 7}, after) == VisualSampling(**{**own, "num_steps": 7})
    assert visual_sampling({"objective": "next_code"}, after) == VisualSampling(objective="next_code")
    # `omniloom sample`, and the mark in what it makes.
    (path,) = sample(str(output / "model"), [Request("a red square")], Options(seed=3), tmp_path)
    assert np.array_equal(np.asarray(Image.open(path)), drawn[0])
    # A repository of Hugging Face has it too.
    write_repository(Parts(after.config, after.model, after.tokenizer, after.text), tmp_path / "hf")
    exported = OmniLoomForGeneration.from_pretrained(tmp_path / "hf")
    assert np.array_equal(exported.text_to_image(["a red square"], seeds=[3]), drawn)


def test_a_folder_without_it_is_as_before(inputs, tmp_path):
    loom = load(inputs["model"].uri, "cpu")
    document = json.loads((tmp_path.__class__(inputs["model"].uri) / "model" / "config.json").read_text())
    assert "sampling" not in document
    for wrong, message in (
        ({"num_steps": 0}, "num_steps"),
        ({"size": [8, 8]}, "expected any of"),
        ([], "expected any"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_folder(Parts(loom.config, loom.model, loom.tokenizer, loom.text), folder)
        (folder / "config.json").write_text(json.dumps({**document, "sampling": wrong}))
        with pytest.raises(ValueError, match=message):
            OmniLoom.load(folder)


def test_a_pipelines_model_is_the_evaluated_one(monkeypatch, tmp_path):
    """By a config: where the last evaluation is of the last training and has the model's folder; else the train one."""

    def artifact(stage, fingerprint, inputs=(), files=()):
        found = corpora.seal(tmp_path / stage, stage)
        manifest = {"inputs": dict(inputs), "files": [{"path": path} for path in files], "fingerprint": fingerprint}
        return type(found)(stage, fingerprint, str(tmp_path / stage), {**found.manifest, **manifest})

    train = artifact("train", "t" * 64)
    storage.write_json(str(tmp_path / "train" / "manifest.json"), {})
    evaluated = artifact("evaluate", "e" * 64, {"train": "t" * 64}, ["model/config.json"])
    known = {"train": train, "evaluate": evaluated}
    store = SimpleNamespace(last_used=lambda pipeline, stage: known.get(stage))
    monkeypatch.setattr(trained, "ArtifactStore", lambda root: store)
    monkeypatch.setattr(trained, "find", lambda name: name)
    monkeypatch.setattr(trained, "identity", lambda name: ("squares", str(tmp_path), {"train", "evaluate"}))
    assert trained.find_model("demo") == evaluated.uri
    known["evaluate"] = artifact("evaluate", "e" * 64, {"train": "x" * 64}, ["model/config.json"])
    assert trained.find_model("demo") == train.uri, "of another training"
    known["evaluate"] = artifact("evaluate", "e" * 64, {"train": "t" * 64}, ["report.html"])
    assert trained.find_model("demo") == train.uri, "without a sweep"


def test_a_mark_names_the_training(inputs, swept, tmp_path):
    _, output = swept
    files = [{"path": path, "size": 1, "sha256": "0"} for path in ("model/unified.safetensors", "sampling.json")]
    (output / "manifest.json").write_text(json.dumps({"files": files, "fingerprint": "e" * 64}))
    try:
        assert marks.identity(str(output))["fingerprint"] == inputs["model"].fingerprint
        assert marks.identity(str(output / "model"))["fingerprint"] == inputs["model"].fingerprint
    finally:
        (output / "manifest.json").unlink()
