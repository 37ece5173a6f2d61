"""`omniloom compare`: what it takes for an evaluation, what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.pipelines.compared import find_items
from omniloom.stages.evaluate.items import values_of, write


def evaluation(root, fingerprint: str, model: str, better: float, ended: float = 1.0) -> str:
    """An evaluation's artifact, of a model's; the better the fewer bits."""
    folder = str(root / "artifacts" / "evaluate" / fingerprint)
    bits = 2 - better + 0.1 * np.random.default_rng(len(fingerprint)).normal(size=50)
    ids = [str(number) for number in range(50)]
    write(folder, {"bits_per_byte": values_of(ids, bits), "caption_exact": values_of(ids, bits > 2)})
    facts = {"inputs": {"train": model}, "times": {"ended_unix": ended}, "pipeline": "demo"}
    storage.write_json(f"{folder}/manifest.json", facts)
    made = str(root / "artifacts" / "train" / model)
    storage.write_json(f"{made}/manifest.json", {"inputs": {}, "times": {"ended_unix": 0.0}})
    storage.write_bytes(f"{made}/model/config.json", b"{}")
    return folder


@pytest.fixture
def root(tmp_path):
    for fingerprint, model, better, ended in (("e1", "m1", 0.0, 1.0), ("e2", "m2", 0.3, 1.0), ("e22", "m2", 0.5, 2.0)):
        evaluation(tmp_path, fingerprint, model, better, ended)
    return tmp_path


def bits(name) -> float:
    return find_items(str(name))["bits_per_byte"].mean


def test_an_evaluation_is_found_by_its_folder_its_model_and_its_run(root):
    own = bits(root / "artifacts/evaluate/e22")
    assert own < bits(root / "artifacts/evaluate/e2") < bits(root / "artifacts/evaluate/e1")
    assert bits(root / "artifacts/train/m2") == bits(root / "artifacts/train/m2/model/") == own, "the newest"
    storage.write_json(str(root / "runs/r.json"), {"stages": {"evaluate": {"fingerprint": "e1"}, "train": {}}})
    assert bits(root / "runs/r.json") == bits(root / "artifacts/evaluate/e1")
    config = root / "p.yaml"
    config.write_text(f"name: demo\nstorage: {root}\nstages: {{}}\n")
    manifest = storage.read_json(str(root / "artifacts/evaluate/e2/manifest.json"))
    storage.write_json(str(root / "pipelines/demo/evaluate.json"), {"fingerprint": "e2", "manifest": manifest})
    assert bits(config) == bits(root / "artifacts/evaluate/e2")


def test_what_is_no_evaluation_says_so(root):
    storage.write_json(str(root / "artifacts/train/m3/manifest.json"), {"inputs": {}})
    storage.write_json(str(root / "runs/r.json"), {"stages": {"train": {"fingerprint": "m1"}}})
    storage.write_json(str(root / "artifacts/evaluate/old/manifest.json"), {"inputs": {}})
    (root / "p.yaml").write_text(f"name: other\nstorage: {root}\nstages: {{}}\n")
    for name, said in (
        ("artifacts/train/m3", "no evaluation of it"),
        ("runs/r.json", "of a run without an evaluation"),
        ("artifacts/evaluate/old", "kept no values by item"),
        ("artifacts", "is no evaluation; expected an evaluation's artifact"),
        ("nothing", "no such evaluation"),
        ("p.yaml", "has no evaluation in"),
    ):
        with pytest.raises(InputError, match=said):
            find_items(str(root / name))


def command(*arguments) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "omniloom.pipelines.cli", "compare", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True)


def test_the_command_prints_what_is_better_and_exits_as_is_required(root):
    models = [root / "artifacts/train" / name for name in ("m1", "m2")]
    told = command(*models, "--require", "better", "--figure", "bits_per_byte")
    assert told.returncode == 0 and "B is better" in told.stdout, told.stderr
    (row,) = [line.split() for line in told.stdout.splitlines() if line.startswith("bits_per_byte")]
    assert row[-1] == "better" and row[-2] == "50" and row[3].startswith("-0.")
    assert "another seed of the same recipe may differ by as much" in told.stdout
    back = command(*reversed(models), "--require", "no-worse", "--json", "--figure", "bits_per_byte")
    found = json.loads(back.stdout)
    assert back.returncode == 1 and found["decision"] == "worse" and found["figures"][0]["decision"] == "worse"
    assert command(*reversed(models)).returncode == 0, "what is worse is no error unless asked for"
    wrong = command(*models, "--figure", "bits_per_bite")
    assert wrong.returncode == 2 and "did you mean 'bits_per_byte'" in wrong.stderr
    same = command(models[0], models[0], "--require", "better")
    assert same.returncode == 1 and "undecided" in same.stdout and "another seed" not in same.stdout


def test_several_trainings_of_each_recipe(root):
    for number, better in enumerate((0.01, 0.0, -0.01, 0.9, 0.91, 0.89)):
        evaluation(root, f"s{number}", f"n{number}", better)
    folders = [f"{root}/artifacts/evaluate/s{number}" for number in range(6)]

    done = command(",".join(folders[:3]), ",".join(folders[3:]), "--figure", "bits_per_byte", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["decision"] == "better"
    assert found["figures"][0]["difference"] == pytest.approx(-0.9)
    told = command(",".join(folders[:3]), ",".join(folders[3:]), "--figure", "bits_per_byte").stdout
    assert "B is better" in told and "another seed" not in told
    for arguments, words in (
        ((folders[0], ",".join(folders[3:])), ("A: is one training, against 3", "at least 2")),
        ((f"{folders[0]},{folders[0]}", ",".join(folders[3:])), ("stands twice",)),
        ((f"{folders[0]},,", ",".join(folders[3:])), ("single commas",)),
    ):
        done = command(*arguments)
        told = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 2 and all(word in told for word in words), told
