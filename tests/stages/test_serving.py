"""A server's endpoints over a small untrained model, without Ray."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from serving_cases import OBJECTIVES, Engine, client, needs_extra, small_model

from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.stages.data.media.decode import decode_image, encode_png, probe_image
from omniloom.stages.serving.jobs import Facts, Made, Unavailable
from omniloom.stages.serving.limits import Limits
from omniloom.stages.serving.service import Service

IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"


@pytest.fixture(scope="module")
def loom():
    return small_model()


@pytest.fixture(scope="module")
def engine(loom):
    return Engine(loom)


@pytest.fixture(scope="module")
def api(engine):
    with client(engine) as found:
        yield found


def pictures(answer) -> list[np.ndarray]:
    return [decode_image(base64.b64decode(one["b64_json"])) for one in answer.json()["data"]]


def told(answer) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def data_url(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()


def ask(*parts, **more) -> dict:
    return {"messages": [{"role": "user", "content": list(parts) if len(parts) > 1 else parts[0]}], **more}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pictures_are_those_of_the_model(api, loom, objective):
    asked = {"prompt": "a handwritten seven", "n": 3, "seed": 7, "steps": 4, "guidance": 1.5, "objective": objective}
    answer = api.post(IMAGES, json=asked)
    visual = VisualSampling(num_steps=4, guidance_scale=1.5, objective=objective)
    alone = [loom.text_to_image([asked["prompt"]], visual, seeds=[seed])[0] for seed in (7, 8, 9)]
    assert np.array_equal(pictures(answer), alone)
    assert [one["seed"] for one in answer.json()["data"]] == [7, 8, 9]
    usage = answer.json()["usage"]
    assert usage["input_tokens"] == 3 * (1 + len(loom.text.encode(asked["prompt"])))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_picture_says_how_it_was_made(api):
    answer = api.post(IMAGES, json={"prompt": "two", "seed": 3, "steps": 2})
    mark = probe_image(base64.b64decode(answer.json()["data"][0]["b64_json"])).mark
    assert (mark["prompt"], mark["seed"], mark["settings"]["num_steps"]) == ("two", 3, 2)
    assert mark["settings"]["objective"] == "latent_diffusion" and mark["weights"] == "0" * 64


def test_a_size_is_width_by_height(api):
    answer = api.post(IMAGES, json={"prompt": "two", "size": "24x16", "steps": 1})
    assert pictures(answer)[0].shape == (16, 24, 3) and answer.json()["size"] == "24x16"


def test_interim_pictures_become_the_picture(api):
    asked = {"prompt": "two", "seed": 5, "steps": 8}
    events = told(api.post(IMAGES, json={**asked, "stream": True, "partial_images": 3}))
    assert [event["type"] for event in events] == ["image_generation.partial_image"] * 3 + [
        "image_generation.completed"
    ]
    assert [event.get("partial_image_index") for event in events] == [0, 1, 2, None]
    shown = [decode_image(base64.b64decode(event["b64_json"])).astype(int) for event in events]
    assert np.array_equal(shown[-1], pictures(api.post(IMAGES, json=asked))[0])
    far = [np.abs(picture - shown[-1]).mean() for picture in shown]
    assert far[0] > far[1] > far[2] > far[3] == 0


def test_edits_draw_behind_pictures(api, loom):
    if find_spec("multipart") is None:
        pytest.skip("needs omniloom[serve]")
    before = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    form = {"prompt": "two", "seed": "4", "steps": "3", "image_guidance": "1.5"}
    answer = api.post("/v1/images/edits", data=form, files={"image": ("a.png", encode_png(before))})
    visual = VisualSampling(num_steps=3, image_guidance_scale=1.5)
    assert np.array_equal(pictures(answer)[0], loom.text_to_image(["two"], visual, images=[[before]], seeds=[4])[0])
    wrong = api.post("/v1/images/edits", data=form, files={"image": ("a.png", b"no picture")})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "image")
    assert api.post("/v1/images/edits", data=form).json()["error"]["param"] in ("image", None)


def test_text_goes_on_from_a_message(api, loom):
    asked = ask("a handwritten", temperature=0.7, seed=2, n=2, max_tokens=9)
    answer = api.post(CHAT, json=asked).json()
    sampling = TextSampling(temperature=0.7, max_new_tokens=9)
    texts = loom.text_to_text(["a handwritten"] * 2, sampling, seeds=[2, 3])
    assert [choice["message"]["content"] for choice in answer["choices"]] == texts
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 1 + len(loom.text.encode("a handwritten"))
    assert 0 < usage["completion_tokens"] <= 18 and usage["total_tokens"] == sum(usage.values()) // 2


def test_a_picture_is_described_by_its_likeliest_words(api, loom):
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": data_url(picture)}}]
    answer = api.post(CHAT, json=ask(*content, max_tokens=12)).json()
    expected = loom.image_to_text([picture], "what?", TextSampling(max_new_tokens=12))
    assert answer["choices"][0]["message"]["content"] == expected[0]


@pytest.mark.parametrize("modalities", [["text"], ["text", "image"]])
def test_a_stream_says_what_the_answer_says(api, modalities):
    # At such a temperature an untrained model opens pictures too, and writes characters of several tokens.
    asked = ask("a handwritten", seed=3, temperature=8, max_tokens=60, modalities=modalities)
    whole = api.post(CHAT, json=asked).json()
    answer = api.post(CHAT, json={**asked, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, last = told(answer)
    assert answer.text.endswith("data: [DONE]\n\n") and last["usage"] == whole["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    assert deltas[0]["role"] == "assistant" and len(deltas) > 3
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    drawn = [decode(image) for delta in deltas for image in delta.get("images", [])]
    assert np.array_equal(drawn, [decode(image) for image in message.get("images", [])])
    assert bool(drawn) == ("image" in modalities)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def decode(image: dict) -> np.ndarray:
    return decode_image(base64.b64decode(image["image_url"]["url"].partition(",")[2]))


def test_turns_are_written_as_ingest_writes_conversations(api, loom):
    turns = [("system", "short"), ("user", "one?"), ("assistant", "two"), ("user", "three?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    answer = api.post(CHAT, json={"messages": messages, "temperature": 0, "max_tokens": 5}).json()
    prompt = "System: short\nUser: one?\nAssistant: two\nUser: three?\nAssistant:"
    expected = loom.text_to_text([prompt], TextSampling(max_new_tokens=5))
    assert answer["choices"][0]["message"]["content"] == expected[0]


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def shown(data: bytes) -> dict:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return ask({"type": "text", "text": ""}, {"type": "image_url", "image_url": {"url": url}})


def url(value: str) -> dict:
    return ask({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": value}})


PLACE = "messages.0.content.1.image_url.url"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (IMAGES, {}, 400, "prompt"),
        (IMAGES, {"prompt": ""}, 400, "prompt"),
        (IMAGES, {"prompt": 7}, 400, "prompt"),
        (IMAGES, {"prompt": "x" * 8001}, 400, "prompt"),
        (IMAGES, {"prompt": "x", "colour": "red"}, 400, "colour"),
        (IMAGES, {"prompt": "x", "n": 0}, 400, "n"),
        (IMAGES, {"prompt": "x", "n": 11}, 400, "n"),
        (IMAGES, {"prompt": "x", "n": True}, 400, "n"),
        (IMAGES, {"prompt": "x", "n": 2, "stream": True}, 400, "n"),
        (IMAGES, {"prompt": "x", "partial_images": 2}, 400, "partial_images"),
        (IMAGES, {"prompt": "x", "partial_images": 2, "stream": True, "objective": "next_code"}, 400, "partial_images"),
        (IMAGES, {"prompt": "x", "steps": 0}, 400, "steps"),
        (IMAGES, {"prompt": "x", "steps": 101}, 400, "steps"),
        (IMAGES, {"prompt": "x", "guidance": -1}, 400, "guidance"),
        (IMAGES, {"prompt": "x", "objective": "pixel_diffusion"}, 400, "objective"),
        (IMAGES, {"prompt": "x", "objective": "no_such"}, 400, "objective"),
        (IMAGES, {"prompt": "x", "sampler": "amed"}, 400, "sampler"),
        (IMAGES, {"prompt": "x", "predictor": "/etc/passwd"}, 400, "predictor"),
        (IMAGES, {"prompt": "x", "size": "large"}, 400, "size"),
        (IMAGES, {"prompt": "x", "size": "15x16"}, 400, "size"),
        (IMAGES, {"prompt": "x", "size": "4096x4096"}, 400, "size"),
        (IMAGES, {"prompt": "x", "seed": -1}, 400, "seed"),
        (IMAGES, {"prompt": "x", "seed": 2**53}, 400, "seed"),
        (IMAGES, {"prompt": "x", "response_format": "url"}, 400, "response_format"),
        (IMAGES, {"prompt": "x", "model": "other"}, 404, "model"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, ask(""), 400, "messages"),
        (CHAT, ask("x", max_tokens=0), 400, "max_tokens"),
        (CHAT, ask("x", max_completion_tokens=2000), 400, "max_completion_tokens"),
        (CHAT, ask("x", max_tokens=2, max_completion_tokens=2), 400, "max_tokens"),
        (CHAT, ask("x", temperature=-1), 400, "temperature"),
        (CHAT, ask("x", steps=4), 400, "steps"),
        (CHAT, ask("x", modalities=["image"]), 400, "modalities"),
        (CHAT, ask("x", stream_options={"include_usage": True}), 400, "stream_options"),
        (CHAT, ask("x", tools=[]), 400, "tools"),
        (CHAT, url("http://127.0.0.1:1/a.png"), 400, PLACE),
        (CHAT, url("file:///etc/passwd"), 400, PLACE),
        (CHAT, url("data:image/png;base64,###"), 400, PLACE),
        (CHAT, shown(b"no picture"), 400, PLACE),
        (CHAT, shown(bomb(60_000, 60_000)), 413, PLACE),
    ],
)
def test_what_is_wrong_is_named(api, path, body, status, param):
    answer = api.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error" and error["message"].startswith(f"{param}")


def test_other_paths_and_no_json(api):
    assert api.get("/v1/nothing").json()["error"]["code"] == "not_found"
    headers = {"content-type": "application/json"}
    assert api.post(IMAGES, content="{", headers=headers).json()["error"]["code"] == "bad_json"
    assert api.get("/v1/models").json()["data"][0]["id"] == "small"
    assert api.get("/v1/models/small").status_code == 200 and api.get("/v1/models/x").status_code == 404


def test_health(engine):
    with client(engine) as api:
        assert api.get("/health").json()["status"] == "ok"
    with client(engine, healthy=False) as api:
        answer = api.get("/health")
        assert answer.status_code == 503 and answer.headers["retry-after"]


def test_large_bodies_are_refused_unread(engine):
    limits = Limits(max_picture_bytes=1000, max_pictures=1, max_prompt=100)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with client(engine, limits) as api:
        assert api.post(IMAGES, content=b"x" * (limits.body_bytes + 1)).status_code == 413
        parts = (b"x" * 100_000 for _ in range(30))  # no length is announced
        assert api.post(IMAGES, content=parts, headers={"content-type": "application/json"}).status_code == 413
        assert api.post(CHAT, json=shown(encode_png(noise))).json()["error"]["param"] == PLACE


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic !!", "secret-token"])
def test_without_the_token_nothing_is_answered(engine, header):
    with client(engine, token="secret-token") as api:
        headers = {"authorization": header} if header else {}
        answer = api.post(IMAGES, json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer" and "secret-token" not in answer.text
        assert api.get("/", headers=headers).headers["www-authenticate"].startswith("Basic")
        assert api.get("/health").status_code == 200


def test_with_the_token_it_is_answered(engine):
    basic = base64.b64encode(b"me:secret-token").decode()
    with client(engine, token="secret-token") as api:
        for header in ("Bearer secret-token", f"Basic {basic}"):
            assert api.get("/v1/models", headers={"authorization": header}).status_code == 200


def test_pages_of_others_cannot_speak_for_the_reader(engine):
    with client(engine, hosts=frozenset({"127.0.0.1", "localhost"})) as api:
        assert api.get("/v1/models").status_code == 200
        answer = api.get("/v1/models", headers={"host": "evil.example:8000"})
        assert answer.status_code == 421 and answer.json()["error"]["param"] == "host"
        assert "default-src 'self'" in api.get("/v1/models").headers["content-security-policy"]


def test_a_full_queue_says_when_to_come_back():
    async def slow(job):
        yield Made(("x",), 1, 1)

    with client(slow, Limits(max_batch=1, max_queue=1)) as api:
        assert api.post(CHAT, json=ask("x", n=2)).status_code == 200
        answer = api.post(CHAT, json=ask("x", n=3))
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"


def test_a_model_that_is_away_and_one_that_fails():
    async def away(job):
        raise Unavailable("the model does not answer")
        yield

    async def broken(job):
        raise KeyError("/secret/path")
        yield

    with client(away) as api:
        answer = api.post(CHAT, json=ask("x"))
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert api.post(CHAT, json=ask("x", stream=True)).status_code == 503
    with client(broken) as api:
        answer = api.post(CHAT, json=ask("x", stream=True))
        assert answer.status_code == 500 and "secret" not in answer.text


def test_a_request_that_takes_too_long_is_given_up():
    import asyncio

    left = []

    async def slow(job):
        try:
            await asyncio.sleep(60)
            yield Made(("x",), 1, 1)
        finally:
            left.append(job)

    with client(slow, Limits(timeout=0.2)) as api:
        answer = api.post(CHAT, json=ask("x", n=2))
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout" and len(left) == 2


@needs_extra
def test_the_page_begins_with_what_the_model_chose_for_itself():
    from omniloom.stages.serving.page import Asked, Page

    loom = small_model()
    loom.config = replace(loom.config, sampling={"num_steps": 7, "guidance_scale": 2.5})
    page = Page(Service(Engine(loom), Facts.of("small", {}, loom), Limits(max_steps=15)))
    parts = page.blocks().get_config_file()["components"]
    begins = {part["props"].get("label"): part["props"].get("value") for part in parts}
    assert (begins["Guidance"], begins["Steps"], begins["Objective"]) == (2.5, 7, OBJECTIVES[0])
    assert page.usual(OBJECTIVES[1]) == (VisualSampling().guidance_scale, 15)  # its own are of the first objective
    fields = ["two", 3, 1.5, 4, OBJECTIVES[1], "auto"]
    jobs = page._drawings(Asked(*fields), None, 2)
    assert [job.seed for job in jobs] == [3, 4] and jobs[0].sampling == {
        "guidance_scale": 1.5, "num_steps": 4, "objective": OBJECTIVES[1]
    }  # fmt: skip


def test_a_picture_of_another_format_is_shown_too(api):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    content = url("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    assert api.post(CHAT, json={**content, "max_tokens": 2}).status_code == 200
