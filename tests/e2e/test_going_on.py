"""A small pipeline of pictures and texts on Ray whose training goes on with more data, on fewer workers, under another
mixture: tokenizers stay, the books go on, and `who-saw` tells whose step saw which file."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from test_parts import Folder

from omniloom.infra import storage
from omniloom.stages.data.media.decode import encode_png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("going_on"))
    for number in range(12):
        pixels = np.full((16, 16, 3), 200 - 9 * number, np.uint8)
        pixels[:, number] = 7 * number
        storage.write_bytes(str(made.folder / "more" / f"{number}.png"), encode_png(pixels))
    return made


def source(folder: Folder, name: str) -> dict:
    return {"kind": "image_folder", "uri": str(folder.folder / name), "name": name, "captions": {"from": "file"}}


def stages(folder: Folder, *names: str, **train) -> dict:
    text = {"kind": "text", "uri": str(folder.folder / "pictures"), "include": "*.txt", "name": "texts"}
    return {
        "ingest": {"sources": [text, *(source(folder, name) for name in names)]},
        "tokenizer_image": {},
        "pretokenize": {"image_size": 16, "vocab_size": 300},
        "train": {
            "workers": {"count": 2, "checkpoint_every": 2},
            "packing": {"length": 64, "window_rows": 4},
            "batch_rows": 4,
            "steps": 4,
            "keep_checkpoint": True,
            **train,
        },
    }


def who_saw(folder: Folder, file: str) -> dict:
    done = command(folder, "who-saw", str(folder.folder / file), "part.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def command(folder: Folder, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "omniloom.pipelines.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder.folder,
    )


def test_a_training_goes_on_with_more_data_and_fewer_workers(folder):
    folder.run(stages(folder, "pictures"))
    first, tokenizer, tokens = (folder.made(name) for name in ("train", "tokenizer_image", "pretokenize"))
    before = who_saw(folder, "pictures/1.png")
    (used,) = before["trainings"]
    assert used["training"] == first.fingerprint and used["uses"] and before["models"][0]["digest"] == first.digest
    assert [learner["stage"] for learner in before["learnt_from"]] == ["tokenizer_image", "pretokenize"]

    changes = {
        "continue_from": {"training": first.fingerprint, "step": 4},
        "steps": 10,
        "workers": {"count": 1},
        "packing": {"length": 64, "window_rows": 4, "mixture": {"image": 0.9}},
    }
    changed = stages(folder, "pictures", "more", **changes)
    with pytest.raises(AssertionError) as refused:
        folder.run(changed, command="plan")
    assert f"pins.tokenizer_image={tokenizer.fingerprint}" in str(refused.value)
    assert f"set it to {tokens.file('text.json')}" in str(refused.value)

    changed["pretokenize"]["text_tokenizer"] = tokens.file("text.json")
    out = folder.run(changed, pins={"tokenizer_image": tokenizer.fingerprint})
    second = folder.made("train")
    assert second.fingerprint != first.fingerprint and second.metrics["steps"] == 10 and second.uri in out
    ledger = storage.load_json(second.file("ledger.json"))
    assert [(p["step"], p["rows"], p["training"]) for p in ledger["periods"]] == [
        (0, 0, first.fingerprint),
        (4, 16, second.fingerprint),
    ]
    curve = storage.read_bytes(second.file("report", "history.jsonl")).decode().splitlines()
    assert [json.loads(line)["step"] for line in curve if '"loss"' in line] == [2, 4, 10]

    after = {one["training"]: one for one in who_saw(folder, "pictures/1.png")["trainings"]}
    shared = [use for use in after[second.fingerprint]["uses"] if use["step"] < 4]
    assert shared == after[first.fingerprint]["uses"] == used["uses"]
    added = [who_saw(folder, f"more/{number}.png") for number in range(12)]
    uses = [use for one in added for training in one["trainings"] for use in training["uses"]]
    assert uses and {use["training"] for use in uses} == {second.fingerprint} and min(u["step"] for u in uses) >= 4
    assert not any(one["stage"] == "tokenizer_image" for found in added for one in found["learnt_from"])
