"""pytest in forked children of a process that has imported torch already. In: a copy of the tree, tests. Out: which
lines each test runs and how long it takes, or whether one of them fails.

Importing torch costs more than most tests. The parent imports nothing of the tree: each child imports it as its files
are at that moment. A child that does not end is killed by its use of the CPU, which other work on the machine does not
lengthen, and by the wall clock.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import json
import os
import py_compile
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Roots of packages that are safe to have been imported before a fork; those that start threads are left to the child.
_IMPORTED_BEFORE = {
    "PIL",
    "_pytest",
    "av",
    "coverage",
    "fsspec",
    "hypothesis",
    "jinja2",
    "numpy",
    "omegaconf",
    "pandas",
    "pyarrow",
    "pydantic",
    "pytest",
    "safetensors",
    "scipy",
    "sklearn",
    "sympy",
    "tokenizers",
    "torch",
    "torchmetrics",
    "transformers",
    "yaml",
}
_MEMORY = 12 << 30  # bytes of address space of a child: a mistake may ask for any number
_WALL = 6  # wall-clock seconds a second of CPU that is allowed: the machine may be shared
_QUIET = ("-x", "-q", "-p", "no:cacheprovider")
_SHARED = "shared by "  # what fixtures of a wider scope than one test run is run for all tests of a file


@dataclass(frozen=True)
class Baseline:
    """What the tests do to the unbroken tree.

    seconds   of each test, by node id, in the order of the run
    lines     by file and line number: the tests that run it
    imported  modules that had been imported at the end, of `_IMPORTED_BEFORE`
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]
    imported: list[str]

    def of(self, file: str, lines: Sequence[int], limit: float) -> list[str]:
        """Tests that run one of the lines (no lines: anything of the file, or nothing at all in this process, as they
        start others), the quickest first, within `limit` seconds (at least one). Those of a line that no test runs:
        none."""
        found = self.lines.get(file, {})
        tests = {test for line in (lines or found) for test in found.get(line, ())}
        if not lines:
            tests |= set(self.seconds) - {test for rows in self.lines.values() for ran in rows.values() for test in ran}
        chosen, total = [], 0.0
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            total += self.seconds[test]
            if chosen and total > limit:
                break
            chosen.append(test)
        return chosen

    def preload(self) -> None:
        for name in self.imported:
            with contextlib.suppress(Exception):  # names that are no files of their own
                importlib.import_module(name)


class _Watch:
    """A pytest plugin: seconds of each test, the first that failed, and which test runs which line."""

    def __init__(self, tracer: Any = None) -> None:
        self.tracer, self.seconds, self.failed, self.test = tracer, {}, "", ""

    def _switch(self, context: str) -> None:
        if self.tracer is not None:
            self.tracer.switch_context(context)

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self.test, self.seconds[nodeid] = nodeid, 0.0
        self._switch(nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef) -> Iterator[None]:
        if fixturedef.scope != "function":
            self._switch(_SHARED + ("" if fixturedef.scope == "session" else self.test.split("::")[0]))
        try:
            return (yield)
        finally:
            self._switch(self.test)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


@dataclass
class Tree:
    """A copy of the tree that children may break. log: where the last child wrote what pytest prints."""

    root: Path
    log: Path

    def baseline(self, tests: Sequence[str], files: Sequence[str]) -> Baseline:
        """Run the tests as they are. RuntimeError with the first that fails, as nothing could be said then."""
        compileall.compile_dir(self.root, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        answer = self._forked(lambda: self._measured(tests, files), cpu=3600)
        if answer.get("code") != 0:
            what = answer.get("failed") or answer.get("ended")
            raise RuntimeError(f"the tests fail before anything is broken: {what}; see {self.log}")
        return Baseline(
            answer["seconds"],
            {file: {int(n): tests for n, tests in lines.items()} for file, lines in answer["lines"].items()},
            answer["imported"],
        )

    def noticed(self, file: str, code: str, tests: Sequence[str], cpu: float, wall: float) -> str:
        """What notices that `file` holds `code`: a test's node id, "time" where it ran out, "death" where the process
        dies and dies again, "" nothing. cpu: seconds for all tests; wall: for each, so that one that waits fails."""
        path = self.root / file
        source = path.read_text()
        path.write_text(code)
        try:
            for _ in range(2):  # a process may die by chance, of what was imported before the fork
                answer = self._forked(lambda: self._plain(tests, wall), cpu)
                if "failed" in answer:
                    return "" if answer["code"] == 0 else answer["failed"] or f"pytest ends with {answer['code']}"
                if answer["ended"] == "time":
                    break
            return answer["ended"]
        finally:
            path.write_text(source)

    def _plain(self, tests: Sequence[str], wall: float) -> dict[str, Any]:
        # What a broken file compiles to could be taken for the next one's: files' times are compared in seconds.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        watch = _Watch()
        code = pytest.main([*_QUIET, f"--timeout={wall:.0f}", *tests], plugins=[watch])
        return {"code": int(code), "failed": watch.failed}

    def _measured(self, tests: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
        import coverage

        tracer = coverage.Coverage(data_file=None, include=[str(self.root / file) for file in files])
        watch = _Watch(tracer)
        tracer.start()
        code = pytest.main([*_QUIET, *tests], plugins=[watch])
        tracer.stop()
        data, lines = tracer.get_data(), {}
        for file in files:
            by_line = data.contexts_by_lineno(str(self.root / file))
            lines[file] = {n: _tests(contexts, watch.seconds) for n, contexts in by_line.items()}
        imported = [name for name in sys.modules if name.split(".")[0] in _IMPORTED_BEFORE]
        return {
            "code": int(code),
            "failed": watch.failed,
            "seconds": watch.seconds,
            "lines": lines,
            "imported": imported,
        }

    def _forked(self, work: Callable[[], dict[str, Any]], cpu: float) -> dict[str, Any]:
        """What `work` returns in a child; {"ended": "time" or "death"} where it did not come to that."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            self._become(cpu)
            code = 1
            try:
                answer = json.dumps(work()).encode()
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(answer)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        answer = _read(reading, time.monotonic() + _WALL * cpu)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # with what it has started
        _, status = os.waitpid(pid, 0)
        if answer:
            return json.loads(answer)
        spent = answer is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
        return {"ended": "time" if spent else "death"}

    def _become(self, cpu: float) -> None:
        os.setsid()
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        used = resource.getrusage(resource.RUSAGE_SELF)  # 0 after a fork
        seconds = int(cpu + used.ru_utime + used.ru_stime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["PYTHONPATH"] = str(self.root)
        os.chdir(self.root)
        sys.path[0] = str(self.root)
        # What tests start by multiprocessing imports the main module anew: not the tool's.
        sys.modules["__main__"] = types.ModuleType("__main__")


def _tests(contexts: Sequence[str], seconds: dict[str, float]) -> list[str]:
    found = {context for context in contexts if context in seconds}
    for context in contexts:
        if context.startswith(_SHARED):
            found |= {test for test in seconds if test.startswith(context.removeprefix(_SHARED))}
    return sorted(found)


def _read(descriptor: int, deadline: float) -> bytes | None:
    """All that is written until the other end closes; None where the deadline passes first."""
    chunks = []
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            chunk = pipe.read(1 << 20)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    return None
