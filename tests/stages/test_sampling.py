"""`omniloom sample` on a small untrained model: what each request makes, where it is written down, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models

from omniloom.infra.artifacts import ArtifactStore
from omniloom.models.model import OmniLoom
from omniloom.models.unified.diffusion.amed import AmedPredictor
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import sampling_times
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.pipelines import cli
from omniloom.stages.data.media.decode import decode_image, decode_video, encode_png, probe_image, probe_video
from omniloom.stages.inference.loops import without_loop
from omniloom.stages.inference.requests import read_requests

BOTH = ("latent_diffusion", "next_code")


def build(objectives: tuple[str, ...] = BOTH) -> OmniLoom:
    return small_models.scattered(objectives, num_frames=5, batch_size=2)


@pytest.fixture(scope="module")
def loom() -> OmniLoom:
    return build()


@pytest.fixture(scope="module")
def model(loom, tmp_path_factory) -> Path:
    """A train artifact's folder."""
    folder = tmp_path_factory.mktemp("train")
    loom.save(folder / "model")
    (folder / "report").mkdir()
    captions = ["a handwritten seven", "a handwritten two"]
    (folder / "report" / "prompts.json").write_text(json.dumps({"captions": captions}))
    return folder


@pytest.fixture
def omniloom(tmp_path, monkeypatch, capsys):
    """Calls the command in an empty folder; gives (exit code, lines of stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["omniloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out.splitlines(), captured.err

    return call


def picture(path: Path, seed: int = 0) -> Path:
    path.write_bytes(encode_png(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)))
    return path


def printed(text: str) -> list[str]:
    return (text + "\n").splitlines()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def near(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and np.abs(one.astype(int) - two.astype(int)).max() <= 1


def test_images_of_any_size_are_drawn_as_the_model_draws_them(omniloom, model, loom):
    code, lines, err = omniloom(
        "sample",
        model,
        "--prompt",
        "a handwritten two",
        "--count",
        3,
        "--seed",
        5,
        "--steps",
        2,
        "--size",
        "24x40",
        "--sampler",
        "heun",
        "--guidance",
        3,
    )
    assert (code, err) == (0, "")
    assert lines == [f"samples/a-handwritten-two-{seed}.png" for seed in (5, 6, 7)]
    expected = loom.text_to_image(
        ["a handwritten two"] * 3,
        VisualSampling(size=(24, 40), num_steps=2, sampler="heun", guidance_scale=3.0),
        seeds=5,
    )
    for line, image in zip(lines, expected, strict=True):
        data = Path(line).read_bytes()
        assert near(decode_image(data), image) and probe_image(data).mark
    assert not Path("samples/samples.jsonl").exists()
    codes = omniloom("sample", model, "--prompt", "two", "--objective", "next_code", "--temperature", 0, "--jsonl", "m")
    assert codes == (0, ["samples/two-0.png"], "")
    assert near(
        decode_image(Path("samples/two-0.png").read_bytes()),
        loom.text_to_image(["two"], VisualSampling(objective="next_code", temperature=0.0))[0],
    )
    assert records(Path("m")) == [{"prompt": "two", "seed": 0, "segments": [{"image": "samples/two-0.png"}]}]


def test_videos(omniloom, model, loom):
    code, lines, _ = omniloom(
        "sample", model, "--prompt", "two", "--video", "--frames", 9, "--size", "16x24", "--steps", 1, "--out", "made"
    )
    assert code == 0 and lines == ["made/two-0.mp4"]
    data = Path(lines[0]).read_bytes()
    assert decode_video(data).shape == (9, 16, 24, 3) and probe_video(data).mark


def test_text_from_text_and_from_pictures(omniloom, model, loom, tmp_path):
    how = ("--max-new-tokens", 7, "--temperature", 1, "--top-k", 20, "--top-p", 0.9, "--seed", 3)
    written = TextSampling(max_new_tokens=7, temperature=1.0, top_k=20, top_p=0.9)
    code, lines, _ = omniloom("sample", model, "--prompt", "a hand", "--text", *how)
    assert code == 0 and lines == printed("a hand" + loom.text_to_text(["a hand"], written, seeds=3)[0])
    files = [picture(tmp_path / f"{seed}.png", seed) for seed in (1, 2)]
    shown = [decode_image(file.read_bytes()) for file in files]
    code, lines, _ = omniloom(
        "sample",
        model,
        *(a for file in files for a in ("--image", file)),
        "--prompt",
        "what?",
        "--objective",
        "next_code",
        *how,
    )
    codes = VisualSampling(objective="next_code")
    text = loom.text_to_text(["what?"], written, codes, images=[shown], seeds=3)[0]
    assert code == 0 and lines == printed(text)
    assert text != loom.text_to_text(["what?"], written, codes, images=[shown[:1]], seeds=3)[0]


def test_an_image_is_drawn_after_pictures_and_words(omniloom, model, loom, tmp_path):
    file = picture(tmp_path / "a.png")
    code, lines, _ = omniloom(
        "sample", model, "--image", file, "--prompt", "darker", "--draw", "--steps", 2, "--image-guidance", 1.5
    )
    assert code == 0 and lines == ["samples/darker-0.png"]
    shown = [[decode_image(file.read_bytes())]]
    drawn = decode_image(Path(lines[0]).read_bytes())
    how = {"num_steps": 2, "image_guidance_scale": 1.5}
    assert near(drawn, loom.text_to_image(["darker"], VisualSampling(**how), images=shown)[0])
    assert not near(drawn, loom.text_to_image(["darker"], VisualSampling(**how))[0])
    assert not near(drawn, loom.text_to_image(["darker"], VisualSampling(num_steps=2), images=shown)[0])


def test_text_and_pictures_in_turn(omniloom, model, loom):
    arguments = (
        "--interleave",
        "--prompt",
        "a hand",
        "--temperature",
        3,
        "--max-new-tokens",
        30,
        "--steps",
        1,
        "--frames",
        5,
        "--count",
        2,
    )
    code, lines, _ = omniloom("sample", model, *arguments)
    assert code == 0
    expected = loom.interleaved(
        ["a hand"] * 2,
        TextSampling(max_new_tokens=30, temperature=3.0),
        VisualSampling(num_frames=5, num_steps=1, temperature=3.0),
    )
    made = records(Path("samples/samples.jsonl"))
    assert [record["seed"] for record in made] == [0, 1]
    kinds = set()
    for record, segments in zip(made, expected, strict=True):
        for (kind, value), segment in zip(
            (pair for s in record["segments"] for pair in s.items()), segments, strict=True
        ):
            kinds.add(kind)
            if kind == "text":
                assert value == segment
            elif kind == "image":
                assert near(decode_image(Path(value).read_bytes()), segment) and value in lines
            else:
                assert decode_video(Path(value).read_bytes()).shape == segment.shape and value in lines
    assert kinds >= {"text", "image"}


def test_a_file_of_requests_gives_what_each_gives_alone(omniloom, model, tmp_path):
    folder = tmp_path / "asked"
    folder.mkdir()
    picture(folder / "a.png")
    lines = [
        {"prompt": "a handwritten two"},
        {"prompt": "two"},
        {"image": "a.png", "prompt": "what?"},
        {"prompt": "a handwritten seven moving", "seed": 70},
        {"image": ["a.png", "a.png"]},
    ]
    (folder / "all.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    how = ("--count", 2, "--steps", 2, "--max-new-tokens", 5, "--temperature", 1)
    code, out, err = omniloom("sample", model, "--prompts", folder / "all.jsonl", "--seed", 4, *how)
    assert (code, err) == (0, "")
    made = records(Path("samples/samples.jsonl"))
    assert [record["seed"] for record in made] == [4, 5, 6, 7, 8, 9, 70, 71, 12, 13]
    assert [record["prompt"] for record in made] == [line.get("prompt", "") for line in lines for _ in range(2)]
    assert len(list(Path("samples").glob("*.png"))) == 6
    for number in (3, 4, 7):
        line = lines[number // 2]
        alone = ["--prompt", line["prompt"], "--seed", made[number]["seed"], *how[2:], "--out", "alone"]
        alone += ["--image", folder / line["image"]] if "image" in line else []
        code, one, _ = omniloom("sample", model, *alone)
        ((kind, value),) = made[number]["segments"][0].items()
        assert code == 0
        if kind == "text":
            assert one == printed(value)
        else:
            assert near(*(decode_image(Path(path).read_bytes()) for path in (one[0], value)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "line 2: expected an object"),
        ("{}", "line 2: is missing"),
        ('{"promt": "x"}', "line 2: promt: unknown field"),
        ('{"prompt": 3}', "line 2: prompt: expected text"),
        ('{"prompt": "x", "seed": "1"}', "line 2: seed: expected an integer"),
        ('{"prompt": "x", "image": [3]}', "line 2: image: expected a file"),
        ('{"prompt": "x", "image": "no.png"}', "line 2: "),
        ('{"image": "all.jsonl"}', "line 2: "),
    ],
)
def test_bad_requests_are_named_by_file_and_line(omniloom, model, tmp_path, line, expected):
    path = tmp_path / "all.jsonl"
    path.write_text('{"prompt": "two"}\n' + line)
    code, out, err = omniloom("sample", model, "--prompts", path)
    assert (code, out) == (2, []) and err.startswith(f"error: {path}: {expected}") and not Path("samples").exists()


WRONG = {
    "no prompt": ([], "--prompt: is missing"),
    "two tasks": (["--prompt", "x", "--video", "--text"], "--video and --text exclude each other"),
    "a prompt and a file": (["--prompt", "x", "--prompts", "f"], "--prompts: excludes --prompt and --image"),
    "no file": (["--prompts", "f"], "f: --prompts: cannot be read"),
    "no picture": (["--image", "none.png"], "--image: none.png is no readable picture"),
    "no size": (["--prompt", "x", "--size", "12"], "--size: expected height x width"),
    "a size that does not fit": (["--prompt", "x", "--size", "20x20"], "--size: does not fit the model: "),
    "frames that do not fit": (["--prompt", "x", "--video", "--frames", "8"], "--frames: does not fit the model: "),
    "frames of an image": (["--prompt", "x", "--frames", "5"], "--frames: goes with --video or --interleave"),
    "an objective": (["--prompt", "x", "--objective", "masked_code"], "--objective: expected one of latent_diffusion"),
    "a sampler": (["--prompt", "x", "--sampler", "ddpm"], "--sampler: expected one of euler, heun"),
    "no predictor": (["--prompt", "x", "--sampler", "amed"], "--predictor: is missing, which the sampler amed needs"),
    "a predictor's file": (["--prompt", "x", "--sampler", "amed", "--predictor", "f"], "--predictor: f: cannot read"),
    "a probability": (
        ["--prompt", "x", "--text", "--top-p", "0"],
        "--top-p: expected a number above 0 and at most 1",
    ),
    "temperature": (["--prompt", "x", "--text", "--temperature", "-1"], "--temperature"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_name_the_option(omniloom, model, case):
    arguments, expected = WRONG[case]
    code, out, err = omniloom("sample", model, *arguments)
    assert code == 2 and out == [] and expected in err and not Path("samples").exists()


def test_a_model_of_text_alone_writes_and_draws_nothing(omniloom, tmp_path):
    build(()).save(tmp_path / "model")
    code, lines, _ = omniloom("sample", tmp_path / "model", "--prompt", "a", "--text", "--max-new-tokens", 3)
    assert code == 0 and lines
    for more in ([], ["--interleave"], ["--image", picture(tmp_path / "a.png")]):
        code, _, err = omniloom("sample", tmp_path / "model", "--prompt", "a", *more)
        assert code == 2 and "MODEL: was trained on text alone" in err


def test_a_predictor_serves_the_steps_and_the_diffusion_that_it_was_made_for(omniloom, model, loom, tmp_path):
    times = sampling_times(loom.config.diffusion, 3)
    AmedPredictor(times, diffusion=loom.config.diffusion).save(tmp_path / "right")
    AmedPredictor(times, diffusion=DiffusionConfig(predict="x")).save(tmp_path / "other")
    asked = ("sample", model, "--prompt", "two", "--sampler", "amed", "--predictor")
    code, lines, _ = omniloom(*asked, tmp_path / "right", "--steps", 3)
    assert code == 0
    fast = VisualSampling(num_steps=3, sampler="amed", predictor=AmedPredictor(times))
    expected = loom.text_to_image(["two"], fast)[0]
    assert near(decode_image(Path(lines[0]).read_bytes()), expected)
    for arguments, message in (
        ((tmp_path / "right", "--steps", 4), "--predictor: made for 3 steps"),
        ((tmp_path / "other", "--steps", 3), "--predictor: made for diffusion.predict x, the model has v"),
        ((tmp_path / "right", "--steps", 3, "--objective", "next_code"), "--sampler: next_code is no diffusion"),
    ):
        code, _, err = omniloom(*asked, *arguments)
        assert code == 2 and message in err


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf" + '{"prompt": "Grüße"}\n'.encode())
    assert [request.prompt for request in read_requests(tmp_path / "f")] == ["Grüße"]


def test_a_sampler_is_trained_for_a_model_and_draws(omniloom, model, tmp_path):
    path = tmp_path / "fast" / "amed.safetensors"
    code, lines, err = omniloom(
        "sampler", model / "model", "--steps", 3, "--iterations", 4, "--batch", 2, "--out", path
    )
    assert (code, err) == (0, "") and lines[-1] == str(path)
    assert "4 iterations on 2 prompts" in lines[0] and "of 5 network evaluations" in lines[1]
    assert [line.split("  ")[1].strip() for line in lines[2:-1]] == ["euler", "dpmpp_2m", "amed untrained", "amed"]
    asked = ("sample", model, "--prompt", "two", "--sampler", "amed", "--predictor", path)
    assert omniloom(*asked, "--steps", 3)[0] == 0
    (tmp_path / "asked.jsonl").write_text('{"prompt": "two"}')
    for arguments, message in (
        (("--steps", 3, "--objective", "next_code"), "--objective: next_code is no diffusion"),
        (("--steps", 3, "--size", "20x20"), "--size: does not fit the model"),
        (("--steps", 1), "--steps"),
        (("--steps", 3, "--prompts", "none"), "none: --prompts: cannot be read"),
    ):
        code, _, err = omniloom("sampler", model, "--out", path, *arguments)
        assert code == 2 and message in err
    (tmp_path / "bare").symlink_to(model / "model")
    code, _, err = omniloom("sampler", tmp_path / "bare", "--steps", 3, "--out", path)
    assert code == 2 and "--prompts: is missing" in err
    code, lines, _ = omniloom(
        "sampler",
        tmp_path / "bare",
        "--steps",
        2,
        "--iterations",
        1,
        "--batch",
        1,
        "--out",
        path,
        "--prompts",
        tmp_path / "asked.jsonl",
    )
    assert code == 0 and "1 prompts" in lines[0]


# ---- defaults, names and wrong requests ----


@pytest.mark.parametrize(
    "text, cut",
    [
        ("The license" + "\n" * 58, "The license …"),
        ("go " + "down" * 20, "go down …"),
        ("a b c. " * 9, "a b c. …"),
        ("wait...", "wait..."),
        ("=" * 20, "=" * 20),
        ("the cat sat on the mat", "the cat sat on the mat"),
        ("", ""),
    ],
)
def test_text_that_goes_round_in_circles_is_cut(text, cut):
    assert without_loop(text) == cut


def test_text_is_not_repeated_by_default(omniloom, model, loom, tmp_path):
    """Two texts of one prompt differ, and each is the model's own at the documented temperature."""
    code, _, _ = omniloom("sample", model, "--prompt", "a hand", "--text", "--count", 2, "--seed", 4, "--jsonl", "m")
    free = loom.text_to_text(["a hand"] * 2, TextSampling(temperature=0.8, top_p=0.95), seeds=4)
    assert code == 0 and free[0] != free[1]
    assert [made["segments"] for made in records(Path("m"))] == [[{"text": without_loop(text)}] for text in free]
    file = picture(tmp_path / "a.png")
    code, lines, _ = omniloom("sample", model, "--image", file)
    likeliest = loom.image_to_text([decode_image(file.read_bytes())], text=TextSampling(max_new_tokens=64))
    assert code == 0 and lines == printed(without_loop(likeliest[0]))


def test_nothing_that_was_made_is_written_over(omniloom, model):
    arguments = ("sample", model, "--steps", 1, "--prompt")
    names = [
        omniloom(*arguments, prompt, *more)[1][0]
        for prompt, more in (("a seven", ()), ("a seven!", ("--guidance", 9)), ("a seven", ()))
    ]
    assert names == [f"samples/a-seven-0{end}.png" for end in ("", "_2", "_3")]
    first, other, again = (Path(name).read_bytes() for name in names)
    assert first == again != other
    for number in ("", "_2"):
        omniloom(*arguments[:4], "--interleave", "--prompt", "a", "--max-new-tokens", 2)
        assert len(records(Path(f"samples/samples{number}.jsonl"))) == 1


def test_a_prompt_of_long_characters_is_a_file(omniloom, model):
    code, lines, _ = omniloom("sample", model, "--steps", 1, "--prompt", "𝔸" * 80, "--seed", 2**53 - 2)
    assert code == 0 and Path(lines[0]).exists() and Path(lines[0]).name.startswith("𝔸" * 20)


@pytest.mark.parametrize(
    "arguments, field",
    [
        (["--seed", 2**64], "--seed"),
        (["--seed", 2**53 - 1, "--count", 2], "--seed"),
        (["--sampler", "best"], "--sampler"),
        (["--objective", "noise"], "--objective"),
        (["--image-guidance", 2], "--image-guidance"),
        (["--out", "file"], "--out"),
    ],
)
def test_a_wrong_request_is_told_before_the_model_is_loaded(omniloom, arguments, field):
    Path("file").write_text("mine")
    code, _, err = omniloom("sample", "file", "--prompt", "a", *arguments)
    assert code == 2 and err.startswith(f"error: {field}: ") and Path("file").read_text() == "mine"


def test_a_model_by_its_config(omniloom, model):
    store = ArtifactStore(str(Path("runs/mine").absolute()))
    Path("mine.yaml").write_text("name: mine\nstorage: runs/${name}\ndata: ???\nstages: {}\n")
    code, _, err = omniloom("sample", "mine.yaml", "--prompt", "a")
    assert code == 2 and "mine.yaml: MODEL: has no trained model in" in err and "omniloom run mine.yaml" in err
    work = store.work_uri("train", "f" * 64)
    shutil.copytree(model, Path(work, "output"))
    store.set_last_used("mine", store.publish("train", "f" * 64, work, {"metrics": {}, "times": {"ended_unix": 1}}))
    by_config = omniloom("sample", "mine.yaml", "--prompt", "a", "--steps", 1)
    by_path = omniloom("sample", store.artifact_uri("train", "f" * 64), "--prompt", "a", "--steps", 1)
    assert by_config[0] == by_path[0] == 0
    assert Path(by_config[1][0]).read_bytes() == Path(by_path[1][0]).read_bytes()
    code, _, err = omniloom("sample", "nothing", "--prompt", "a")
    assert code == 2 and "nothing: MODEL: no such model" in err
    code, _, err = omniloom("sample", "models:/mine@champion", "--prompt", "a")
    assert code == 2 and "MLFLOW_TRACKING_URI" in err


@pytest.mark.parametrize("named", ["", "model"])
def test_a_damaged_model_is_not_sampled(omniloom, model, tmp_path, named):
    """Where the artifact's manifest is there; a folder without one is taken as it is."""
    folder = shutil.copytree(model, tmp_path / "artifact")
    weights = folder / "model" / "unified.safetensors"
    files = [
        {
            "path": str(file.relative_to(folder)),
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.rglob("*")
        if file.is_file()
    ]
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    ask = ("sample", folder / named, "--prompt", "a handwritten seven", "--text", "--max-new-tokens", 1)
    assert omniloom(*ask)[0] == 0
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    code, _, told = omniloom(*ask)
    assert code == 1 and "unified.safetensors" in told and "damaged" in told and "verify" in told
    (folder / "manifest.json").unlink()
    assert omniloom(*ask)[0] == 0
