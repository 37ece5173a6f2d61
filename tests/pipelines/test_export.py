"""`export`: a model for tools of others gives what it gives here. Repositories run where torch and safetensors are."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import types
from importlib.metadata import requires
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from PIL import Image

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.models.byte_bpe import ByteBPE
from omniloom.models.hf.repository import OmniLoomForGeneration
from omniloom.models.model import BundleConfig, OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import MixtureConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.pipelines.exporting.export import export
from omniloom.pipelines.exporting.lmms_eval import PLUGIN
from omniloom.stages.data.media.decode import decode_image, probe_image
from omniloom.stages.inference.requests import Options, Request
from omniloom.stages.inference.sampling import sample
from omniloom.stages.reporting.model_card import body, card

PROMPT = "a handwritten seven"
OBJECTIVES = ("latent_diffusion", "next_code", "masked_code", "pixel_diffusion", "next_latent")


def build(**unified) -> OmniLoom:
    torch.manual_seed(0)
    text = TextTokenizer.train([PROMPT, "a handwritten two moving left, 12 of them"] * 20, 290)
    tokenizer_config = corpora.small_tokenizer()
    config = BundleConfig(
        unified=UnifiedConfig(
            vocab_size=text.vocab_size,
            latent_dim=4,
            codebook_size=32,
            pixel_dim=3 * 8 * 8,
            width=48,
            layers=2,
            heads=4,
            density=MixtureConfig(components=3),
            **unified,
        ),
        diffusion=DiffusionConfig(predict="x"),
        tokenizer=tokenizer_config,
        latent_mean=(0.1, -0.2, 0.3, 0.0),
        latent_std=(0.5, 1.0, 2.0, 0.25),
        image_size=(16, 24),
        num_frames=5,
        objectives=OBJECTIVES,
        pixel_patch=8,
    )
    tokenizer = OmniTokenizer(tokenizer_config)
    tokenizer.train().encode(torch.rand(16, 3, 16, 24) - 0.5, update_codebook=True)
    model = UnifiedModel(config.unified)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return OmniLoom(config, model, tokenizer, text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[OmniLoom, str]:
    """A model, and the train artifact that holds it."""
    loom, store = build(), ArtifactStore(str(tmp_path_factory.mktemp("storage")))
    work = store.work_uri("train", "a" * 64)
    loom.save(storage.join(work, "output", "model"))
    facts = {
        "stage": "train",
        "version": 1,
        "fingerprint": "a" * 64,
        "config": {},
        "inputs": {},
        "input_digests": {},
        "sources": None,
        "outside": {},
        "metrics": {"steps": 7},
        "code": "0123456789abcdef",
        "packages": {"torch": "2"},
        "pipeline": "digits",
        "mlflow_run_id": None,
        "times": {"started": "", "ended": "2026-01-02", "ended_unix": 1.0, "seconds": 3.0},
    }
    return loom, store.publish("train", "a" * 64, work, facts).uri


@pytest.fixture(scope="module")
def repository(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "repository"
    export(trained[1], "hf", folder)
    return folder


def asked(model) -> dict:
    """What a model draws, describes, writes and scores, as JSON has it."""
    made = {}
    module = sys.modules[type(model).__mro__[1].__module__]
    for objective in OBJECTIVES:
        visual = module.VisualSampling(objective=objective, num_steps=3)
        made[objective] = model.text_to_image(["a handwritten seven", ""], visual, seeds=[3, 4]).tolist()
    pictures = model.text_to_image(["a handwritten seven"], seeds=[3])
    made["videos"] = model.text_to_video(["a handwritten two"], seeds=[1]).tolist()
    made["captions"] = model.image_to_text(list(pictures), text=module.TextSampling(max_new_tokens=9, temperature=0.7))
    made["texts"] = model.text_to_text(["a hand", "\u0394 12"], module.TextSampling(max_new_tokens=9))
    turns = model.interleaved(["a handwritten"], module.TextSampling(max_new_tokens=24, temperature=1.5), seeds=[5])
    made["turns"] = [part if isinstance(part, str) else part.tolist() for part in turns[0]]
    made["logits"] = model.next_token_logits(["a hand", "seven"]).tolist()
    made["likelihood"] = list(model.log_likelihood("a hand", "written two", [pictures[0]]))
    return made


BARE = """
import importlib.util, inspect, json, sys
sys.path[:] = [p for p in sys.path if "packages" not in p and p] + [{packages!r}, {folder!r}]
import torch, safetensors
for name in ("numpy", "tokenizers", "omniloom", "PIL"):
    assert importlib.util.find_spec(name) is None, name
torch.set_num_threads(1)
from modeling_omniloom import OmniLoomForGeneration
{asked}
OBJECTIVES = {objectives!r}
print(json.dumps(asked(OmniLoomForGeneration.from_pretrained({folder!r}))))
"""


def only_torch(folder: Path) -> Path:
    """A folder with torch, safetensors and what pip installs with them, and nothing else."""
    folder.mkdir()
    waiting, seen = ["torch", "safetensors"], set()
    modules = {"typing-extensions": "typing_extensions", "jinja2": "jinja2", "setuptools": "setuptools"}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = importlib.util.find_spec(modules.get(name, name.lower()))
        if found and found.origin:
            place = Path(found.origin)
            place = place.parent if place.name == "__init__.py" else place
            (folder / place.name).symlink_to(place)
            for extra in ("torchgen", "functorch") if name == "torch" else ():
                (folder / extra).symlink_to(place.parent / extra)
        for wanted in requires(name) or () if found else ():
            if ";" not in wanted:
                waiting.append(
                    wanted.split(">")[0].split("=")[0].split("<")[0].split("[")[0].split("!")[0].strip().lower()
                )
    return folder


@pytest.mark.slow
def test_torch_and_safetensors_alone_give_the_same(trained, repository, tmp_path):
    import inspect

    torch.set_num_threads(1)
    packages = only_torch(tmp_path / "packages")
    code = BARE.format(
        packages=str(packages), folder=str(repository), asked=inspect.getsource(asked), objectives=OBJECTIVES
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    there, here = json.loads(done.stdout), asked(OmniLoomForGeneration.from_pretrained(repository))
    assert there.keys() == here.keys()
    assert {name for name in here if there[name] != here[name]} == set()


def test_a_repository_is_what_sample_draws(trained, repository, tmp_path):
    loom, uri = trained
    model = OmniLoomForGeneration.from_pretrained(repository)
    assert model.config == loom.config
    assert torch.equal(model.model.text_logits(torch.arange(7)[None]), loom.model.text_logits(torch.arange(7)[None]))
    (path,) = sample(uri, [Request(PROMPT)], Options(seed=5), tmp_path)
    assert np.array_equal(decode_image(Path(path).read_bytes()), model.text_to_image([PROMPT], seeds=[5])[0])


def test_what_is_in_a_repository(trained, repository):
    loom, _ = trained
    assert {path.name for path in repository.iterdir()} - {"__pycache__"} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modeling_omniloom.py", "omniloom_model", "visual_tokenizer"),
    }
    config = json.loads((repository / "config.json").read_text())
    assert config["model_type"] == "omniloom" and config["num_hidden_layers"] == 2
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(repository / "tokenizer.json"))
    assert words.encode(PROMPT, add_special_tokens=False).ids == loom.text.encode(PROMPT)
    named = json.loads((repository / "tokenizer_config.json").read_text())
    assert named["eos_token"] == "<eos>" and "<boi>" in named["additional_special_tokens"]
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: omniloom") and "a" * 64 in card and "0123456789ab" in card
    autoencoder = repository / "visual_tokenizer"
    own = json.loads((autoencoder / "config.json").read_text())
    assert own["latents_std"] == list(loom.config.latent_std) and own["latent_channels"] == 4
    from safetensors.torch import load_file

    state = load_file(autoencoder / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(state[name], value) for name, value in loom.tokenizer.state_dict().items())
    # The modules are ours, and name nothing of this installation.
    modules = repository / "omniloom_model"
    assert not [path for path in modules.rglob("*.py") if "omniloom.models" in path.read_text()]


def test_a_card_tells_data_lineage_and_figures(trained):
    config = json.loads((Path(trained[1]) / "model" / "config.json").read_text())
    facts = {"code": "c" * 40, "times": {"ended": "2026-01-01", "seconds": 61.0}, "packages": {"torch": "2.13"}}
    counts = {"records": 9, "records_image": 7, "records_text": 2, "records_test": 3, "rejects": 4}
    sources = [{"kind": "image_folder", "name": "pets", "license": "CC0"}]
    records = Artifact("ingest", "1" * 64, "/x", {**facts, "config": {"sources": sources}, "metrics": counts})
    training = Artifact("train", "2" * 64, "/y", {**facts, "config": {}, "metrics": {"steps": 1200}})
    told = "\n".join(body(config, training, [records, training], {"caption_accuracy": 0.91, "text": "no figure"}))
    for line in (
        "One transformer of 2 layers, 48 wide, over a vocabulary of 290, that reads and writes text and pictures.",
        "7 images, 2 texts, of these held out: 0 for validation, 3 for tests.",
        "4 files or rows were rejected.",
        "- source pets (image_folder, license CC0)",
        f"| ingest | `{'1' * 64}` | 2026-01-01 | cccccccccccc |",
        "Trained for 1,200 steps in 61 s.",
        "| caption_accuracy | 0.91 |",
    ):
        assert line in told, line
    assert "no figure" not in told
    alone = card("mine", {**config, "objectives": []}, None)
    assert "text-generation" in alone and "text_to_text" in alone and "Lineage" not in alone


def test_a_bpe_without_the_library(trained):
    """Against the library: random words with what its expression cuts apart."""
    text = TextTokenizer.train(["it's the 12 red squares, and they'll move", "\u65e5\u672c \u0394\u03b4"] * 9, 400)
    plain, rng = ByteBPE(text.to_json()), np.random.default_rng(0)
    pool = [
        *"  \t\n'sdmtlre abcXZ019.,!-_",
        "'ll",
        "\u00e9",
        "\u65e5",
        "\U0001f600",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\u00bd",
    ]
    for _ in range(3000):
        word = "".join(rng.choice(pool, rng.integers(1, 14)))
        assert plain.encode(word).ids == text.encode(word), repr(word)
    ids = [int(n) for n in rng.integers(6, text.vocab_size, 500)]
    assert plain.decode(ids) == text.decode(ids) and plain.to_str() != ""
    other = json.loads(text.to_json()) | {"normalizer": {"type": "NFC"}}
    with pytest.raises(ValueError, match="needs the library"):
        ByteBPE(json.dumps(other))


# ---- lmms-eval ----


def test_the_plugin_answers_as_the_model_does(trained, tmp_path, monkeypatch):
    """The interface of lmms-eval (`lmms`, `register_model`, requests' args) stands in for lmms-eval itself."""
    folder = tmp_path / "lmms"
    export(trained[1], "lmms-eval", folder)
    known = {}
    for name, own in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.model", {"lmms": type("lmms", (), {"__init__": lambda self: None, "task_dict": {}})}),
        ("lmms_eval.api.registry", {"register_model": lambda name: lambda cls: known.setdefault(name, cls)}),
    ):
        module = types.ModuleType(name)
        vars(module).update(own)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(folder))
    models = importlib.import_module(f"{PLUGIN}.models")
    assert models.AVAILABLE_MODELS == {"omniloom": "OmniLoom"}
    importlib.import_module(f"{PLUGIN}.models.omniloom")
    model = known["omniloom"](pretrained=str(folder / "model"), batch_size="1")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    model.task_dict = {"mme": {"test": {4: {"image": picture, "answer": "two"}}}}
    shown = lambda doc: [doc["image"]]  # noqa: E731
    request = types.SimpleNamespace(args=("<image>\nwhat is it", {"max_new_tokens": 6}, shown, 4, "mme", "test"))
    loom = trained[0]
    text = TextSampling(max_new_tokens=6, temperature=0)
    assert model.generate_until([request]) == [
        loom.text_to_text(["what is it"], text, images=[[np.asarray(picture)]])[0].strip()
    ]
    scored = types.SimpleNamespace(args=("a hand", lambda doc: doc["answer"], shown, 4, "mme", "test"))
    ((value, greedy),) = model.loglikelihood([scored])
    assert value < 0 and greedy in (True, False)
    for name in [n for n in sys.modules if n.startswith((PLUGIN, "omniloom_model", "modeling_omniloom"))]:
        monkeypatch.delitem(sys.modules, name)


def test_likelihoods_are_sums_over_tokens(repository):
    """Against the logits of the whole text at once."""
    model = OmniLoomForGeneration.from_pretrained(repository)
    ids = model.text.encode(" two of them")
    whole = [model.config.unified.specials.bos, *model.text.encode("a hand"), *ids]
    with torch.no_grad():
        logits = model.model.text_logits(torch.tensor([whole]))[0].log_softmax(-1)
    at = range(len(whole) - len(ids) - 1, len(whole) - 1)
    expected = sum(float(logits[place, number]) for place, number in zip(at, ids, strict=True))
    assert model.log_likelihood("a hand", " two of them")[0] == pytest.approx(expected, abs=1e-4)


# ---- benchmarks ----


def test_pictures_of_benchmarks(trained, tmp_path):
    loom, uri = trained
    prompts = ["four white bicycles", "a cow"]

    def written(rows: list[dict], name: str, **more) -> Path:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        export(uri, "geneval", tmp_path / name, tmp_path / f"{name}.jsonl", seed=2, **more)
        return tmp_path / name

    drawn = loom.text_to_image(prompts, seeds=[2, 3])
    folder = written([{"prompt": p, "atom_count": 1, "vqa_list": [], "skills": []} for p in prompts], "geneval2")
    paths = json.loads((folder / "image_paths.json").read_text())
    assert list(paths) == prompts
    assert all(np.array_equal(np.asarray(Image.open(paths[p])), x) for p, x in zip(prompts, drawn, strict=True))
    mark = probe_image(Path(paths["a cow"]).read_bytes()).mark
    assert mark == {
        "model": "omniloom",
        "prompt": "a cow",
        "seed": 3,
        "fingerprint": "a" * 64,
        "weights": mark["weights"],
    }

    rows = [{"tag": "single_object", "include": [], "prompt": p} for p in prompts]
    folder = written(rows, "geneval", count=2)
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text()) == rows[1]
    assert sorted(path.name for path in (folder / "00001" / "samples").iterdir()) == ["0000.png", "0001.png"]
    four = loom.text_to_image([prompts[0], prompts[0], prompts[1], prompts[1]], seeds=[2, 3, 4, 5])
    assert np.array_equal(np.asarray(Image.open(folder / "00001" / "samples" / "0000.png")), four[2])

    folder = written([{"id": f"u{n}", "prompt": p, "task_type": "art"} for n, p in enumerate(prompts)], "ueval")
    answers = json.loads((folder / "outputs.json").read_text())
    assert [answer["id"] for answer in answers] == ["u0", "u1"]
    assert all(Path(file).exists() for answer in answers for file in answer["image_answer"])
    assert all(answer["image_answer"] and isinstance(answer["text_answer"], str) for answer in answers)


def test_wrong_requests(trained, tmp_path, omniloom):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for to, out, more, why in (
        ("hf", "full", {}, "is there already"),
        ("hf", "new", {"prompts": tmp_path / "rows.jsonl"}, "goes with --to geneval"),
        ("geneval", "new", {}, "--prompts: is missing"),
        ("geneval", "new", {"prompts": tmp_path / "rows.jsonl"}, "expected rows of GenEval 2"),
        ("onnx", "new", {}, "expected one of hf"),
    ):
        with pytest.raises(InputError, match=why):
            export(trained[1], to, tmp_path / out, **more)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    code, out, _ = omniloom("export", trained[1], "--to", "hf", "--out", str(tmp_path / "by_command"))
    assert code == 0 and "by_command" in out and (tmp_path / "by_command" / "model.safetensors").exists()


# ---- what sampled files say ----


def test_files_say_how_they_were_made(trained, tmp_path):
    import av

    _, uri = trained
    options = Options(seed=7, sampling={"num_steps": 3, "size": (16, 16)})
    (path,) = sample(uri, [Request(PROMPT)], options, tmp_path)
    mark = probe_image(Path(path).read_bytes()).mark
    manifest = json.loads((Path(uri) / "manifest.json").read_text())
    weights = next(e["sha256"] for e in manifest["files"] if e["path"] == "model/unified.safetensors")
    assert (mark["prompt"], mark["seed"], mark["fingerprint"], mark["weights"]) == (PROMPT, 7, "a" * 64, weights)
    assert mark["settings"]["num_steps"] == 3 and mark["settings"]["size"] == [16, 16]
    assert mark["settings"]["objective"] == "latent_diffusion" and mark["settings"]["sampler"] == "euler"
    # By what it says the picture is drawn again.
    sampling = {**mark["settings"], "size": tuple(mark["settings"]["size"])}
    again = OmniLoom.load(Path(uri) / "model").text_to_image(
        [mark["prompt"]], VisualSampling(**sampling), seeds=[mark["seed"]]
    )
    assert np.array_equal(again[0], decode_image(Path(path).read_bytes()))
    (clip,) = sample(f"{uri}/model", [Request(PROMPT)], Options(task="video", seed=8), tmp_path)
    with av.open(io.BytesIO(Path(clip).read_bytes())) as video:
        told = json.loads(video.metadata["comment"].removeprefix("omniloom "))
    assert (told["prompt"], told["seed"], told["fingerprint"]) == (PROMPT, 8, "a" * 64)
