"""The tool behind `make chaos`: a seed says what is done, every kind has its turn, and each trouble is real."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def _tool():
    """tests/chaos/run.py and what it imports; under a name of its own, as other tools have a `run` too."""
    spec = importlib.util.spec_from_file_location("chaos_run", FOLDER / "run.py")
    sys.modules["chaos_run"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _tool()
kinds, disturbed, schedule, world = (sys.modules[name] for name in ("faults", "disturbed", "schedule", "world"))


def test_a_seed_says_what_is_done():
    assert run.plan(3, 5) == run.plan(3, 5) != run.plan(4, 5)


@pytest.mark.parametrize("seed", range(1, 6))
def test_every_kind_has_its_turn_among_a_hundred(seed):
    rounds, number = [], 0
    while sum(len(found.faults) for found in rounds) < 100:
        rounds.append(run.plan(seed, number))
        number += 1
    counts = Counter(fault.kind for found in rounds for fault in found.faults)
    assert counts.keys() == kinds.EVERY and min(counts.values()) >= 1
    for found in rounds:
        assert len(found.faults) >= 10
        for fault in found.faults:
            assert not fault.stage.startswith("tokenizer") or found.pictures
            kinds_there = [schedule.possible(fault.stage, found.place, first) for first in (True, False)]
            assert fault.kind in kinds_there[0] | kinds_there[1]


@pytest.mark.parametrize("seed", range(1, 6))
def test_tokenizers_are_disturbed_from_the_first_round_on(seed):
    found = run.plan(seed, 0).faults
    few = schedule.thinned(found, 15)
    assert len(few) == 15 and schedule.thinned(found, 100) == found
    stages = ["ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate"]
    assert list(dict.fromkeys(fault.stage for fault in few)) == stages  # in the order of the pipeline
    assert {fault.stage for fault in run.plan(seed, 1).faults} == {*stages} - {*stages[1:3]}


def test_what_tells_of_times_is_no_difference(tmp_path):
    def made(seconds: float, loss: float) -> dict[str, str]:
        folder = tmp_path / f"{seconds} {loss}" / "artifacts" / "train" / f"{seconds}"
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text(f'{{"step": 1, "loss": {loss}, "tokens_per_second": {seconds}}}\n')
        (folder / "report.html").write_text(f"{seconds}")
        (folder / "weights").write_text("w")
        return disturbed.made(str(folder.parents[2]))

    assert made(1.0, 0.5) == made(2.0, 0.5) != made(3.0, 0.6)
    assert set(made(4.0, 0.5)) == {"train/history.jsonl", "train/weights"}


class _Answer(BaseHTTPRequestHandler):
    wbufsize = 1 << 20  # head and body at once

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"x" * 100000)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def proxy():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield disturbed.Proxy(server.server_address[1])
    server.shutdown()


def asked(proxy, mode: str) -> int | str:
    proxy.mode = mode
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}/", timeout=20) as answer:
            return len(answer.read())
    except urllib.error.HTTPError as error:
        return error.code
    except Exception as error:
        return type(error).__name__


def test_the_ways_of_a_storage_that_fails(proxy):
    assert asked(proxy, "well") == 100000 and asked(proxy, "busy") == 503
    assert asked(proxy, "refuses") in ("RemoteDisconnected", "URLError", "ConnectionResetError")
    assert asked(proxy, "breaks") in ("IncompleteRead", "RemoteDisconnected", "BadStatusLine")
    assert asked(proxy, "well") == 100000


def test_a_clock_that_is_set_moves_the_wall_and_no_other(tmp_path):
    folder, library = tmp_path / "shift", world.clock_library(tmp_path)
    code = f"""
import struct, time
wall, steady = time.time(), time.monotonic()
open({str(folder)!r}, "r+b").write(struct.pack("d", 7200.0))
print(round((time.time() - wall) / 3600), round((time.monotonic() - steady) / 3600))
"""
    folder.write_bytes(struct.pack("d", 0.0))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2", "0"], done.stderr


def test_the_table_counts(tmp_path):
    found = [run.Injected("train", 20, "rank killed", "x", lost, equal=True) for lost in (3.0, 5.0, 9.0)]
    found.append(run.Injected("train", 40, "rank killed", "x", None, by_itself=False, equal=False))
    lines = run.table([run.Round(0, "folder", False, found)]).splitlines()
    assert lines[2] == "| rank killed | train | 4 | 3 | 3 | 5 | 9 |"
