"""Whatever a store answers and whatever the disk did to a journal: nothing raises, and what can be sent arrives."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniloom.infra.tracking import Tracker, TrackingConfig, close_stale, replay, resolve_tracking
from omniloom.infra.tracking.journal import Journal


def client_of(settings):
    from mlflow import MlflowClient

    return MlflowClient(settings.uri)


def points(settings, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client_of(settings).get_metric_history(run_id, name))


# --- journals that a disk or a crash damaged


def left_behind(settings, damage: str) -> str:
    """A process that logs 60 points without sending one and is killed; then its files are damaged. Its run's key."""
    code = """
import os, pickle, sys
from omniloom.infra.tracking import Tracker
from omniloom.infra.tracking.courier import Courier
Courier._work = lambda self: None  # nothing is sent
settings = pickle.loads(bytes.fromhex(sys.argv[1]))
run = Tracker(settings).start_pipeline("victim", {"seed": 1})
for step in range(60):
    run.log_metrics({"loss": float(step)}, step)
print(run.key, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, pickle.dumps(settings).hex()], capture_output=True, text=True)
    key = done.stdout.strip()
    (journal,) = (Path(settings.spool) / key).glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    if damage == "cut":  # a short write that the next line was glued to, and a last line without its end
        middle = lines[30][:11] + lines[31]
        journal.write_bytes(b"".join(lines[:30]) + middle + b"".join(lines[32:]) + lines[5][:9])
    elif damage == "garbage":
        journal.write_bytes(b"".join(lines[:30]) + b"\0" * 500 + b"\n[1]\nnull\n{}\n\xff\xfe\n" + b"".join(lines[30:]))
    elif damage in ("empty", "nonsense", "beyond", "inside"):
        text = {"empty": "", "nonsense": "\0\0", "beyond": "99999999", "inside": "7"}[damage]
        journal.with_suffix(".sent").write_text(text)
    elif damage.startswith("run.json"):
        (journal.parent / "run.json").write_text(
            {"run.json empty": "", "run.json odd": '["x"]', "run.json cut": '{"run_id": "abc'}[damage]
        )
    return key


def test_replaying_while_the_store_is_away_leaves_every_journal_for_the_next_time(tracked):
    keys = [left_behind(tracked, "") for _ in range(2)]
    kept = {path: path.read_bytes() for key in keys for path in (Path(tracked.spool) / key).glob("*.jsonl")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = replace(tracked, uri=f"http://127.0.0.1:{free.getsockname()[1]}")
    assert len(kept) == 2 and all(kept.values())
    assert replay(away, timeout=5) == 2
    assert {path: path.read_bytes() for path in kept} == kept
    assert replay(tracked, timeout=60) == 0 and not any(path.exists() for path in kept)


@pytest.mark.parametrize(
    "damage, lost",
    [
        ("cut", {29, 30}),
        ("garbage", set()),
        ("empty", set()),
        ("nonsense", set()),
        ("beyond", set()),
        ("inside", set()),
        ("run.json empty", set()),
        ("run.json odd", set()),
        ("run.json cut", set()),
    ],
)
def test_a_damaged_journal_loses_no_whole_line_and_no_other_journal(tracked, damage, lost, caplog):
    key = left_behind(tracked, damage)
    other = left_behind(tracked, "none")
    assert replay(tracked) == 0
    from omniloom.infra.tracking import find_runs

    runs = {run["key"]: run["run_id"] for run in find_runs(tracked)}
    assert {step for step, _ in points(tracked, runs[other], "loss")} == set(range(60))
    found = {step for step, _ in points(tracked, runs[key], "loss")}
    # the first lines are of the run itself: two lines of the journal before its first point
    assert len(found) == 60 - len(lost) and found >= set(range(25))
    told = [record.message for record in caplog.records if "damaged lines" in record.message]
    assert len(told) == (damage in ("cut", "garbage")), told
    assert not list(Path(tracked.spool).glob("*/*.jsonl"))


def test_a_disk_that_fills_up_and_is_freed(tmp_path):
    """A limit on the size of files stands for the full disk: the write that passes it is cut short, as there."""
    journal = Journal.create(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        refused = 0
        for number in range(40):
            try:
                journal.append({"kind": "tags", "number": number, "filler": "x" * 40})
            except OSError:
                refused += 1
        assert refused > 20 and journal.path.stat().st_size <= 1000
        seen = [event["number"] for event, _ in journal.pending()]
        assert seen == list(range(len(seen))) and not journal.delivered()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    journal.append({"kind": "tags", "number": 40})
    assert [event["number"] for event, _ in journal.pending()] == list(range(41)), "what waited comes first"
    assert journal.damaged == 0


def test_a_part_that_cannot_be_taken_back_ends_in_a_line_of_its_own(tmp_path, monkeypatch):
    journal = Journal.create(tmp_path)
    journal.append({"kind": "tags", "number": 0})
    real = os.write

    def short(descriptor, data):
        if len(data) > 5:
            return real(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError):
            journal.append({"kind": "tags", "number": 1})
    journal.append({"kind": "tags", "number": 2})
    assert [event["number"] for event, _ in journal.pending()] == [0, 1, 2] and journal.damaged == 1


def test_positions_are_written_by_rename(tmp_path, monkeypatch):
    """While a position is written a reader sees the old one or the new one."""
    journal = Journal.create(tmp_path)
    for number in range(3):
        journal.append({"kind": "tags", "number": number})
    (_, first), (_, second), _ = journal.pending()
    journal.commit(first)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        journal.commit(second)
    assert journal.path.with_suffix(".sent").read_text() == str(first)
    journal.close(remove=False)
    again = Journal.adopt(journal.path)
    assert [event["number"] for event, _ in again.pending()] == [1, 2]
    assert not list(tmp_path.glob(".tmp-*"))


# --- what a caller gives


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_odd_values_never_raise_and_are_logged_as_what_can_be_stored(tracked, caplog):
    import torch

    itself: list = []
    itself.append(itself)
    run = Tracker(tracked).start_pipeline("odd \ud800", {"x": {"odd": Odd(), 3: "three", "itself": itself}})
    run.log_metrics(
        {
            "huge": 10**400,
            "low": -(10**400),
            "exact": Decimal("0.5"),
            "pair": np.zeros(2),
            "text": "x",
            "tensor": torch.ones(()),
            "tensors": torch.ones(2),
            "complex": 1j,
            "../up": 1,
            "a//b/./c": 2,
            "": 3,
            "lone \ud800": 4,
            "odd": Odd(),
            "true": True,
        },
        step=math.nan,
    )
    run.log_metrics({"late": 1.0}, step=10**30)
    run.log_metrics({"early": 1.0}, step="soon", seen=math.inf)
    run.log_metrics(None)
    run.log_params({"surrogate": "a\ud800b", "nul": "a\0b", "nan": math.nan, "bytes": b"x", ("a", 1): {1, 2}})
    run.log_params([])
    run.set_tags({"t\ud800": Odd()})
    run.log_text("lone \ud800 surrogate", "notes/a.txt")
    run.log_text(None, "b.txt")
    run.log_text("x", "")
    run.log_text("x", "../../escape.txt")
    run.log_file("/nowhere/at all")
    run.log_input("in", None, None)
    for name, picture in {
        "unit": np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6),
        "bytes": np.full((2, 6), 200.0),
        "nan": np.full((2, 6), np.nan),
        "flags": np.ones((2, 6), bool),
        "one": np.full((2, 6, 1), 300, np.int64),
        "tensor": torch.full((2, 6, 3), 0.5),
        "pil": Image.new("RGB", (6, 2), "red"),
    }.items():
        run.log_image(picture, name)
    run.log_image(b"no picture", "junk")
    run.log_image(np.zeros((2, 2, 7, 9)), "many")
    run.log_image(Odd(), "odd")
    assert run.finish(timeout=60)

    found = client_of(tracked).get_run(run.run_id())
    metrics = found.data.metrics
    assert math.isnan(metrics["huge"]) and math.isnan(metrics["low"]) and metrics["nonfinite/huge"] == 1
    assert {
        "exact": 0.5,
        "tensor": 1.0,
        "_/up": 1.0,
        "a/b/c": 2.0,
        "_": 3.0,
        "lone _": 4.0,
        "true": 1.0,
        "late": 1.0,
        "early": 1.0,
    }.items() <= metrics.items()
    assert not {"pair", "text", "tensors", "complex", "odd"} & set(metrics)
    assert points(tracked, run.run_id(), "exact") == [(0, 0.5)]
    assert points(tracked, run.run_id(), "late") == [(2**63 - 1, 1.0)]
    assert found.data.params["surrogate"] == "a?b" and found.data.params["nan"] == "NaN"
    assert found.data.params["x.3"] == "three" and found.info.run_name == "odd ?"
    client = client_of(tracked)
    assert Path(client.download_artifacts(run.run_id(), "notes/a.txt")).read_text() == "lone ? surrogate"
    assert Path(client.download_artifacts(run.run_id(), "escape.txt")).read_text() == "x"
    stored = {}
    for file in client.list_artifacts(run.run_id(), "images"):
        if file.path.endswith(".png"):
            with Image.open(client.download_artifacts(run.run_id(), file.path)) as image:
                stored[re.split("[+%]", file.path.split("~")[-1])[0]] = np.asarray(image)
    assert set(stored) == {"unit", "bytes", "nan", "flags", "one", "tensor", "pil"}
    assert stored["unit"].ravel().tolist() == [round(255 * i / 11) for i in range(12)]
    assert [int(stored[name].flat[0]) for name in ("bytes", "nan", "flags", "one", "tensor", "pil")] == [
        200,
        0,
        255,
        255,
        128,
        255,
    ]


# --- what a store answers


class Answers(BaseHTTPRequestHandler):
    """Every request is answered in the same wrong way."""

    status, body, kind = 400, b"", "application/json"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def log_message(self, *_) -> None:
        return


@pytest.fixture
def answering():
    servers = []

    def start(status: int, body: bytes, kind: str = "application/json") -> str:
        handler = type("Handler", (Answers,), {"status": status, "body": body, "kind": kind})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def error(code: str) -> bytes:
    return json.dumps({"error_code": code, "message": "no"}).encode()


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (400, error("INVALID_PARAMETER_VALUE"), "application/json"),
        (400, b"bad", "text/plain"),
        (404, error("RESOURCE_DOES_NOT_EXIST"), "application/json"),
        (404, b"<html>", "text/html"),
        (401, b"", "text/html"),
        (403, error("PERMISSION_DENIED"), "application/json"),
        (500, b"oops", "text/html"),
        (500, error("INTERNAL_ERROR"), "application/json"),
        (501, b"", "text/html"),
        (200, b"<html>hi", "text/html"),
        (200, b"{}", "application/json"),
        (200, b'{"experiment": 3, "run": []}', "application/json"),
        (200, b"[1]", "application/json"),
        (204, b"", "text/html"),
        (302, b"", "text/html"),
    ],
)
def test_nothing_raises_whatever_a_store_answers(tmp_path, answering, caplog, status, body, kind):
    caplog.set_level(logging.WARNING, "infra")
    settings = resolve_tracking(
        TrackingConfig(uri=answering(status, body, kind), system_metrics=False, request_seconds=2, flush_seconds=3),
        str(tmp_path),
    )
    began = time.monotonic()
    run = Tracker(settings).start_pipeline("p", {"seed": 1})
    stage = run.child("train", {"a": "b"}, {"lr": 1})
    stage.log_metrics({"loss": 1.0})
    stage.log_text("x", "x.txt")
    assert stage.run_id(1.0) is None and run.url(1.0) is None
    assert not stage.finish(timeout=1) and not run.finish(timeout=1)
    assert close_stale(settings, "p") == 0
    assert time.monotonic() - began < 30
    kept = "".join(path.read_text() for path in Path(settings.spool).glob("*/*.jsonl"))
    for kind_of_event in ("create", "params", "metrics", "file", "finish"):
        assert f'"kind":"{kind_of_event}"' in kept, "what no store took waits"
    lines = [record.message for record in caplog.records]
    assert lines and len(lines) == len(set(lines)) and not any("Traceback" in line for line in lines), lines


def test_a_port_where_nobody_listens_and_one_where_nobody_answers(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for uri in ("http://127.0.0.1:1", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            settings = resolve_tracking(
                TrackingConfig(uri=uri, system_metrics=False, request_seconds=1, flush_seconds=1), str(tmp_path)
            )
            began = time.monotonic()
            run = Tracker(settings).start_pipeline("p", {})
            assert run.run_id(1.0) is None and not run.finish(timeout=1)
            assert time.monotonic() - began < 10


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/x.db", "sqlite:////dev/null"])
def test_a_database_that_cannot_be(tmp_path, uri):
    settings = resolve_tracking(TrackingConfig(uri=uri, system_metrics=False), str(tmp_path))
    run = Tracker(settings).start_pipeline("p", {})
    assert run.run_id(5.0) is None and not run.finish(timeout=5)
    assert close_stale(settings, "p") == 0 and list(Path(settings.spool).glob("*/*.jsonl"))


def test_a_file_that_the_artifact_store_refuses_stays_out_and_metrics_go_on(tracked, tmp_path, caplog):
    """The store's folder is below a file, where no folder can be made."""
    (tmp_path / "file").write_text("in the way")
    client = client_of(tracked)
    client.create_experiment("blocked", f"file://{tmp_path}/file/artifacts")
    settings = type(tracked)(**{**vars(tracked), "experiment": "blocked", "beside": False})
    run = Tracker(settings).start_pipeline("p", {"seed": 1})
    run.log_text("report", "report.html")
    run.log_image(np.zeros((4, 4), np.uint8), "grid")
    run.log_metrics({"loss": 2.0}, 3)
    assert run.finish(timeout=30)
    found = client.get_run(run.run_id())
    assert (found.info.status, found.data.metrics, found.data.params) == ("FINISHED", {"loss": 2.0}, {"seed": "1"})
    kept = Path(f"{settings.spool}-left-out")
    assert {path.name for path in kept.rglob("*") if path.is_file()} >= {"report.html", "image.png", "left-out.jsonl"}
    assert any("is kept in" in record.message for record in caplog.records)
    assert not list(Path(settings.spool).glob("*/*.jsonl"))
