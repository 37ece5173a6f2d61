"""The example of a source: installed as a distribution of its own, it works without an edit of the tree."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from distributions import EXAMPLES, install, omniloom

from omniloom.stages.data.media.decode import encode_png

EXAMPLE = EXAMPLES / "csv_urls_source"
RNG = np.random.default_rng(3)
PICTURES = {name: encode_png(RNG.integers(0, 256, (8, 10, 3), np.uint8)) for name in ("a", "b", "c", "busy", "s")}
INGEST = """
import json, sys, types
from omniloom.infra import storage
from omniloom.stages.data import records
from omniloom.stages.ingest import stage
config = stage.Config.model_validate({**json.loads(sys.argv[1]), "shard_items": 4})
out = "memory://out"  # so that one process does it, without Ray
places = {"output": out, "state": "memory://state", "predecessor": None}
metrics = stage.run(types.SimpleNamespace(config=config, progress=lambda *a: None, **places))
rows = [{**row, "media": row["media"].hex()} for row in records.iterate(out)]
rejects = [json.loads(line) for line in storage.read_bytes(out + "/rejects/rejects.jsonl").splitlines()]
print(json.dumps({"metrics": metrics, "rows": rows, "rejects": rejects}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the example as pip installs it."""
    return install(EXAMPLE, tmp_path_factory.mktemp("site"))


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def server():
    """Pictures over HTTP on 127.0.0.1; `hits` counts requests by path."""
    hits: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/").split("?")[0]
            hits[name] = hits.get(name, 0) + 1
            if name == "busy" and hits[name] < 3:
                return self.send_error(503)
            if name == "moved":
                self.send_response(302)
                self.send_header("Location", "/c")
                return self.end_headers()
            data = {**PICTURES, "text": b"no picture", "big": b"x" * 5000}.get(name)
            if data is None:
                return self.send_error(403 if name == "forbidden" else 404)
            self.send_response(200)  # without a length: it is known when the connection ends
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.hits = hits
    running.url = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def table(path: Path, *rows: tuple) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([("url", "caption"), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())
    return path


def ingest(installed: Path, source: dict, **config) -> dict:
    done = python(installed, "-c", INGEST, json.dumps({"sources": [source], **config}))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rows_become_records_or_rejects(installed, server, tmp_path):
    (tmp_path / "s.png").write_bytes(PICTURES["s"])
    (tmp_path / "big").write_bytes(b"x" * 5000)
    os.mkfifo(tmp_path / "fifo")
    rows = (
        (f"{server.url}/a", "an apple"),
        (f"{server.url}/b?X-Amz-Signature=abc", ""),
        (f"{server.url}/gone", "gone"),
        (f"{server.url}/forbidden", "no"),
        (f"{server.url}/text", "text"),
        (f"{server.url}/big", "big"),
        (f"{server.url}/busy", "a busy one"),
        (f"{server.url}/moved", "where it went"),
        (f"file://{tmp_path}/s.png", '["one", "two"]'),
        (f"file://{tmp_path}/fifo", "waits for ever"),
        ("no url", "x"),
        ("", "nothing"),
        ("nosuch://x/y.png", "x"),
        ("http://127.0.0.1:1/refused", "x"),
        (f"{tmp_path}/big", "x"),
        ("too", "many", "cells"),
    )
    path = table(tmp_path / "in" / "t.csv", *rows)
    source = {"kind": "csv_urls", "uri": str(path.parent), "license": "L"}
    out = ingest(installed, source, limits={"max_bytes": 4000})
    named = {row["part"]: row for row in out["rows"]}
    names = {2: "a", 3: "b", 8: "busy", 9: "c", 10: "s"}
    assert {part: row["media"] for part, row in named.items()} == {p: PICTURES[n].hex() for p, n in names.items()}
    assert {part: row["captions"] for part, row in named.items()} == {
        2: ["an apple"],
        3: [],
        8: ["a busy one"],
        9: ["where it went"],
        10: ["one", "two"],
    }
    assert {(row["path"], row["kind"], row["license"], row["source"]) for row in out["rows"]} == {
        ("t.csv", "image", "L", "csv_urls_0")
    }
    assert json.loads(named[2]["meta"]) == {"url": f"{server.url}/a"}
    assert "abc" not in named[3]["meta"]
    assert {(reject["path"], reject["part"]): reject["code"] for reject in out["rejects"]} == {
        ("t.csv", 4): "missing_file",
        ("t.csv", 5): "unreadable",
        ("t.csv", 6): "not_an_image",
        ("t.csv", 7): "too_large",
        ("t.csv", 11): "not_a_file",
        ("t.csv", 12): "missing_field",
        ("t.csv", 13): "missing_field",
        ("t.csv", 14): "unreadable",
        ("t.csv", 15): "unreadable",
        ("t.csv", 16): "too_large",
        ("t.csv:17", 0): "bad_manifest_row",
    }
    assert server.hits == {
        "a": 1,
        "b": 1,
        "gone": 1,
        "forbidden": 1,
        "text": 1,
        "big": 1,
        "busy": 3,
        "moved": 1,
        "c": 1,
    }
    metrics = out["metrics"]
    assert (metrics["items"], metrics["records"], metrics["rejects"], metrics["files"]) == (16, 5, 11, 16)


LISTING = """
import json, sys
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.ingest import stage
config = stage.Config.model_validate({"sources": [json.loads(sys.argv[1])]})
print(json.dumps([list(stage.listing(config)), canonical(config.sources[0])]))
"""


def test_a_table_is_known_by_its_content(installed, tmp_path):
    def identity(path: Path) -> tuple[list, dict]:
        done = python(installed, "-c", LISTING, json.dumps({"kind": "csv_urls", "uri": str(path)}))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = table(tmp_path / "a" / "t.csv", ("https://x/a.png", "a"))
    moved = table(tmp_path / "b" / "t.csv", ("https://x/a.png", "a"))
    os.utime(moved, (1, 1))
    changed = table(tmp_path / "c" / "t.csv", ("https://x/a.png", "b"))
    (one, config), (other, _), (third, _) = identity(first), identity(moved), identity(changed)
    assert one == other != third
    assert config["version"] == 1 and "timeout" not in config and "uri" not in config


def test_it_shows_in_the_schema_the_plan_and_the_errors(installed, tmp_path):
    path = table(tmp_path / "t.csv", ("https://x/a.png", "a"))
    mine = f"kind: csv_urls, uri: {path}"
    wrong = (
        (f"{{{mine}, url_column: x}}", "sources.0.url_column", "no column 'x'; its columns are url, caption"),
        (f"{{{mine}, timeout: 0}}", "sources.0.timeout", "greater than 0"),
        (f"{{{mine}, captions: {{from: file}}}}", "sources.0.captions", "did you mean 'caption_column'?"),
        (f"{{kind: csv_url, uri: {path}}}", "sources.0.kind", "'csv_urls'"),
        (f"{{kind: text, uri: {path.parent}}}", "sources.0.uri", f"{{kind: url_list, uri: {path.parent}}}"),
    )
    configs = []
    for number, source in enumerate([f"{{{mine}}}", *(source for source, _, _ in wrong)]):
        configs.append(tmp_path / f"mine-{number}.yaml")
        configs[-1].write_text(
            f"name: mine\nstorage: {tmp_path}/runs\nstages:\n  ingest:\n    sources:\n      - {source}\n"
            "  pretokenize: null\n"
        )
    schema, right, *refused = omniloom(installed, ["schema"], *(["plan", config] for config in configs))
    options = json.loads(schema.stdout)["$defs"]["CsvUrlsConfig"]["properties"]
    assert options["url_column"]["description"].startswith("The column of the image's URI")
    assert all("description" in option for option in options.values())
    assert right.returncode == 0, right.stderr
    for (_, field, said), config, done in zip(wrong, configs[1:], refused, strict=True):
        assert done.returncode == 2, done.stderr
        told = " ".join(done.stderr.split())
        assert f"stages.ingest.{field}" in told and said in told and str(config) in done.stderr.replace("\n", "")
