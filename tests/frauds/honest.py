"""The honest model of these tests: the demo's pipeline up to its training, by the command, in a folder of its own; 4
minutes on 2 cores. With OMNILOOM_FRAUDS=FOLDER it is made there once and taken from there afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from omniloom.infra.artifacts import Artifact, ArtifactStore

ROLES = {"records": "ingest", "tokenizer": "tokenizer_joint", "tokens": "pretokenize", "model": "train"}


def trained(storage: Path) -> dict[str, Artifact]:
    """The artifacts by role; `keep_checkpoint` keeps the weights beside their moving average."""
    program = [sys.executable, "-m", "omniloom.pipelines.cli", "run", "demo", "--until", "train"]
    changed = [f"storage={storage}", "stages.train.keep_checkpoint=true"]
    done = subprocess.run([*program, *changed], capture_output=True, text=True, cwd=storage.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {role: ArtifactStore(str(storage)).last_used("demo", stage) for role, stage in ROLES.items()}
    assert all(found.values())
    return found
