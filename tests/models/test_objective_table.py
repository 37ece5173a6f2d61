"""The table of objectives: fixed random streams, and rows that another distribution adds."""

from __future__ import annotations

import os
import subprocess
import sys

from distributions import install

from omniloom.models.unified.representations import OBJECTIVES, REPRESENTATIONS, VisualObjective

PROJECT = """
[project]
name = "my-objective"
version = "1.0"
[project.entry-points."omniloom.objectives"]
half_code = "my_objective:ROW"
[tool.setuptools]
py-modules = ["my_objective"]
"""
ROW = """
from omniloom.models.unified.representations import REPRESENTATIONS, VisualObjective
DRAW = "omniloom.models.unified.generation.draw:unmask"
ROW = VisualObjective("half_code", REPRESENTATIONS["codes"], {stream}, "my_objective:Loss", DRAW)
"""


def test_the_streams_of_the_draws_never_change():
    """Those that runs have been made with: noise 0 to 3, masks of patches 4 and 5."""
    rows = {name: (row.draw_stream, row.mask_stream) for name, row in OBJECTIVES.items()}
    assert rows == {
        "latent_diffusion": (0, 4),
        "pixel_diffusion": (1, 5),
        "next_code": (2, 6),
        "masked_code": (3, 7),
    }


def test_no_two_streams_are_one():
    def row(stream: int) -> VisualObjective:
        return VisualObjective("x", REPRESENTATIONS["codes"], stream, "", "")

    numbers = [n for stream in range(100) for n in (row(stream).draw_stream, row(stream).mask_stream)]
    assert len(set(numbers)) == 200


def plan(tmp_path, stream: int) -> subprocess.CompletedProcess:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "my_objective.py").write_text(ROW.format(stream=stream))
    environment = {**os.environ, "PYTHONPATH": str(install(tmp_path, tmp_path / "site")), "COLUMNS": "300"}
    command = "from omniloom.pipelines.cli import main; main()"
    arguments = ["plan", "demo", f"storage={tmp_path}", "stages.train.objectives={half_code: 1}"]
    return subprocess.run(
        [sys.executable, "-c", command, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def test_one_of_another_distribution_is_known_to_the_config(tmp_path):
    done = plan(tmp_path, 16)
    assert done.returncode == 0, done.stderr


def test_one_without_a_stream_of_its_own_is_refused_by_name(tmp_path):
    done = plan(tmp_path, 3)
    assert done.returncode == 2 and "stages.train.objectives" in done.stderr
    assert "half_code" in done.stderr
