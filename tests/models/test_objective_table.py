"""The table of objectives: fixed random streams, and rows that another distribution adds."""

from __future__ import annotations

import pytest
from distributions import Answer, install, omniloom

from omniloom.models.unified.representations import OBJECTIVES, REPRESENTATIONS, VisualObjective

PROJECT = """
[project]
name = "my-objective"
version = "1.0"
[project.entry-points."omniloom.objectives"]
POINTS
[tool.setuptools]
py-modules = ["my_objective"]
"""
MODULE = """
from omniloom.models.unified.representations import REPRESENTATIONS, VisualObjective
DRAW = "omniloom.models.unified.generation.draw:unmask"
"""


def test_the_streams_of_the_draws_never_change():
    """Those that runs have been made with: noise 0 to 3, masks of patches 4 and 5."""
    rows = {name: (row.draw_stream, row.mask_stream) for name, row in OBJECTIVES.items()}
    assert rows == {
        "latent_diffusion": (0, 4),
        "pixel_diffusion": (1, 5),
        "next_code": (2, 6),
        "masked_code": (3, 7),
        "next_latent": (8, 12),
    }


def test_no_two_streams_are_one():
    def row(stream: int) -> VisualObjective:
        return VisualObjective("x", REPRESENTATIONS["codes"], stream, "", "")

    numbers = [n for stream in range(100) for n in (row(stream).draw_stream, row(stream).mask_stream)]
    assert len(set(numbers)) == 200


def plan(tmp_path, rows: dict[str, str], objective: str = "half_code") -> Answer:
    """The demo's plan with an objective of a distribution that offers these rows."""
    points = "".join(f'{name} = "my_objective:{name.upper()}"\n' for name in rows)
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace("POINTS", points))
    lines = "".join(f"{name.upper()} = {row}\n" for name, row in rows.items())
    (tmp_path / "my_objective.py").write_text(MODULE + lines)
    site = install(tmp_path, tmp_path / "site")
    (done,) = omniloom(site, ["plan", "demo", f"storage={tmp_path}", f"stages.train.objectives={{{objective}: 1}}"])
    return done


def row(name: str, stream: int) -> str:
    return f'VisualObjective("{name}", REPRESENTATIONS["codes"], {stream}, "my_objective:Loss", DRAW)'


def test_one_of_another_distribution_is_known_to_the_config(tmp_path):
    done = plan(tmp_path, {"half_code": row("half_code", 16)})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "rows, objective, reason",
    [
        (
            {"half_code": row("half_code", 3)},
            "half_code",
            "offered by my-objective 1.0, my_objective:HALF_CODE has the random stream 3, expected a number of its own",
        ),
        (
            {"half_code": row("half_code", 20), "other_code": row("other_code", 20)},
            "other_code",
            "offered with the random stream 20, which is that of half_code",
        ),
        ({"half_code": row("whole_code", 16)}, "half_code", "is the objective 'whole_code', expected the name of its"),
        ({"half_code": "3"}, "half_code", "is no omniloom.models.unified.representations.VisualObjective but a int"),
        ({"half_code": "1 / 0"}, "half_code", "cannot be loaded: ZeroDivisionError: division by zero"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_reason(tmp_path, rows, objective, reason):
    done = plan(tmp_path, rows, objective)
    told = " ".join(done.stderr.split())
    assert done.returncode == 2 and f"stages.train.objectives.{objective}: {objective} cannot be used; it is " in told
    assert reason in told, done.stderr
