"""Curation that is killed at random moments, on a disk: the next run goes on, and the artifact is the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from curation_cases import Drawn, ingested, jsonl, put, saved

from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_mp4

STEPS = [
    {"kind": "near_pictures"},
    {"kind": "blur"},
    {"kind": "scenes"},
    {"kind": "near_captions"},
    {"kind": "near_texts"},
    {"kind": "size", "min_side": 10},
]
# The whole stage in one process: what a worker does with a shard is called in place of being sent to one.
BODY = """
import sys, json
from types import SimpleNamespace
from omniloom.stages.curate import stage
stage._by_ray = lambda work, tasks, workers: ((task["shard"], work(task)) for task in tasks)
steps, corpus, root = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
places = {"output": f"{root}/output", "state": f"{root}/state"}
config, records = stage.Config(steps=steps), SimpleNamespace(uri=corpus)
context = SimpleNamespace(config=config, records=records, progress=lambda *a, **k: None, **places)
print("begins", flush=True)
stage.run(context)
"""


def corpus(root: str) -> str:
    import numpy as np

    drawn = Drawn(51)
    files, rows = {}, []
    for number in range(60):
        pixels = drawn.photo(60, 80)
        suffix, data = drawn.copy(pixels, number)
        files |= {f"{number:02d}a.png": saved(pixels), f"{number:02d}b.{suffix}": data}
        rows.append({"file": f"{number:02d}a.png", "caption": f"a {drawn.words(3 + number % 2)}"})
    said = [drawn.prose() for _ in range(60)]
    said += [drawn.reworded(text, 0.05) for text in said]
    scenes = [[drawn.photo(48, 64)] * 8 for _ in range(12)]
    clips = {f"{n}.mp4": encode_mp4(np.stack(scenes[n] + scenes[n + 1]), 8) for n in range(0, 12, 2)}
    return ingested(
        root,
        {
            "kind": "image_folder",
            "uri": put(f"{root}/p", {**files, "m.jsonl": jsonl(rows)}),
            "captions": {"manifest": "m.jsonl"},
        },
        {"kind": "video_folder", "uri": put(f"{root}/v", clips)},
        {"kind": "jsonl", "uri": put(f"{root}/t", {"t.jsonl": jsonl({"t": t} for t in said)}), "text_field": "t"},
        shard_items=12,
    )


def start(folder, uri: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BODY, json.dumps(STEPS), uri, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "begins\n"
    return process


def hashes(folder: str) -> dict[str, str]:
    return {name: storage.sha256(f"{folder}/{name}") for name in storage.list_files(folder)}


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_artifact(tmp_path):
    root = f"memory://killed-{time.monotonic_ns()}"
    source = corpus(root)
    uri = str(tmp_path / "corpus")
    for name in storage.list_files(source):
        storage.write_bytes(f"{uri}/{name}", storage.read_bytes(f"{source}/{name}"))
    storage.remove(root)
    began = time.monotonic()
    assert start(tmp_path / "whole", uri).wait() == 0
    seconds = time.monotonic() - began
    expected = hashes(f"{tmp_path}/whole/output")
    moments, kills = random.Random(7), 0
    for attempt in range(20):
        folder = tmp_path / f"killed{attempt // 5}"  # four artifacts, each killed up to five times
        process = start(folder, uri)
        try:
            process.wait(moments.uniform(0.0, 0.4 * seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 10
    for number in range(4):
        folder = tmp_path / f"killed{number}"
        assert start(folder, uri).wait() == 0
        assert hashes(f"{folder}/output") == expected
    rows = list(records.iterate(f"{tmp_path}/whole/output"))
    assert sum(row["kind"] == "video" for row in rows) == 12 and sum(row["kind"] == "text" for row in rows) == 60
