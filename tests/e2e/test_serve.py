"""`omniloom serve` as a user starts it, on Ray Serve: a small untrained model, its API, its page, its end."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from browser import browser, needs_browser
from served import served
from serving_cases import needs_extra, small_model

from omniloom.pipelines import cli
from omniloom.stages.data.media.decode import decode_image, probe_image

TOKEN = "a-token-of-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    small_model().save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """It takes few answers at once, so that a queue can be seen to be full."""
    log = tmp_path_factory.mktemp("serve") / "log"
    limits = ("--max-batch", "12", "--max-queue", "4", "--max-steps", "100000")
    with served(model, log, *limits, env={"OMNILOOM_SERVE_TOKEN": TOKEN}) as found:
        yield found
    assert found.process.returncode == 0
    end = time.monotonic() + 10
    while found.left() and time.monotonic() < end:
        time.sleep(0.2)
    assert not found.left()
    text = log.read_text()
    assert TOKEN not in text and "Traceback" not in text and len(text.splitlines()) < 5, text


def ask(server, path: str, body: dict, **more) -> requests.Response:
    return requests.post(server.address + path, json=body, headers=HEADERS, timeout=60, **more)


def drawn(answer) -> np.ndarray:
    return decode_image(base64.b64decode(answer.json()["data"][0]["b64_json"]))


@pytest.mark.slow
@needs_extra
def test_ten_at_once_get_the_pictures_of_sample(server, model, tmp_path, monkeypatch):
    def one(seed: int) -> np.ndarray:
        return drawn(ask(server, "/v1/images/generations", {"prompt": f"number {seed}", "seed": seed}))

    with concurrent.futures.ThreadPoolExecutor(10) as users:
        made = list(users.map(one, range(10)))
    lines = [json.dumps({"prompt": f"number {seed}", "seed": seed}) for seed in range(10)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["omniloom", "sample", model, "--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    for seed, picture in enumerate(made):
        (file,) = out.glob(f"*-{seed}.png")
        assert np.array_equal(decode_image(file.read_bytes()), picture)
    answer = ask(server, "/v1/images/generations", {"prompt": "number 3", "seed": 3}).json()["data"][0]
    (file,) = out.glob("*-3.png")
    assert probe_image(base64.b64decode(answer["b64_json"])).mark == probe_image(file.read_bytes()).mark


@pytest.mark.slow
@needs_extra
def test_the_client_of_openai(server):
    import openai

    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=TOKEN, max_retries=0)
    name = client.models.list().data[0].id
    picture = client.images.generate(model=name, prompt="seven", extra_body={"seed": 3})
    events = list(
        client.images.generate(model=name, prompt="seven", stream=True, partial_images=2, extra_body={"seed": 3})
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    assert events[-1].b64_json == picture.data[0].b64_json
    edited = client.images.edit(
        model=name, prompt="two", image=("a.png", base64.b64decode(picture.data[0].b64_json), "image/png")
    )
    assert decode_image(base64.b64decode(edited.data[0].b64_json)).shape == (16, 16, 3)
    messages = [{"role": "user", "content": "a handwritten"}]
    whole = client.chat.completions.create(model=name, messages=messages, seed=1, max_tokens=12)
    chunks = list(client.chat.completions.create(model=name, messages=messages, seed=1, max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 12
    with pytest.raises(openai.BadRequestError, match="size") as wrong:
        client.images.generate(model=name, prompt="x", size="17x16")
    assert wrong.value.param == "size"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="other").models.list()


@pytest.mark.slow
@needs_extra
def test_who_leaves_makes_room_and_who_is_too_many_is_told(server):
    """Requests of hours: a few fill the queue, and once their clients have gone it is empty at once."""
    place = urlsplit(server.address)
    body = json.dumps({"prompt": "x", "steps": 100_000, "n": 8})
    headers = {**HEADERS, "Content-Type": "application/json"}
    waiting = [http.client.HTTPConnection(place.hostname, place.port) for _ in range(2)]
    for connection in waiting:
        connection.request("POST", "/v1/images/generations", body, headers)
    busy(server, 16)
    refused = ask(server, "/v1/images/generations", {"prompt": "x", "seed": 1})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    for connection in waiting:
        connection.close()
    busy(server, 0)
    assert ask(server, "/v1/images/generations", {"prompt": "x", "seed": 1, "steps": 2}).status_code == 200


def busy(server, expected: int) -> None:
    end = time.monotonic() + 20
    while (found := requests.get(f"{server.address}/health", timeout=20).json()["busy"]) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.1)


@pytest.mark.slow
@needs_extra
@needs_browser
def test_the_page_draws_and_asks_nobody_else(server, tmp_path):
    pictures = "document.querySelectorAll('#drawn img').length"
    with browser(1280, 1100) as page:
        page.call("Network.setExtraHTTPHeaders", headers=HEADERS)  # as a browser sends what it asked a person for
        parts = ("#prompt textarea", "#draw", "#drawn", "#before", "#written textarea")
        there = " && ".join(f"document.querySelector({json.dumps(part)})" for part in parts)
        page.open(f"{server.address}/", f"{there} && !document.body.innerText.includes('Loading')", 90)
        page.run(fill("#prompt textarea", "a handwritten seven"))
        page.click("Draw")
        page.wait(f"{pictures} && document.querySelector('#status').innerText.includes('1 drawn')")
        page.wait("document.querySelectorAll('#before img').length == 1")
        page.wait("[...document.querySelectorAll('#drawn img, #before img')].every(i => i.complete && i.naturalWidth)")
        page.shoot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "serve.png")
        page.run(fill("#prompt textarea", "another"))
        page.run("document.querySelector('#before .thumbnail-item').click()")
        page.wait("document.querySelector('#prompt textarea').value == 'a handwritten seven'")
        page.click("Describe or go on")
        page.wait("document.querySelector('#status').innerText.includes('tokens')")
        assert page.run("document.querySelector('#written textarea').value")
        outside = [url for url in page.requests if urlsplit(url).hostname != "127.0.0.1" and "://" in url]
        assert not outside and len(page.requests) > 5
        assert not page.errors


def fill(selector: str, text: str) -> str:
    """JavaScript that types a text where Svelte sees it."""
    found = f"document.querySelector({json.dumps(selector)})"
    return f"(() => {{ const e = {found}; e.value = {json.dumps(text)}; e.dispatchEvent(new Event('input')); }})()"


@pytest.mark.slow
@needs_extra
def test_a_port_that_is_taken(model, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        log = tmp_path / "log"
        with pytest.raises(RuntimeError), served(model, log, "--port", str(taken.getsockname()[1])):
            pass
    assert log.read_text().startswith("error: --port: port") and "cannot be had" in log.read_text()
