"""Evaluate as a stage, on small language models: the verdict, and the alias in a real registry on SQLite."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import replace
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.tracking import Tracker, TrackingConfig, champion, register_model, resolve_tracking
from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.model import UnifiedModel
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate import stage as evaluate

TEXT = corpora.text_tokenizer()
TIMES = {"seconds": 1.0, "ended": "2026-11-28T00:00:00+00:00"}
# Of what a language model is measured on, named alone.
RECORDS = Artifact(
    "ingest", "0" * 64, "/none/artifacts/ingest/0", {"config": {}, "metrics": {}, "files": [], "times": TIMES}
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return resolve_tracking(
        TrackingConfig(system_metrics=False, flush_seconds=60), str(tmp_path_factory.mktemp("store"))
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rows = corpora.token_rows(TEXT, np.random.default_rng(0), images=0, videos=0, texts=40, documents=0)
    made = corpora.pretokenize(tmp_path_factory.mktemp("tokens"), {"test": [rows]}, TEXT)
    made.manifest["times"] = TIMES
    return made


def trained(folder: Path, seed: int = 0, scale: float = 1.0):
    """A language model's artifact; `scale` multiplies its logits, which makes it surer and, untrained, worse."""
    torch.manual_seed(seed)
    model = UnifiedModel(UnifiedConfig(vocab_size=TEXT.vocab_size, width=32, layers=1, heads=2, specials=TEXT.specials))
    with torch.no_grad():
        model.head.weight.mul_(scale)
    OmniLoom(BundleConfig(model.config, DiffusionConfig(), None, (), (), None, objectives=()), model, None, TEXT).save(
        folder / "model"
    )
    storage.write_bytes(str(folder / "report" / "history.jsonl"), b"")
    artifact = corpora.seal(folder, "train")
    artifact.manifest.update(pipeline="texts", metrics={"parameters": 1}, times=TIMES, code=None)
    return artifact


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By how sure they are: the worse the surer."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: trained(folder / name, scale=scale)
        for name, scale in {"good": 0.0, "worse": 30.0, "broken": float("nan")}.items()
    }


@pytest.fixture
def measure(settings, tokens, models, tmp_path):
    """measure(model, name, **config) -> what the stage gives, its metrics.json and its report."""
    number = iter(range(100))

    def run(model: str, name: str, tokens=tokens, **fields):
        tokens.manifest.setdefault("times", TIMES)  # as every published artifact has them
        work = tmp_path / str(next(number))
        tracker = Tracker(replace(settings, register_as=name)).start_pipeline(name, {})
        context = StageContext(
            "evaluate",
            hashlib.sha256(str(work).encode()).hexdigest(),
            evaluate.Config.model_validate({"cpus": 1, **fields}),
            {"records": RECORDS, "tokens": tokens, "model": models[model]},
            str(work),
            corpora.Silent(),
            tracker,
        )
        metrics = evaluate.run(context)
        assert tracker.finish()
        written = storage.read_json(str(work / "output" / "metrics.json"))
        assert written == metrics
        return metrics, (work / "output" / "report.html").read_text()

    return run


@pytest.fixture(scope="module")
def client(settings):
    from mlflow import MlflowClient

    return MlflowClient(settings.uri)


def holder(settings, models, name: str) -> str | None:
    """Which of the models holds the alias."""
    run = Tracker(settings).start_pipeline(name, {})
    held = champion(run, name, "champion")
    assert run.finish()
    by_fingerprint = {artifact.fingerprint: model for model, artifact in models.items()}
    return by_fingerprint[held.fingerprint] if held else None


BITS = float(np.log2(TEXT.vocab_size))  # a token, of a model that knows nothing


@pytest.mark.parametrize(
    "model, gate, passed, said",
    [
        ("good", {}, None, "No gate given: the model is registered without the alias."),
        ("good", {"bits_per_byte": {"max": 1000}}, 1, "Gate passed."),
        ("good", {"bits_per_byte": {"max": 0.001}}, 0, "is above max 0.001"),
        ("good", {"bits_per_byte": {"min": 1000}}, 0, "is below min 1000"),
        ("broken", {"bits_per_byte": {"max": 1000}}, 0, "bits_per_byte is nan"),
        ("broken", {}, None, "Not a number: bits_per_byte."),
        ("good", {"caption_accuracy": {"min": 0.0}}, 0, "caption_accuracy was not measured"),
    ],
)
def test_the_alias_is_of_what_passed_a_gate(measure, settings, models, client, model, gate, passed, said, request):
    name = f"texts-{request.node.callspec.indices['model']}-{abs(hash(str(gate))) % 10**6}-{model}"
    metrics, html = measure(model, name, gate=gate)
    assert metrics["gate_passed"] == passed and said in html
    assert (metrics["bits_per_byte"] is None) == (model == "broken")
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.tags["omniloom.fingerprint"] == models[model].fingerprint, "it is registered all the same"
    assert client.get_registered_model(name).aliases == ({"champion": 1} if passed else {})
    assert holder(settings, models, name) == (model if passed else None)


def test_the_figure_is_that_of_knowing_nothing(measure, tokens):
    held_out = TokenSet(tokens, "test")
    count = sum(len(document[0].ids) + 1 for document in held_out)  # and <eos>
    size = sum(held_out.row(i)["bytes"] for i in range(len(held_out)))
    assert measure("good", "nothing")[0]["bits_per_byte"] == pytest.approx(BITS * count / size, rel=1e-6)
    # A GPU that is asked for and is not there is done without.
    assert measure("good", "nothing", gpus=1)[0]["bits_per_byte"] == pytest.approx(BITS * count / size, rel=1e-5)


def test_the_alias_never_moves_to_a_worse_model(measure, settings, models, tmp_path):
    gate = {"gate": {"better_than_champion": "bits_per_byte"}}
    worse, _ = measure("worse", "rivals", **gate)
    assert worse["gate_passed"] == 1 and holder(settings, models, "rivals") == "worse", "the first has no rival"
    good, _ = measure("good", "rivals", **gate)
    assert good["bits_per_byte"] < worse["bits_per_byte"]
    assert good["gate_passed"] == 1 and holder(settings, models, "rivals") == "good"
    again, html = measure("worse", "rivals", **gate)
    assert again["gate_passed"] == 0 and holder(settings, models, "rivals") == "good"
    assert f"bits_per_byte {worse['bits_per_byte']:.4g}, a difference of +" in html
    assert f"is worse than the champion&#39;s {good['bits_per_byte']:.4g}" in html and "Against the champion" in html
    # What was judged while the alias was free, and is delivered only now.
    late = Tracker(settings).start_pipeline("rivals", {})
    register_model(
        late,
        models["worse"].local() / "model",
        evaluate.SERVING,
        "rivals",
        models["worse"].fingerprint,
        "champion",
        {"bits_per_byte": worse["bits_per_byte"]},
        no_worse={"bits_per_byte": "lower"},
    )
    assert late.finish() and holder(settings, models, "rivals") == "good"
    broken, _ = measure("broken", "rivals", **gate)
    assert broken["gate_passed"] == 0 and holder(settings, models, "rivals") == "good"
    # The holder is no rival of its own, however it is measured.
    assert measure("good", "rivals", **gate)[0]["gate_passed"] == 1 and holder(settings, models, "rivals") == "good"
    # What it was measured with last is what others face: of other texts there is nothing to compare.
    rows = corpora.token_rows(TEXT, np.random.default_rng(0), images=0, videos=0, texts=2, documents=0)
    others = corpora.pretokenize(
        tmp_path / "others", {"test": [[{**row, "id": f"other {row['id']}", "bytes": 1} for row in rows]]}, TEXT
    )
    assert measure("good", "rivals", others, **gate)[0]["gate_passed"] == 1
    apart, html = measure("worse", "rivals", **gate)
    assert apart["gate_passed"] == 0 and holder(settings, models, "rivals") == "good"
    assert "bits_per_byte could not be held against the champion" in html and "no item of it in common" in html


def test_an_alias_that_has_moved_on_is_not_taken_from_a_model_that_was_not_compared(settings, models):
    """What was found better than a champion, and is delivered when another one has followed it."""

    def deliver(model: str, bits: float, better_than: str | None) -> str | None:
        run = Tracker(settings).start_pipeline("late", {})
        register_model(
            run,
            models[model].local() / "model",
            evaluate.SERVING,
            "late",
            f"late {model}",
            "champion",
            {"bits_per_byte": bits},
            no_worse={"bits_per_byte": "lower"},
            better_than=better_than,
        )
        held = champion(run, "late", "champion")
        assert run.finish()
        return held.fingerprint.removeprefix("late ")

    assert deliver("worse", 3.0, None) == "worse"
    # By bare numbers this is no better; the comparison by items, made against the holder, counts.
    assert deliver("broken", 3.1, "late worse") == "broken"
    assert deliver("good", 3.2, "late worse") == "broken", "the holder is another by now"
    assert deliver("good", 2.0, "late worse") == "good", "and no better by its figures"


def test_a_champion_whose_evaluation_kept_no_items_stays(measure, settings, models, client):
    gate = {"gate": {"better_than_champion": "bits_per_byte"}}
    assert measure("worse", "early", **gate)[0]["gate_passed"] == 1
    client.delete_model_version_tag("early", "1", "omniloom.evaluation")
    metrics, html = measure("good", "early", **gate)
    assert metrics["gate_passed"] == 0 and holder(settings, models, "early") == "worse"
    assert "its evaluation kept no values by item; evaluate it again by this version" in html
    assert measure("worse", "early", **gate)[0]["gate_passed"] == 1
    assert measure("good", "early", **gate)[0]["gate_passed"] == 1 and holder(settings, models, "early") == "good"


def test_with_nothing_measured_a_gate_fails_with_its_reason(measure, settings, models, tmp_path):
    empty = corpora.pretokenize(tmp_path / "empty", {"train": [[]]}, TEXT)
    metrics, html = measure("good", "empty", empty, gate={"bits_per_byte": {"max": 1000}})
    assert metrics == {"gate_passed": 0} and holder(settings, models, "empty") is None
    assert "Gate not passed: bits_per_byte was not measured." in html and "Nothing was measured: the test split" in html
    assert measure("good", "empty", empty)[0] == {"gate_passed": None} and holder(settings, models, "empty") is None


def test_without_an_answer_of_the_registry_the_gate_fails_in_one_line_and_the_report_is_written(
    settings, tokens, models, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = replace(
            settings, uri=f"http://127.0.0.1:{free.getsockname()[1]}", spool=str(tmp_path / "spool"), flush_seconds=0.1
        )
    for name, why in (("rivals", "the registry does not answer: Unreachable: "), (None, "register_as names no model")):
        work = tmp_path / str(name)
        tracker = Tracker(replace(away, register_as=name)).start_pipeline("away", {})
        asked = evaluate.Config.model_validate({"cpus": 1, "gate": {"better_than_champion": "bits_per_byte"}})
        metrics = evaluate.run(
            StageContext(
                "evaluate",
                "0" * 64,
                asked,
                {"records": RECORDS, "tokens": tokens, "model": models["good"]},
                str(work),
                corpora.Silent(),
                tracker,
            )
        )
        tracker.finish()
        assert metrics["gate_passed"] == 0 and metrics["bits_per_byte"] > 0
        html = (work / "output" / "report.html").read_text()
        (line,) = (line for line in html.splitlines() if "Gate not passed" in line)
        assert "could not be held against the champion" in line and why in line


def test_what_nothing_is_said_of_and_the_limits_of_the_fields():
    usual = evaluate.Config()
    assert usual.model_dump(exclude={"gate"}) == {
        "split": "test",
        "drawings": 256,
        "captions": 256,
        "counterfactuals": 64,
        "train_pictures": 20_000,
        "videos": 64,
        "retrieval_captions": 100,
        "texts": 200,
        "num_steps": 20,
        "guidance_scale": 2.0,
        "class_examples": 20,
        "class_pixels": 8,
        "seed": 0,
        "cpus": 2,
        "gpus": 0,
        "reconstructions": 256,
        "alias": "champion",
        "features": None,
        "sweep": None,
    }
    assert not usual.gate.given and evaluate.needs(usual) == Needs(cpus=2, gpus=0)
    assert evaluate.needs(evaluate.Config(cpus=3, gpus=0.5)) == Needs(cpus=3, gpus=0.5)
    for name, taken, refused in (
        ("split", "validation", "train"),
        ("drawings", 0, -1),
        ("captions", 0, -1),
        ("retrieval_captions", 0, -1),
        ("texts", 0, -1),
        ("num_steps", 1, 0),
        ("guidance_scale", 0, -0.1),
        ("class_examples", 2, 1),
        ("class_pixels", 2, 1),
        ("seed", 0, -1),
        ("cpus", 0.1, 0),
        ("gpus", 0, -0.1),
        ("reconstructions", 1, 0),
        ("drawings", 1, "many"),
    ):
        assert getattr(evaluate.Config(**{name: taken}), name) == taken
        with pytest.raises(ValidationError, match=name):
            evaluate.Config(**{name: refused})
    with pytest.raises(ValidationError, match="drawing"):
        evaluate.Config(drawing=3)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, tokens):
    """learnt(steps, noise, seed): a language model trained on the held-out texts themselves, and disturbed."""
    folder, number = tmp_path_factory.mktemp("learnt"), iter(range(1000))
    texts = [document[0].text_ids for document in TokenSet(tokens, "test")]

    def make(steps: int, noise: float = 0.0, seed: int = 0):
        artifact = trained(folder / str(next(number)), seed=0)
        loom = OmniLoom.load(artifact.local() / "model")
        optimizer = torch.optim.Adam(loom.model.parameters(), lr=3e-3)
        special = loom.config.unified.specials
        for step in range(steps):
            ids = torch.tensor([special.bos, *texts[step % len(texts)], special.eos])[None]
            logits = loom.model.text_logits(ids[:, :-1])
            torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in loom.model.parameters():
                parameter.add_(noise * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0)
        loom.save(artifact.local() / "model")
        return replace(artifact, fingerprint=hashlib.sha256(f"{artifact.uri} {noise} {seed}".encode()).hexdigest())

    return make


@pytest.mark.slow
def test_a_model_made_worse_does_not_become_champion_in_20_of_20_tries_and_a_better_one_does(
    measure, settings, models, learnt
):
    gate = {"gate": {"better_than_champion": "bits_per_byte"}}
    models |= {"base": learnt(120), "longer": learnt(400)}
    models |= {f"worse {n}": learnt(120, noise=(0.4, 0.5, 0.6, 0.8)[n % 4], seed=n) for n in range(20)}
    base, _ = measure("base", "chain", **gate)
    assert base["gate_passed"] == 1
    for number in range(20):
        worse, _ = measure(f"worse {number}", "chain", **gate)
        assert worse["bits_per_byte"] > base["bits_per_byte"], "less noise than this makes some better"
        assert worse["gate_passed"] == 0
        assert holder(settings, models, "chain") == "base"
    assert measure("longer", "chain", **gate)[0]["gate_passed"] == 1 and holder(settings, models, "chain") == "longer"
    assert measure("base", "chain", **gate)[0]["gate_passed"] == 0 and holder(settings, models, "chain") == "longer"


def test_two_evaluations_are_compared_by_their_runs_and_by_their_names_in_the_registry(
    measure, settings, client, monkeypatch, tmp_path
):
    from omniloom.pipelines.compared import find_items

    for model in ("good", "worse"):
        measure(model, "named", gate={"bits_per_byte": {"max": 1000}})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.uri)
    first, second = sorted(client.search_model_versions("name = 'named'"), key=lambda version: int(version.version))
    found = [find_items(name) for name in ("models:/named/1", "models:/named@champion", f"runs:/{second.run_id}")]
    kept = [items["bits_per_byte"] for items in found]
    assert len(kept[0].ids) == 40 and kept[0].mean < kept[1].mean == kept[2].mean
    for name, said in (
        ("models:/named@nobody", "is no model of this project in the registry"),
        ("models:/no-such/1", "is no model of this project in the registry"),
        (f"runs:/{'0' * 32}", "has no files at"),
    ):
        with pytest.raises(InputError, match=said):
            pytest.fail(f"{name}: {find_items(name)}")
    client.delete_model_version_tag("named", "1", "omniloom.evaluation")
    with pytest.raises(InputError, match="without a run that measured it"):
        find_items("models:/named/1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI"):
        find_items("models:/named/1")
