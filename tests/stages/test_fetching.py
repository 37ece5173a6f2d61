"""Fetching over HTTP: what a server may do to the one that asks."""

from __future__ import annotations

import http.server
import threading
import time

import pytest

from omniloom.infra import storage
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import retrying
from omniloom.stages.ingest.files.fetching import fetch


@pytest.fixture
def server(monkeypatch):
    """Paths: /good; /endless, which never ends; /slow, which says nothing for a while; /cut, which ends too early."""
    monkeypatch.setattr(retrying, "WAITS", (0, 0, 0))
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            if self.path == "/slow":
                time.sleep(1)
            self.send_response(200)
            if self.path == "/cut":
                self.send_header("Content-Length", "100")
            self.end_headers()
            try:
                self.wfile.write(b"content")
                while self.path == "/endless":
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass  # the other side has had enough

        def log_message(self, *arguments):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.hits = hits
    running.url = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def refused(uri: str, limit: int = 1 << 20, timeout: float = 30) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(uri, limit, timeout)
    return caught.value


def test_what_a_server_sends_whole_is_the_content(server):
    assert fetch(f"{server.url}/good", 7, 30) == b"content"
    assert refused(f"{server.url}/good", 6).code == "too_large"


def test_a_file_without_an_end_is_left_at_the_limit(server):
    assert refused(f"{server.url}/endless", 200_000).code == "too_large"
    assert server.hits == ["/endless"]


@pytest.mark.parametrize("path, timeout", [("/slow", 0.2), ("/cut", 30)])
def test_what_may_go_well_another_time_is_tried_again(server, path, timeout):
    error = refused(f"{server.url}{path}", timeout=timeout)
    assert error.code == "unreadable" and "(tried 4 times)" in error.message
    assert server.hits == [path] * 4


def test_any_filesystem_has_the_limit(tmp_path):
    storage.write_bytes("memory://fetching/a", b"content")
    assert fetch("memory://fetching/a", 7, 30) == b"content"
    assert refused("memory://fetching/a", 6).code == "too_large"
    assert refused("memory://fetching/b").code == "missing_file"
    assert refused(str(tmp_path)).code == "not_a_file"
    secret = refused("https://user:password@127.0.0.1:1/x?X-Amz-Signature=abc").message
    assert "password" not in secret and "abc" not in secret
