"""The example of functions of one's own: its config is one, and its functions do what they say, through the stage."""

from __future__ import annotations

import sys
import time

import pytest
import yaml
from curation_cases import Drawn, curated, ingested, jsonl, put, saved
from distributions import EXAMPLES

from omniloom.infra import storage
from omniloom.stages.curate import stage as curate


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "curation_function"))
    yield yaml.safe_load((EXAMPLES / "curation_function" / "curation.yaml").read_text())
    sys.modules.pop("my_rules", None)


def test_the_example_curates_pictures_and_texts(example):
    root = f"memory://example-{time.monotonic_ns()}"
    drawn = Drawn(41)
    captions = {"a.png": "DSC_0041.jpg", "b.png": "IMG_1234 two dogs on a beach", "c.png": "a red kite"}
    files = {name: saved(drawn.photo()) for name in captions}
    rows = jsonl({"file": name, "caption": caption} for name, caption in captions.items())
    texts = {"calm.txt": drawn.prose(), "loud.txt": drawn.prose().upper()}
    corpus = ingested(
        root,
        {
            "kind": "image_folder",
            "uri": put(f"{root}/p", {**files, "m.jsonl": rows}),
            "captions": {"manifest": "m.jsonl"},
        },
        {"kind": "text", "uri": put(f"{root}/t", texts)},
    )
    steps = example["stages"]["curate"]["steps"]
    found = curated(root, corpus, *steps)
    assert {row["path"]: row["caption"] for row in found.rows} == {
        "b.png": "two dogs on a beach",
        "c.png": "a red kite",
        "calm.txt": None,
    }
    assert {line["path"]: line["reason"] for line in found.left}["a.png"] == "my_rules:clean_captions"
    assert "% capitals" in {line["path"]: line["reason"] for line in found.left}["loud.txt"]
    assert curate.listing(found.context.config)[0]["function"] == "my_rules:clean_captions"
    storage.remove(root)
