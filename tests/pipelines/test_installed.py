"""Extensions in Ray's workers: the ones that the command has, or a refusal that names both places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import EXAMPLES, install

from omniloom.models.extensions import located, modules_of

SOURCE = """
from typing import Literal

from omniloom.stages.ingest.kinds import SourceConfig, SourceKind


class Config(SourceConfig):
    kind: Literal["{name}"]


class Kind(SourceKind):
    Config, suffixes = Config, (".{name}",)

    @classmethod
    def makes(cls, config):
        return "text"

    def read(self, item):
        from omniloom.stages.ingest import rows

        yield rows.text_row("{text}", 1)
"""
PIPELINE = """
name: parts
storage: runs
stages:
  ingest:
    sources: [{kind: first, uri: a.first}, {kind: second, uri: a.second}]
"""


def distribution(folder: Path, name: str, text: str = "") -> None:
    """A distribution with a source kind of this name, on the path of what has `folder` on its path."""
    project = folder.parent / f"{folder.name}-{name}"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "{name}-source"\nversion = "1.0"\n'
        f'[project.entry-points."omniloom.sources"]\n{name} = "{name}_source:Kind"\n'
        f'[tool.setuptools]\npy-modules = ["{name}_source"]\n'
    )
    (project / f"{name}_source.py").write_text(SOURCE.format(name=name, text=text))
    install(project, folder)


def test_a_module_is_known_by_where_it_lies_and_what_it_holds(tmp_path, monkeypatch):
    for name in ("installed", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a_part.py").write_text("PART = 1\n")
    (tmp_path / "elsewhere/a_part.py").rename(tmp_path / "elsewhere/same_part.py")
    (tmp_path / "elsewhere/empty_part").mkdir()
    for name in ("installed", "elsewhere"):
        monkeypatch.syspath_prepend(tmp_path / name)
    found = located(["a_part", "same_part", "empty_part", "no_part", "no_part.inside"])
    assert found["a_part"][0] == str(tmp_path / "installed/a_part.py")
    assert found["a_part"][1] == found["same_part"][1] != ""
    assert found["empty_part"] == (f"a folder without code, {tmp_path / 'elsewhere/empty_part'}", "")
    assert found["no_part"] == found["no_part.inside"] == ("not found", "")


def test_the_modules_of_the_parts_that_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(EXAMPLES / "filter_stage", tmp_path / "stage"))
    monkeypatch.syspath_prepend(install(EXAMPLES / "simvq_quantizer", tmp_path / "quantizer"))
    groups = ("omniloom.stages", "omniloom.quantizers")
    found = modules_of(groups, {"filter_records", "vq"})
    assert list(found) == ["filter_stage"] and found["filter_stage"].startswith("filter-stage ")
    assert list(modules_of(groups, {"filter_records", "simvq"})) == ["filter_stage", "simvq_quantizer"]
    assert modules_of(groups[1:], {"filter_records"}) == {}


@pytest.mark.slow
def test_workers_take_the_extensions_of_the_command_or_are_refused(tmp_path):
    """A folder of the user's hides none, whether it is a package or not; a worker that would take other code does not
    come to work."""
    site, other, folder = (tmp_path / name for name in ("site", "other", "work"))
    for name in ("first", "second"):
        distribution(site, name, text=f"{name} as installed")
    folder.mkdir()
    for name in ("a.first", "a.second"):
        (folder / name).write_text("read")
    (folder / "parts.yaml").write_text(PIPELINE)
    (folder / "first_source").mkdir()
    (folder / "first_source/__init__.py").write_text("")
    (folder / "second_source").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [Path(sys.executable).parent / "omniloom", "run", "parts.yaml", "cluster.num_cpus=2"]

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *overrides],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    done = run()
    assert done.returncode == 0 and "records 2" in done.stderr, done.stdout + done.stderr
    (other / "second_source").mkdir(parents=True)
    (other / "first_source.py").write_text((site / "first_source.py").read_text())
    refused = run(f"cluster.env={{PYTHONPATH: {other}}}", "--force", "ingest")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    here, there = site / "second_source.py", f"a folder without code, {other / 'second_source'}"
    assert f"second_source of the distribution second-source 1.0 is {here} here, and {there} in Ray's workers on" in (
        refused.stderr
    )
    assert "first_source" not in refused.stderr, "the same code at another place is the same extension"
