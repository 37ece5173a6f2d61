"""Lists of URLs: what is fetched is a record, politely, once, whatever the server does."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import threading
import time
from collections import Counter
from email.utils import formatdate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import lines, picture, put, take

from omniloom.stages.data.media.decode import encode_mp4
from omniloom.stages.ingest.files import downloads
from omniloom.stages.ingest.kinds import url_list
from omniloom.stages.ingest.look.looking import look

PICTURES = {f"/{n}.png": picture() for n in range(12)}


class Handler(http.server.BaseHTTPRequestHandler):
    """/N.png; /busy/N.png, /later/N.png and /date/N.png the second time; /lost/N.png in two halves; /gone, /refused,
    /broken, /page, /slow, /endless; /round, which redirects to itself; /moved/N.png."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, name = self.server, "/" + self.path.rsplit("/", 1)[-1].split("?")[0]
        with server.lock:
            server.hits[self.path] += 1
            server.times.append((time.monotonic(), self.path))
            server.now += 1
            server.most = max(server.most, server.now)
            server.agents.add(self.headers["User-Agent"])
            server.ranges += [self.headers["Range"]] if self.headers["Range"] else []
        try:
            time.sleep(server.pause)
            self.answer(server.hits[self.path], name)
        except OSError:
            pass  # the other side has had enough
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, hit: int, name: str):
        data = PICTURES.get(name, b"")
        match self.path.strip("/").split("/")[0].split("?")[0]:
            case "busy" if hit == 1:
                return self.send(503, b"")
            case "later" if hit == 1:
                return self.send(429, b"", {"Retry-After": "1"})
            case "date" if hit == 1:
                return self.send(503, b"", {"Retry-After": formatdate(time.time() - 5, usegmt=True)})
            case "never":
                return self.send(429, b"", {"Retry-After": "86400"})
            case "lost" if hit == 1:
                half = len(data) // 2
                self.send(200, data[:half], {"Content-Length": str(len(data)), "ETag": '"v1"'})
                self.close_connection = True
                return None
            case "lost" if self.headers["Range"]:
                assert self.headers["If-Range"] == '"v1"'
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                return self.send(206, data[start:], {"ETag": '"v1"'})
            case "gone":
                return self.send(404, b"no")
            case "refused":
                return self.send(403, b"no")
            case "broken":
                return self.send(500, b"no")
            case "page":
                return self.send(200, b"<html>not a picture</html>")
            case "round":
                return self.send(302, b"", {"Location": self.path})
            case "moved":
                return self.send(301, b"", {"Location": name})
            case "slow":
                time.sleep(1.5)
                return self.send(200, b"late")
            case "endless":
                self.send(200, b"", {"Content-Length": "1000000000"})
                while True:
                    self.wfile.write(b"x" * 65536)
        return self.send(200, data) if data else self.send(404, b"no")

    def send(self, status: int, body: bytes, headers: dict | None = None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.01)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    running.hits, running.agents, running.ranges, running.times = Counter(), set(), [], []
    running.now = running.most = running.pause = 0
    running.lock = threading.Lock()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.at = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def table(at: str) -> pa.Table:
    return pa.table({"URL": [f"{at}/{n}.png" for n in range(3)], "TEXT": [f"number {n}" for n in range(3)]})


def parquet(at: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(at), sink)
    return sink.getvalue()


LISTS = {
    "list.txt": lambda at: "".join(f"{at}/{n}.png\tnumber {n}\n" for n in range(3)) + "\n# a remark\n",
    "spaces.urls": lambda at: "".join(f"{at}/{n}.png number {n}\r\n" for n in range(3)),
    "cc3m.txt": lambda at: "".join(f"number {n}\t{at}/{n}.png\n" for n in range(3)),
    "list.csv": lambda at: "url,caption\n" + "".join(f'{at}/{n}.png,"number {n}"\n' for n in range(3)),
    "list.tsv.gz": lambda at: gzip.compress(
        ("image_url\ttext\n" + "".join(f"{at}/{n}.png\tnumber {n}\n" for n in range(3))).encode()
    ),
    "list.jsonl": lambda at: lines(*({"image": f"{at}/{n}.png", "caption": [f"number {n}"]} for n in range(3))),
    "list.json": lambda at: json.dumps([{"url": f"{at}/{n}.png", "caption": f"number {n}"} for n in range(3)]),
    "laion.parquet": parquet,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_row_is_what_lies_behind_its_url(server, tmp_path, name):
    folder = put(tmp_path / "lists", {name: LISTS[name](server.at)})
    (proposed,) = look(folder).sources
    assert proposed.options == {"kind": "url_list", "uri": folder}
    _, records, rejects = take(proposed.options)
    assert not rejects and [row["caption"] for row in records.values()] == ["number 0", "number 1", "number 2"]
    assert {json.loads(row["meta"])["url"] for row in records.values()} == {f"{server.at}/{n}.png" for n in range(3)}
    assert set(server.hits.values()) == {1}  # what `look` has fetched is not fetched again
    assert all(agent.startswith("OmniLoom/") for agent in server.agents)


def test_no_file_is_fetched_twice_nor_asked_for_where_there_is_none(server, tmp_path):
    names = ["0.png", "gone/1.png", "refused/2.png", "page", "broken", "moved/3.png"]
    folder = put(tmp_path / "lists", {"a.txt": "".join(f"{server.at}/{name}\n" for name in names)})
    source = {"kind": "url_list", "uri": folder, "cache": str(tmp_path / "kept")}
    for _ in range(2):
        _, records, rejects = take(source)
        assert len(records) == 2 and {code for _, code in rejects} == {"missing_file", "not_an_image", "unreadable"}
    hits = {path: count for path, count in server.hits.items() if path != "/broken"}
    assert set(hits.values()) == {1} and server.hits["/broken"] == 2 * downloads.TRIES
    put(tmp_path / "lists", {"b.txt": f"{server.at}/0.png again\n{server.at}/5.png new\n"})
    _, records, _ = take(source)
    assert server.hits["/0.png"] == 1 and server.hits["/5.png"] == 1
    assert {row["caption"] for row in records.values()} >= {"again", "new"}


def test_a_server_that_is_busy_lost_or_asks_to_wait(server, tmp_path):
    names = ["busy/0.png", "later/1.png", "date/2.png", "lost/3.png"]
    folder = put(tmp_path / "lists", {"a.txt": "".join(f"{server.at}/{name}\n" for name in names)})
    began = time.monotonic()
    _, records, rejects = take({"kind": "url_list", "uri": folder, "user_agent": "test (a@b.org)"})
    assert len(records) == 4 and not rejects and time.monotonic() - began >= 1
    assert server.ranges == [f"bytes={len(PICTURES['/3.png']) // 2}-"] and server.agents == {"test (a@b.org)"}
    plain = put(tmp_path / "plain", {name.split("/")[1]: PICTURES["/" + name.split("/")[1]] for name in names})
    _, rows, _ = take({"kind": "image_folder", "uri": plain})
    assert {row["id"] for row in records.values()} == {row["id"] for row in rows.values()}


def test_nobody_asks_a_host_that_wants_to_be_left_alone(server, tmp_path):
    urls = [f"{server.at}/later/1.png\n", *(f"{server.at}/{n}.png\n" for n in range(2, 12))]
    _, records, _ = take({"kind": "url_list", "uri": put(tmp_path / "lists", {"a.txt": "".join(urls)}), "per_host": 1})
    refused = next(number for number, (_, path) in enumerate(server.times) if path == "/later/1.png")
    assert len(records) == 11 and len(server.times) == 12
    assert server.times[refused + 1][0] - server.times[refused][0] >= 0.9  # the second in which nobody was to come


def test_the_longest_wait_that_a_host_asked_for_counts():
    host = downloads._Host("waits.example:80", 2)
    host.leave_alone(None)
    assert host._left_alone() == 0
    for seconds in (30.0, 60.0, 1.0, downloads.LONGEST_WAIT + 1):  # the last is left to the next run
        host.leave_alone(seconds)
        assert host._left_alone() == pytest.approx(min(seconds, 60) if seconds == 30 else 60, abs=1)


def test_what_cannot_be_fetched_is_a_reject_with_its_reason(server, tmp_path):
    urls = [f"{server.at}/{name}" for name in ("0.png", "never", "round", "slow", "endless")]
    urls += ["http://127.0.0.1:9/refused.png", "file:///etc/hosts", "ftp://127.0.0.1/a.png", "http://[bad/", "nothing"]
    folder = put(tmp_path / "lists", {"a.csv": "url\n" + "".join(f"{url}\n" for url in urls) + '""\n'})
    source = {"kind": "url_list", "uri": folder, "timeout": 0.5}
    metrics, records, _ = take(source, limits={"max_bytes": 1 << 20})
    assert len(records) == 1
    codes = {name: count for name, count in metrics.items() if name.startswith("rejects_")}
    assert codes == {
        "rejects_unreadable": 3,  # never, slow, refused
        "rejects_missing_file": 2,  # round, bad
        "rejects_too_large": 1,
        "rejects_missing_field": 3,
    }
    assert server.hits["/never"] == 1  # a host that asks for a day is left to another run


@pytest.mark.parametrize("per_host", [1, 3])
def test_a_host_has_few_connections_whatever_the_workers(server, tmp_path, per_host):
    server.pause = 0.03
    half = [f"{server.at}/{n}.png\n" for n in range(12)]
    folder = put(tmp_path / "lists", {"a.txt": "".join(half[:6]), "b.txt": "".join(half[6:])})
    source = {"kind": "url_list", "uri": folder, "per_host": per_host, "connections": 8}
    threads = [threading.Thread(target=take, args=(source | {"include": f"{name}.txt"},)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most == per_host and sum(server.hits.values()) == 12


def test_pieces_of_a_list_give_each_row_once(server, tmp_path):
    folder = put(
        tmp_path / "lists", {"a.csv": "url,caption\n" + "".join(f"{server.at}/{n}.png,n{n}\n" for n in range(12))}
    )
    made = []
    for items in (512, 3):
        _, records, _ = take({"kind": "url_list", "uri": folder}, shard_items=items)
        made.append([(row["id"], row["part"], row["caption"]) for row in records.values()])
    assert made[0] == made[1] and len(made[0]) == 12


def test_a_large_file_waits_in_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(url_list, "_HELD_BYTES", 100)
    folder = put(tmp_path / "lists", {"a.txt": "".join(f"{server.at}/{n}.png\n" for n in range(4))})
    _, records, rejects = take({"kind": "url_list", "uri": folder})
    assert len(records) == 4 and not rejects and set(server.hits.values()) == {1}


def test_videos_are_told_by_their_addresses(server, tmp_path, monkeypatch):
    clip = encode_mp4(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8), 4)
    monkeypatch.setitem(PICTURES, "/a.mp4", clip)
    folder = put(tmp_path / "lists", {"a.txt": f"{server.at}/a.mp4?size=1 a clip\n"})
    (proposed,) = look(folder).sources
    assert proposed.options["media"] == "video" and proposed.records == 1
    _, records, _ = take(proposed.options)
    assert [row["frames"] for row in records.values()] == [4]
