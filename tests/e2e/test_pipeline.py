"""One small pipeline through all six stages on real Ray, DeepSpeed and MLflow: runs, reruns, storage, kill -9."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import corpora
import numpy as np
import psutil
import pytest
import torch
import yaml
from demo_stages import NAMES
from safetensors.torch import load_file

from omniloom.infra import cluster, storage
from omniloom.pipelines.config import load
from omniloom.pipelines.display import Display
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.runner import run
from omniloom.pipelines.selection import Selection
from omniloom.stages.data.media.decode import encode_mp4, encode_png
from omniloom.stages.reporting import history

pytestmark = pytest.mark.slow
OMNILOOM = Path(sys.executable).with_name("omniloom")


def write_corpus(folder: Path) -> None:
    """60 pictures and 8 clips of coloured squares (some of them in each split), 4 texts, a JSONL file and 2 illustrated
    documents."""

    def put(path: str, data: bytes) -> None:
        storage.write_bytes(str(folder / path), data)

    for number in range(60):
        colour = list(corpora.COLOURS)[number % 4]
        put(f"images/{colour}/{number}.png", encode_png(corpora.square(colour, (number % 17, number * 5 % 17), 24)))
    for number in range(8):
        colour = list(corpora.COLOURS)[number % 4]
        frames = [corpora.square(colour, ((number * 3 + 4) % 17, (2 * t + number) % 17)) for t in range(6)]
        put(f"videos/{colour}/{number}.mp4", encode_mp4(np.stack(frames), 8))
    for number in range(4):
        put(
            f"texts/{number}.txt",
            "\n\n".join(
                f"Chapter {n}. A {c} square moves {number} steps." for n, c in enumerate(corpora.COLOURS)
            ).encode(),
        )
    put(
        "lines.jsonl",
        "".join(json.dumps({"text": f"line {n}: a square is no circle"}) + "\n" for n in range(12)).encode(),
    )
    for number in range(2):
        put(f"documents/{number}.md", f"# Squares {number}\n\nFirst:\n\n![one](one.png)\n\nAnd so on.\n".encode())
    put("documents/one.png", encode_png(corpora.square("red", (3, 3))))


def settings(corpus: Path, store: str) -> dict:
    tokenizer = {
        "loss": {"adversarial_start": 2},
        "discriminator": {"channels": 4, "layers": 1},
        "steps": 6,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"zero_stage": 1, "ema_decay": 0.9},
        "workers": {"count": 1, "log_every": 2, "checkpoint_every": 3},
        "validate_every": 3,
    }
    sources = [
        {
            "kind": "image_folder",
            "uri": f"{corpus}/images",
            "captions": {"from": "folder", "template": "a {name} square"},
        },
        {
            "kind": "video_folder",
            "uri": f"{corpus}/videos",
            "captions": {"from": "folder", "template": "a {name} square"},
        },
        {"kind": "text", "uri": f"{corpus}/texts"},
        {"kind": "jsonl", "uri": f"{corpus}/lines.jsonl", "text_field": "text"},
        {"kind": "interleaved", "uri": f"{corpus}/documents"},
    ]
    return {
        "name": "squares",
        "storage": store,
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 4},
        "stages": {
            "ingest": {
                "sources": sources,
                "splits": {"train": 0.6, "validation": 0.2, "test": 0.2},
                "shard_items": 40,
                "chunk_chars": 60,
            },
            "tokenizer_image": {
                **tokenizer,
                "model": {
                    "patch_size": 8,
                    "temporal_patch": 4,
                    "width": 32,
                    "heads": 2,
                    "head_dim": 16,
                    "spatial_layers": "t",
                    "temporal_layers": 1,
                    "decoder_spatial_layers": "t",
                    "quantizer": {"kind": "vq", "codebook_size": 64, "latent_dim": 4},
                },
                "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
            },
            "tokenizer_joint": {
                **tokenizer,
                "workers": {**tokenizer["workers"], "count": 2},
                "data": {
                    "kinds": ["image", "video"],
                    "sizes": [16, 24],
                    "frames": 5,
                    "image_batch": 8,
                    "video_batch": 2,
                },
            },
            "pretokenize": {"image_size": 24, "video_size": 24, "frames": 5, "vocab_size": 300, "workers": 2},
            "train": {
                "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
                "packing": {"length": 96, "window_rows": 8},
                "batch_rows": 4,
                "steps": 10,
                "optimizer": {"lr": 2e-3, "warmup_steps": 2},
                "engine": {"zero_stage": 2, "ema_decay": 0.9},
                "workers": {"count": 2, "log_every": 2, "checkpoint_every": 5},
                "validate_every": 5,
                "validation_rows": 2,
                "samples": {"count": 2, "num_steps": 2},
            },
            "evaluate": {
                "reconstructions": 8,
                "drawings": 8,
                "captions": 4,
                "texts": 4,
                "num_steps": 2,
                "class_examples": 2,
                "cpus": 1,
            },
        },
    }


@pytest.fixture(scope="module", autouse=True)
def ray(s3_server, tmp_path_factory):
    """One Ray for all runs of this module; it starts after the environment is set, which its workers inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNILOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        connected = cluster.connect("local", num_cpus=4, object_store_bytes=200 << 20, log_to_driver=False)
        yield connected
        cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "squares.yaml").write_text(yaml.safe_dump(settings(corpus, str(folder / "store"))))
    plan = make_plan(load(str(folder / "squares.yaml")))
    assert {planned.reason for planned in plan.stages} == {"never ran"}
    run(plan, Display())
    return folder / "squares.yaml"


def planned(config: Path, *overrides: str, **selection) -> dict[str, tuple[str, str]]:
    plan = make_plan(load(str(config), overrides), Selection(**selection))
    return {stage.name: (stage.status, stage.reason) for stage in plan.stages}


def again(config: Path, *overrides: str, **selection) -> set[str]:
    """Run what is planned; the names of the stages that ran."""
    plan = make_plan(load(str(config), overrides), Selection(**selection))
    run(plan, Display())
    return plan.done


def test_every_stage_left_a_whole_artifact(config):
    plan = make_plan(load(str(config)))
    assert {p.name: p.status for p in plan.stages} == dict.fromkeys(NAMES, "cached")
    for stage in plan.stages:
        manifest = stage.artifact.manifest
        assert (manifest["stage"], manifest["fingerprint"]) == (stage.name, stage.fingerprint)
        assert set(manifest["inputs"]) == set(stage.inputs.values()) and manifest["mlflow_run_id"]
        assert plan.store.examine(stage.artifact) == []
    ingest = plan["ingest"].artifact.metrics
    assert (ingest["records"], ingest["rejects"]) == (ingest["items"] - ingest["duplicates"], 0)
    assert plan["pretokenize"].artifact.metrics["documents"] == ingest["records"]
    metrics = plan["evaluate"].artifact.metrics
    for name in (
        "image_class_agreement",
        "caption_accuracy",
        "bits_per_byte",
        "recon_psnr_image",
        "recon_psnr_video",
        "codebook_usage",
    ):
        assert np.isfinite(metrics[name]), name
    assert metrics["export_gap"] < 1e-4, "of 2 validation rows, on 2 ranks, averaged under ZeRO 2"
    assert b"<html" in storage.read_bytes(plan["evaluate"].artifact.file("report.html")).lower()
    rows = history.load(plan["train"].artifact.file("report", "history.jsonl"))
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 5, 6, 8, 10]
    assert storage.list_files(str(config.parent / "store" / "work")) == {}


def test_mlflow_knows_the_runs_and_the_model(config):
    import mlflow

    from omniloom.infra.tracking import resolve_tracking

    loaded = load(str(config))
    client = mlflow.MlflowClient(resolve_tracking(loaded.tracking, loaded.storage).uri)
    experiment = client.get_experiment_by_name(loaded.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert {r.data.tags["omniloom.stage"] for r in children} >= set(NAMES)
    for stage, steps in (("tokenizer_image", {2, 3, 4, 6}), ("train", {2, 4, 5, 6, 8, 10})):
        run = next(r for r in children if r.data.tags["omniloom.stage"] == stage)
        assert {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")} == steps
        assert min(point.step for point in client.get_metric_history(run.info.run_id, "versus_seen/loss")) > max(steps)
    (registered,) = client.search_registered_models()
    assert registered.aliases == {}, "no gate is given, so nothing is known to be good enough"


def test_a_second_run_does_nothing(config):
    """In processor time: the clock also counts what else the machine does. A Ray that starts takes more than that."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([OMNILOOM, "run", str(config)], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "starting Ray" not in done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert again(config) == set()


def test_a_forced_stage_runs_alone_and_what_it_replaced_is_kept(config):
    assert planned(config, force=("evaluate",))["evaluate"] == ("run", "forced")
    before = make_plan(load(str(config)))["evaluate"].artifact.manifest
    assert again(config, force=("evaluate",)) == {"evaluate"}
    now = make_plan(load(str(config)))["evaluate"].artifact.manifest
    assert now["fingerprint"] == before["fingerprint"] and now["times"] != before["times"]
    kept = [name for name in storage.list_files(str(config.parent / "store" / "replaced")) if "manifest" in name]
    assert len(kept) == 1


def test_another_learning_rate_runs_train_and_evaluate(config):
    override = "stages.train.optimizer.lr=0.001"
    plan = planned(config, override)
    assert plan["train"] == ("run", "config: optimizer.lr 0.002 -> 0.001")
    assert plan["evaluate"] == ("run", "input changed: train")
    assert {name for name, (status, _) in plan.items() if status == "cached"} == set(NAMES) - {"train", "evaluate"}
    assert again(config, override) == {"train", "evaluate"}
    assert again(config) == set()  # the former artifacts are still there


def test_it_runs_in_memory_and_on_s3(config, corpus, s3, tmp_path, monkeypatch):
    """The artifacts hold the same: byte for byte up to the records, and as many tokens behind them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    local = make_plan(load(str(config)))
    for store in (f"memory://squares-{os.getpid()}", f"{s3}/store"):
        moved = tmp_path / "moved.yaml"
        moved.write_text(yaml.safe_dump(settings(corpus, store)))
        ran = again(moved, until="pretokenize")
        assert ran == {"ingest", "tokenizer_image", "tokenizer_joint", "pretokenize"}
        plan = make_plan(load(str(moved)))
        for name in ran:
            assert plan[name].fingerprint == local[name].fingerprint
            assert plan.store.examine(plan[name].artifact) == []
        assert plan["ingest"].artifact.digest == local["ingest"].artifact.digest
        for name in ("documents", "text_tokens", "visual_tokens"):
            assert plan["pretokenize"].artifact.metrics[name] == local["pretokenize"].artifact.metrics[name]
        assert again(moved, until="pretokenize") == set()
    assert again(moved, until="train") == {"train"}  # checkpoints and the bundle on S3 too
    assert "unified.safetensors" in storage.list_files(make_plan(load(str(moved)))["train"].uri + "/model")


def test_a_model_is_adapted_to_other_data_and_evaluated(config, tmp_path):
    """From the artifact of this pipeline's model, by an adapter, on pictures that it has not seen."""
    base = make_plan(load(str(config)))
    model = base["train"].artifact
    write_corpus(tmp_path / "corpus")
    for number in range(40):
        picture = 255 - corpora.square(list(corpora.COLOURS)[number % 4], (number % 13, number * 7 % 17), 24)
        name = f"{list(corpora.COLOURS)[number % 4]}/{number}.png"
        storage.write_bytes(str(tmp_path / "corpus" / "images" / name), encode_png(picture))
    values = settings(tmp_path / "corpus", str(config.parent / "store")) | {"name": "adapted"}
    stages = values["stages"]
    stages["tokenizer_image"] = stages["tokenizer_joint"] = None
    values["pins"] = {"tokenizer_joint": base["tokenizer_joint"].fingerprint}
    stages["pretokenize"] = {
        **{key: value for key, value in stages["pretokenize"].items() if key != "vocab_size"},
        "text_tokenizer": model.file("model", "text.json"),
    }
    stages["train"] = {
        **{key: value for key, value in stages["train"].items() if key != "model"},
        "init_from": model.uri,
        "adapter": {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"]},
        "optimizer": {"lr": 2e-2, "warmup_steps": 2},
    }
    (tmp_path / "adapted.yaml").write_text(yaml.safe_dump(values))
    plan = make_plan(load(str(tmp_path / "adapted.yaml")))
    run(plan, Display())
    assert plan.done == {"ingest", "pretokenize", "train", "evaluate"}
    plan = make_plan(load(str(tmp_path / "adapted.yaml")))
    adapted = plan["train"].artifact
    assert plan["train"].status == "cached" and adapted.manifest["outside"]["init_from"]["digest"]
    assert np.isfinite(plan["evaluate"].artifact.metrics["caption_accuracy"])
    before, after = (load_file(Path(a.uri) / "model" / "unified.safetensors") for a in (model, adapted))
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {f"blocks.{n}.{name}.weight" for n in range(2) for name in ("attention.qkv", "mlp.down")}
    assert after.keys() == before.keys() and not storage.exists(adapted.file("adapter"))


def test_killed_with_9_in_training_it_goes_on_from_the_checkpoint(config):
    arguments = [
        str(config),
        "stages.train.steps=400",
        "stages.train.workers.checkpoint_every=20",
        "stages.train.validate_every=200",
    ]
    fingerprint = make_plan(load(arguments[0], arguments[1:]))["train"].fingerprint
    saved = config.parent / "store" / "work" / "train" / fingerprint / "state" / "checkpoints"
    process = subprocess.Popen(
        [OMNILOOM, "run", *arguments, "--until", "train"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(saved.glob("step-*.json")):
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.2)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            if member.is_running():
                os.kill(member.pid, signal.SIGKILL)
        process.wait()
    psutil.wait_procs(family, timeout=10)
    shown = subprocess.run([OMNILOOM, "plan", *arguments, "--json"], capture_output=True, text=True, check=True)
    status = {stage["name"]: stage["status"] for stage in json.loads(shown.stdout)["stages"]}
    assert status == {**dict.fromkeys(NAMES, "cached"), "train": "resume", "evaluate": "run"}
    first = max(int(path.stem.removeprefix("step-")) for path in saved.glob("step-*.json"))
    done = subprocess.run(
        [OMNILOOM, "run", *arguments, "--until", "train"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    artifact = make_plan(load(arguments[0], arguments[1:]))["train"].artifact
    rows = [row for row in history.load(artifact.file("report", "history.jsonl")) if "loss" in row]
    steps = [row["step"] for row in rows]
    assert steps == list(range(2, 401, 2)) and first < 400
    assert [row["units"] for row in rows] == sorted({row["units"] for row in rows})


def losses(plan) -> set[str]:
    rows = history.load(plan["train"].artifact.file("report", "history.jsonl"))
    assert all(np.isfinite(row["flops_per_second"]) for row in rows if "loss" in row)
    return {name for row in rows for name in row if name.endswith("_loss")}


def test_text_alone_needs_no_tokenizer_and_no_pictures(corpus, tmp_path):
    values = settings(corpus, str(tmp_path / "store"))
    stages = values["stages"]
    for name in ("tokenizer_image", "tokenizer_joint"):
        del stages[name]
    stages["ingest"]["sources"] = [s for s in stages["ingest"]["sources"] if s["kind"] in ("text", "jsonl")]
    stages["train"]["objectives"] = {}
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(values))
    assert again(tmp_path / "text.yaml") == {"ingest", "pretokenize", "train", "evaluate"}
    plan = make_plan(load(str(tmp_path / "text.yaml")))
    assert losses(plan) == {"text_loss", "validation_text_loss"}
    metrics = plan["evaluate"].artifact.metrics
    text = {"bits_per_byte", "text_repeated", "text_repeated_real", "export_gap", "gate_passed"}
    assert np.isfinite(metrics["bits_per_byte"]) and metrics["export_gap"] < 1e-6
    assert {name for name in metrics if not name.endswith(("_low", "_high"))} == text
    assert b"Drawn from captions" not in storage.read_bytes(plan["evaluate"].artifact.file("report.html"))
    model = plan["train"].uri
    asked = [[OMNILOOM, "sample", model, "--prompt", "line", *more] for more in (["--text"], [])]
    text, picture = (subprocess.run(ask, capture_output=True, text=True, timeout=120) for ask in asked)
    assert text.returncode == 0 and text.stdout.startswith("line"), text.stderr
    assert picture.returncode == 2 and "was trained on text alone" in picture.stderr
    # Pictures beside the texts are left out, and counted.
    stages["ingest"]["sources"] = settings(corpus, "")["stages"]["ingest"]["sources"]
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(values))
    assert again(tmp_path / "text.yaml", until="pretokenize") == {"ingest", "pretokenize"}
    plan = make_plan(load(str(tmp_path / "text.yaml")))
    ingest, tokens = (plan[name].artifact.metrics for name in ("ingest", "pretokenize"))
    assert tokens["documents"] == ingest["records_text"]
    assert tokens["documents_left_out"] == ingest["records"] - ingest["records_text"] > 0


@pytest.mark.parametrize(
    "packing, expected",
    [
        ({"caption_first": 0}, {"text_loss", "validation_text_loss"}),
        ({"caption_first": 1, "caption_loss": False}, {"visual_loss", "validation_visual_loss"}),
    ],
    ids=["image-to-text", "text-to-image"],
)
def test_pictures_are_only_described_or_only_drawn(config, packing, expected):
    override = f"stages.train.packing={json.dumps({'mixture': {'image': 1}, **packing})}"
    assert again(config, override) == {"train", "evaluate"}
    plan = make_plan(load(str(config), [override]))
    assert losses(plan) == expected
    assert np.isfinite(plan["evaluate"].artifact.metrics["caption_accuracy"])


def test_a_third_tokenizer_stage_and_a_study_of_quantizers(config):
    """Both optional stages: the corpus is encoded by the KL tokenizer, and the report compares the quantizers."""
    values = yaml.safe_load(config.read_text())["stages"]
    joint = {**values["tokenizer_joint"], "workers": {**values["tokenizer_joint"]["workers"], "count": 1}}
    training = {**joint, "model": values["tokenizer_image"]["model"]}
    quantizers = {
        "vq": {"codebook_size": 32, "latent_dim": 4},
        "fsq": {"kind": "fsq", "levels": [4, 4, 3]},
        "kl": {"kind": "kl", "latent_dim": 4},
    }
    overrides = [
        f"stages.tokenizer_kl={json.dumps({**joint, 'quantizer': {'kind': 'kl', 'latent_dim': 6}})}",
        f"stages.quantizer_study={json.dumps({'training': training, 'quantizers': quantizers})}",
    ]
    assert again(config, *overrides) == {"tokenizer_kl", "quantizer_study", "pretokenize", "train", "evaluate"}
    plan = make_plan(load(str(config), overrides))
    assert not plan.to_execute
    kl = plan["tokenizer_kl"].artifact
    assert storage.read_json(kl.file("tokenizer", "config.json"))["quantizer"]["kind"] == "kl"
    tokens = storage.read_json(plan["pretokenize"].artifact.file("tokens.json"))
    assert tokens["visual_digest"] == kl.digest and len(tokens["latent_mean"]) == 6
    study = storage.read_json(plan["quantizer_study"].artifact.file("study.json"))
    assert [row["name"] for row in study["rows"]] == list(quantizers)
    assert all(row["validation_psnr_image"] > 5 and row["validation_psnr_video"] > 5 for row in study["rows"])
    assert "validation_codebook_usage" in study["rows"][1] and "validation_codebook_usage" not in study["rows"][2]
    for html in (plan["evaluate"].artifact.file("report.html"), plan["quantizer_study"].artifact.file("report.html")):
        assert b"Quantizers after 6 steps each" in storage.read_bytes(html)
    assert plan["quantizer_study"].artifact.metrics["fsq_psnr_image"] == study["rows"][1]["validation_psnr_image"]


def test_a_study_of_objectives_keeps_what_a_killed_run_had_finished(config):
    values = yaml.safe_load(config.read_text())["stages"]
    training = {**values["train"], "steps": 6, "workers": {"count": 1, "log_every": 2}}
    study = {
        "training": training,
        "objectives": {"masked": "masked_code", "pixels": "pixel_diffusion"},
        "evaluation": {
            name: values["evaluate"][name]
            for name in ("drawings", "captions", "texts", "num_steps", "class_examples", "cpus")
        },
    }
    overrides = ["stages.pretokenize.pixel_patch=8", f"stages.objective_study={json.dumps(study)}"]
    fingerprint = make_plan(load(str(config), overrides))["objective_study"].fingerprint
    state = config.parent / "store" / "work" / "objective_study" / fingerprint / "state"
    process = subprocess.Popen(
        [OMNILOOM, "run", str(config), *overrides, "--until", "objective_study"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not (state / "masked" / "measured.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, "no model was measured"
            time.sleep(0.2)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            if member.is_running():
                os.kill(member.pid, signal.SIGKILL)
        process.wait()
    psutil.wait_procs(family, timeout=10)
    first = storage.read_json(str(state / "masked" / "metrics.json"))
    assert planned(config, *overrides)["objective_study"][0] == "resume"
    assert again(config, *overrides) == {"objective_study", "train", "evaluate"}
    plan = make_plan(load(str(config), overrides))
    artifact = plan["objective_study"].artifact
    rows = storage.read_json(artifact.file("study.json"))["rows"]
    assert [(row["name"], row["objective"]) for row in rows] == list(study["objectives"].items())
    kept = [row for row in history.load(artifact.file("masked", "report", "history.jsonl")) if "loss" in row]
    assert kept[-1]["units"] == first["units"] and kept[-1]["loss"] == first["loss"]
    for row in rows:
        figures = ("image_class_agreement", "caption_accuracy", "caption_exact", "bits_per_byte", "training_seconds")
        assert all(np.isfinite(row[name]) for name in figures)
        assert storage.exists(artifact.file(row["name"], "report", "drawn_images.png"))
        assert artifact.metrics[f"{row['name']}_parameters"] == row["parameters"] > 0
    for html in (plan["evaluate"].artifact.file("report.html"), artifact.file("report.html")):
        assert b"Models after 6 steps each, on the test split" in storage.read_bytes(html)
