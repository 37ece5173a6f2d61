"""Compiled code stays on its machine: a training that starts again there, and each further rank, compiles nothing that
was compiled before."""

from __future__ import annotations

import os

from omniloom.infra import storage


def keep() -> None:
    """From now on compiled code is kept below `storage.cache_folder()`, and taken from there; in another folder where
    TORCHINDUCTOR_CACHE_DIR names one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.cache_folder() / "compiled"))
