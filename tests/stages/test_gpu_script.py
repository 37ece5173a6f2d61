"""The script for a machine with a GPU runs here in small: each of its parts ends well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=550)


@pytest.mark.slow
def test_every_part_runs_in_small():
    done = run("--small")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout[done.stdout.rindex("\n\n") :].split("\n")
    parts = [line.split()[:2] for line in last if line]
    assert [name for name, _ in parts] == [
        "train-1",
        "train-2",
        "flex",
        "gau",
        "unet",
        "flow",
        "generate",
        "precision",
    ]
    assert {how for _, how in parts} == {"ok"}
    for said in (
        "useful tokens/s",
        "a checkpoint holds up",
        "against the dense mask",
        "pictures in",
        "bf16 against fp32",
    ):
        assert said in done.stdout


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(tmp_path):
    copy = tmp_path / "gpu.py"
    text = SCRIPT.read_text().replace("HERE = Path(__file__).resolve()", f"HERE = Path({str(SCRIPT)!r})")
    text = text.replace("command = [sys.executable, str(HERE),", f"command = [sys.executable, {str(copy)!r},")
    copy.write_text(text.replace('"""Outputs and gradients', 'raise MemoryError\n    """Outputs and gradients'))
    done = subprocess.run(
        [sys.executable, copy, "--small", "--parts", "flex", "generate"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "flex       failed with 1" in done.stdout and "generate   ok" in done.stdout
