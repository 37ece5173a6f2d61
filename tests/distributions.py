"""Distributions put on the path as pip would put them: modules, and metadata with real entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).parents[1] / "examples"


def install(folder: Path, target: Path) -> Path:
    """Install the distribution in `folder`, a pyproject.toml and its modules, into `target`, which it gives back."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    metadata = target / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = project["project"].get("entry-points", {})
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    for module in project["tool"]["setuptools"]["py-modules"]:
        shutil.copy2(folder / f"{module}.py", target)
    return target


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


_COMMANDS = """
import contextlib, io, json, sys
from omniloom.pipelines.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["omniloom", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


def omniloom(site: Path, *commands: Sequence[str], cwd: Path | None = None) -> list[Answer]:
    """What `omniloom` answers to each of the commands, with the distributions in `site` installed. One process, begun
    anew, runs them one after the other, since importing takes longer than answering does."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps([list(map(str, command)) for command in commands])],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout)]
