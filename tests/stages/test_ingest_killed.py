"""Ingest that is killed at any moment goes on and gives the same files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sources_read import picture

from omniloom.infra import storage

RUN = """
import json, sys
from types import SimpleNamespace
from omniloom.stages.ingest import stage

given = json.loads(sys.argv[1])
stage._by_ray = lambda groups, *rest: (list(stage.ingest_group(group, *rest)) for group in groups)
context = SimpleNamespace(
    config=stage.Config.model_validate(given["config"]),
    output=given["work"] + "/output",
    state=given["work"] + "/state",
    predecessor=None,
    progress=lambda *a, **k: None,
)
print("begun", flush=True)
print(json.dumps(stage.run(context)))
"""


def start(config: dict, work: Path) -> subprocess.Popen:
    given = json.dumps({"config": config, "work": str(work)})
    made = subprocess.Popen([sys.executable, "-c", RUN, given], stdout=subprocess.PIPE, text=True)
    assert made.stdout and made.stdout.readline() == "begun\n"
    return made


@pytest.mark.slow
def test_ingest_killed_at_twenty_moments_gives_the_same(tmp_path):
    for n in range(160):
        storage.write_bytes(f"{tmp_path}/in/{n:03d}.png", picture(n % 150, 96))
    lines = [json.dumps({"image": f"{n % 160:03d}.png", "caption": f"picture {n}"}) for n in range(400)]
    storage.write_bytes(f"{tmp_path}/in/all.jsonl", "\n".join(lines).encode())
    storage.write_bytes(f"{tmp_path}/text/a.txt", b"".join(b"line %d of a text\n" % n for n in range(20_000)))
    config = {
        "sources": [
            {"kind": "image_folder", "uri": f"{tmp_path}/in"},
            {
                "kind": "jsonl",
                "uri": f"{tmp_path}/in",
                "image_field": "image",
                "caption_field": "caption",
                "name": "rows",
            },
            {"kind": "text", "uri": f"{tmp_path}/text"},
        ],
        "shard_bytes": 600_000,
        "shard_items": 100,
    }
    began = time.monotonic()
    whole = start(config, tmp_path / "whole")
    metrics = json.loads(whole.communicate()[0])
    seconds = time.monotonic() - began
    draw = random.Random(11)
    for _ in range(20):
        killed = start(config, tmp_path / "killed")
        time.sleep(draw.uniform(0, seconds / 4))
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert json.loads(start(config, tmp_path / "killed").communicate()[0]) == metrics
    files = storage.list_files(f"{tmp_path}/whole/output")
    assert files == storage.list_files(f"{tmp_path}/killed/output") and len(files) > 20
    for name in files:
        one, other = ((tmp_path / run / "output" / name).read_bytes() for run in ("whole", "killed"))
        assert one == other, name
