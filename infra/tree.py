"""This tree as files: copied for a process elsewhere that has no omniloom, and the commit that it is of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import omniloom

ROOMS = ("pipelines", "stages", "models", "infra")
_ROOT = Path(__file__).resolve().parents[1]


def copy_tree(folder: Path) -> Path:
    """Copy the package into `folder`, which then is what has to be on a path; returns the package's folder there.

    That is the four rooms without caches and, in the file REVISION, the commit.
    """
    shipped = folder / "omniloom"
    for room in ROOMS:
        shutil.copytree(_ROOT / room, shipped / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy2(omniloom.__file__, shipped)
    (shipped / "REVISION").write_text(revision() or "")
    return shipped


def revision() -> str | None:
    """The commit of the checkout that runs, with `+changes` where it is not clean; None outside a checkout.

    A tree that was shipped has it in the file REVISION.
    """
    if (shipped := _ROOT / "REVISION").exists():
        return shipped.read_text().strip() or None
    if not (_ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
