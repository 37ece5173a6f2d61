"""A PostgreSQL server of a test's own, on 127.0.0.1, in a folder that goes with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAMS = [shutil.which(name) for name in ("initdb", "postgres", "pg_ctl")]
_DRIVER = importlib.util.find_spec("psycopg") or importlib.util.find_spec("psycopg2")
needs_postgres = pytest.mark.skipif(
    None in _PROGRAMS or _DRIVER is None, reason="no PostgreSQL server, or no psycopg (omniloom[postgres])"
)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = os.geteuid() == 0  # as whom the server does not run
    owner = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)

    def call(program: str | None, *arguments: str) -> None:
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if root else {}
        done = subprocess.run(
            [str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=120, **user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    initdb, _, pg_ctl = _PROGRAMS
    try:
        call(initdb, "-D", f"{folder}/data", "-U", "tracker", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=100"
        call(pg_ctl, "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://tracker@127.0.0.1:{port}/postgres"
        finally:
            call(pg_ctl, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
