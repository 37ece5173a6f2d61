"""The notebook of the demo: its cells, run one after the other as a person does, over a demo of few steps."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import omniloom

NOTEBOOK = Path(__file__).parents[2] / "examples" / "demo.ipynb"
# The same stages on the same digits, a few steps each.
SMALL = [
    "stages.tokenizer_joint=null",
    *(f"stages.tokenizer_image.{name}" for name in ("steps=4", "validate_every=4", "data.image_batch=8")),
    "stages.tokenizer_image.loss.adversarial_start=2",
    "stages.tokenizer_image.loss.adversarial_ramp=1",
    *(f"stages.train.{name}" for name in ("steps=4", "validate_every=4", "batch_rows=2", "samples.count=0")),
    "stages.train.model={width: 32, layers: 1, heads: 2, time_dim: 16}",
    "stages.evaluate={drawings: 4, captions: 4, texts: 4, reconstructions: 4, retrieval_captions: 4}",
]


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells(found))
    return ["".join(cell["source"]) for cell in code_cells(found)]


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_calls_what_there_is():
    """Each cell parses, and every name of the package that it uses is public."""
    used = {
        node.attr
        for cell in cells()
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "omniloom"
    }
    assert used == {"plan", "run", "load", "TextSampling", "sample", "lineage", "export"}
    assert all(callable(getattr(omniloom, name)) for name in used)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, cell in enumerate(cells()):
        exec(compile(cell, f"cell {number}", "exec"), names)
        if number == 0:
            names["overrides"] = SMALL
    assert names["pictures"].shape == (3, 32, 32, 3) and [path.exists() for path in names["files"]] == [True]
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert any(edge["to"].startswith("train/") for edge in names["graph"]["edges"])
    # A second visit finds everything done.
    assert {stage.status for stage in omniloom.plan("demo", SMALL).stages} == {"cached"}
