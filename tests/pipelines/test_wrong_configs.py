"""Configs that cannot work: `plan` refuses each before anything is spent, with the file, the field and the line.

One table. A row changes a pipeline that is right: by lines of its file (`old`, `new`), by overrides, or both. What it
says is looked for in the message; `LINE` rows are changes of the file, so that the line is of the key or of the nearest
one around it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import corpora
import pytest

from omniloom.infra.errors import InputError
from omniloom.pipelines import cli, yaml_dialect
from omniloom.pipelines.config import load, raw
from omniloom.pipelines.plan import make_plan

PIPELINE = """\
name: right
storage: {folder}/storage
data: {folder}/data
seed: 0

stages:
  ingest:
    sources:
      - {{kind: image_folder, uri: "${{data}}/images", captions: {{manifest: manifest.jsonl}}}}
      - {{kind: video_folder, uri: "${{data}}/videos"}}
      - {{kind: text, uri: "${{data}}/text"}}
    splits: {{train: 0.8, validation: 0.1, test: 0.1}}

  tokenizer_image:
    model:
      patch_size: 8
      temporal_patch: 4
      width: 32
      heads: 2
      head_dim: 16
      spatial_layers: t
      temporal_layers: 1
      decoder_spatial_layers: t
      quantizer: {{kind: vq, codebook_size: 64, latent_dim: 8}}
    data: {{kinds: [image], sizes: [32], image_batch: 8}}
    optimizer: {{lr: 2.0e-3, betas: [0.9, 0.95]}}
    steps: 10

  tokenizer_joint:
    data: {{kinds: [image, video], sizes: [32], frames: 9, image_batch: 8, video_batch: 4}}
    steps: 10

  pretokenize:
    image_size: 32
    video_size: 32
    frames: 9
    vocab_size: 512

  train:
    model: {{width: 32, layers: 2, heads: 2, time_dim: 32}}
    diffusion: {{predict: v}}
    packing: {{length: 64, mixture: {{image: 0.75, video: 0.1, text: 0.15}}}}
    batch_rows: 8
    steps: 10
    optimizer: {{lr: 2.0e-3}}

  evaluate:
    gate: {{image_class_agreement: {{min: 0.85}}}}
"""


@dataclass(frozen=True)
class Wrong:
    field: str
    says: str
    overrides: tuple[str, ...] = ()
    old: str = ""
    new: str = ""


def sets(field: str, value: str, says: str, *more: str, at: str = "") -> Wrong:
    """One override, and what the others have to be; the error is `at` another field than the one that is set."""
    return Wrong(at or field, says, (f"{field}={value}", *more))


def line(old: str, new: str, field: str, says: str, *overrides: str, encoder: str = "") -> Wrong:
    return Wrong(field, says, overrides, old, new.replace("ENCODER", encoder))


NO_TOKENIZER = ("stages.tokenizer_image=null", "stages.tokenizer_joint=null", "stages.evaluate.gate={}")
MODEL = PIPELINE[PIPELINE.index("    model:\n") : PIPELINE.index("    data: {{kinds: [image], ")].format()
TITOK = """\
    model: {architecture: titok, image_size: 32, patch_size: 8, num_latents: 4, width: 32, heads: 2, head_dim: 16}
"""
RAE = """\
    model: {architecture: rae, encoder: "ENCODER", width: 32, heads: 2, head_dim: 16, decoder_layers: 1}
"""
STUDY = "stages.objective_study={training: {steps: 3, packing: {length: 64}}, objectives: "

WRONG = {
    # Stages that do not fit each other.
    "no architecture": line(MODEL, "", "stages.tokenizer_image.model", "is missing: the architecture of the tokenizer"),
    "no steps and nothing to take": sets("stages.tokenizer_image.steps", "0", "no tokenizer to take as it is"),
    "another architecture": sets(
        "stages.tokenizer_joint.model",
        "{architecture: titok, image_size: 32, patch_size: 8}",
        "training starts from a tokenizer of the architecture 'omni', got 'titok'",
        "stages.tokenizer_joint.data.kinds=[image]",
        at="stages.tokenizer_joint.model.architecture",
    ),
    "joint without image": sets(
        "stages.tokenizer_image", "null", "is missing: the architecture", at="stages.tokenizer_joint.model"
    ),
    "train without tokens": sets(
        "stages.pretokenize", "null", "reads tokens, which no configured stage", at="stages.train"
    ),
    "objectives without a tokenizer": Wrong("stages.train.objectives", "needs a visual tokenizer", NO_TOKENIZER),
    "codes of a continuous tokenizer": sets(
        "stages.train.objectives", "{next_code: 1}", "continuous and has no codes", "stages.tokenizer_kl={steps: 5}"
    ),
    "codes of a continuous tokenizer, masked": sets(
        "stages.train.objectives", "{masked_code: 1}", "continuous and has no codes", "stages.tokenizer_kl={steps: 5}"
    ),
    "codes of a continuous tokenizer, written in the first": sets(
        "stages.tokenizer_image.model.quantizer",
        "{kind: kl, latent_dim: 8}",
        "continuous and has no codes",
        "stages.train.objectives={next_code: 1}",
        at="stages.train.objectives",
    ),
    "a study of codes of a continuous tokenizer": sets(
        "stages.objective_study",
        "{training: {steps: 3, packing: {length: 64}}, objectives: {codes: next_code}}",
        "continuous and has no codes",
        "stages.tokenizer_kl={steps: 5}",
        at="stages.objective_study.objectives.codes",
    ),
    "pixels that are not kept": sets("stages.train.objectives", "{pixel_diffusion: 1}", "set stages.pretokenize.pixel"),
    "a study of pixels that are not kept": Wrong(
        "stages.objective_study.objectives.raw", "no raw pixels", (STUDY + "{raw: pixel_diffusion}}",)
    ),
    "features that are not kept": sets("stages.train.alignment", "{}", "set stages.pretokenize.features"),
    "a study with features that are not kept": Wrong(
        "stages.objective_study.training.alignment",
        "set stages.pretokenize.features",
        (
            "stages.objective_study={training: {packing: {length: 64}, alignment: {}}, "
            "objectives: {a: latent_diffusion}}",
        ),
    ),
    "a layer that the model lacks": sets(
        "stages.train.alignment", "{layer: 3}", "at most the model's 2, got 3", at="stages.train.alignment.layer"
    ),
    "a checkpoint without its tokenizer": sets(
        "stages.train.init_from", "{folder}/llama", "set stages.pretokenize.text_tokenizer"
    ),
    "a gate with a typing mistake": sets(
        "stages.evaluate.gate",
        "{image_class_agreemnt: {min: 0.9}}",
        "unknown metric; did you mean 'image_class_agreement'?",
        at="stages.evaluate.gate.image_class_agreemnt",
    ),
    "a gate on another objective's figure": sets(
        "stages.evaluate.gate",
        "{caption_accuracy_next_code: {min: 0.9}}",
        "is not measured by this pipeline; did you mean 'caption_accuracy'?",
        at="stages.evaluate.gate.caption_accuracy_next_code",
    ),
    "a gate on pictures of a language model": Wrong(
        "stages.evaluate.gate.image_class_agreement",
        "is not measured by this pipeline",
        (*NO_TOKENIZER[:2], "stages.train.objectives={}", "stages.train.packing.mixture={}"),
    ),
    "a gate on a champion without a registry": sets(
        "stages.evaluate.gate",
        "{better_than_champion: bits_per_byte}",
        "only a model registry has a champion",
        "tracking.register_as=null",
        at="stages.evaluate.gate.better_than_champion",
    ),
    # Sizes, patches, frames, rows.
    "an image size of no whole patches": sets(
        "stages.pretokenize.image_size", "33", "33 is no multiple of patch_size 8"
    ),
    "a video size of no whole patches": sets(
        "stages.pretokenize.video_size", "30", "30 is no multiple of patch_size 8"
    ),
    "frames": sets("stages.pretokenize.frames", "8", "expected 1 + a multiple of temporal_patch 4, got 8"),
    "pixel patches": sets("stages.pretokenize.pixel_patch", "5", "5 does not divide the 32x32 pixels"),
    "an aspect thinner than a patch": sets("stages.pretokenize.aspects", '["1:30"]', "has a side of"),
    "a tokenizer's size of no whole patches": sets(
        "stages.tokenizer_image.data.sizes", "[30]", "30 is no multiple of patch_size 8"
    ),
    "the size of a stage that takes over its architecture": sets(
        "stages.tokenizer_joint.data.sizes", "[20]", "20 is no multiple of patch_size 8"
    ),
    "the frames of a stage that takes over its architecture": sets(
        "stages.tokenizer_joint.data.frames", "8", "expected 1 + a multiple of temporal_patch 4, got 8"
    ),
    "videos for a TiTok": line(
        MODEL, TITOK, "stages.tokenizer_joint.data.kinds", "a TiTok is for images alone, expected [image]"
    ),
    "videos for an RAE": line(
        MODEL, RAE, "stages.tokenizer_joint.data.kinds", "an RAE is for images alone", encoder="{folder}/encoder"
    ),
    "a quantizer of an RAE": line(
        MODEL,
        RAE,
        "stages.tokenizer_joint.quantizer",
        "the latents of an RAE are its encoder's features",
        "stages.tokenizer_joint={data: {kinds: [image]}, quantizer: {kind: kl}}",
        encoder="{folder}/encoder",
    ),
    "pictures that are no TiTok's": line(
        MODEL,
        TITOK,
        "stages.pretokenize.image_size",
        "makes pictures of 40x40, the tokenizer's are 32x32",
        "stages.tokenizer_joint=null",
        "stages.pretokenize.image_size=40",
        "stages.ingest.sources=[{kind: image_folder, uri: '{folder}/data/images'}]",
        "stages.train.packing.mixture={}",
    ),
    "a row that holds no picture": sets(
        "stages.train.packing.length", "19", "19 tokens hold no image: one is 16 tokens"
    ),
    "a row that holds no video": sets("stages.train.packing.length", "51", "51 tokens hold no video: one is 48 tokens"),
    "a study's row that holds no video": Wrong(
        "stages.objective_study.training.packing.length",
        "32 tokens hold no video",
        ("stages.objective_study={training: {packing: {length: 32}}, objectives: {a: latent_diffusion}}",),
    ),
    "a row that holds no document's picture": sets(
        "stages.pretokenize.image_size",
        "64",
        "tokens hold no picture of a document: one is 64 tokens",
        "stages.ingest.sources=[{kind: image_folder, uri: '{folder}/data/images'}, "
        "{kind: interleaved, uri: '{folder}/data/text'}]",
        "stages.tokenizer_joint=null",
        "stages.train.packing.mixture={image: 0, video: 0, text: 0, document: 1}",
        at="stages.train.packing.length",
    ),
    "rows that workers cannot share": sets("stages.train.batch_rows", "7", "7 does not divide by"),
    "a row that workers cannot share": sets(
        "stages.train.engine.sequence_parallel", "3", "expected a divisor of the attention heads, model.heads = 2"
    ),
    "clips that workers cannot share": sets("stages.tokenizer_image.data.image_batch", "7", "does not divide by"),
    "accumulation of a tokenizer": sets("stages.tokenizer_image.workers.accumulate", "2", "one forward pass"),
    # What the sources do not give.
    "a share of videos without a source": sets(
        "stages.train.packing.mixture",
        "{image: 1, video: 1}",
        "video has a share of 1, and no source gives videos",
        "stages.ingest.sources=[{kind: image_folder, uri: '{folder}/data/images'}]",
        "stages.tokenizer_joint=null",
        at="stages.train.packing.mixture.video",
    ),
    "images for a tokenizer, of a corpus of videos": sets(
        "stages.ingest.sources",
        "[{kind: video_folder, uri: '{folder}/data/videos'}]",
        "no source of stages.ingest.sources gives images",
        "stages.train.packing.mixture={}",
        at="stages.tokenizer_image.data.kinds",
    ),
    "a tokenizer of a corpus of texts": sets(
        "stages.ingest.sources",
        "[{kind: text, uri: '{folder}/data/text'}]",
        "no source of stages.ingest.sources gives images",
        at="stages.tokenizer_image.data.kinds",
    ),
    # Outside paths.
    **{
        f"no {what}": sets(field, value, says, *more, at=at)
        for what, field, value, says, more, at in (
            (
                "folder of pictures",
                "stages.ingest.sources.0.uri",
                "{folder}/nowhere",
                "no such file or folder: {folder}/nowhere",
                (),
                "",
            ),
            (
                "folder at home",
                "stages.ingest.sources.0.uri",
                "~/no-pics",
                "no such file or folder: {home}/no-pics",
                (),
                "",
            ),
            (
                "relative folder",
                "stages.ingest.sources.0.uri",
                "no/pics",
                "no such file or folder: {here}/no/pics",
                (),
                "",
            ),
            (
                "manifest",
                "stages.ingest.sources.0.captions.manifest",
                "captions.jsonl",
                "no such file",
                (),
                "",
            ),
            (
                "VGG",
                "stages.tokenizer_image.perceptual",
                "{vgg: {folder}/vgg.pth}",
                "{folder}/vgg.pth: no such file",
                ("stages.tokenizer_image.loss={perceptual_weight: 1}",),
                "stages.tokenizer_image.perceptual.vgg",
            ),
            (
                "VGG of the second stage",
                "stages.tokenizer_joint.perceptual",
                "{vgg: {folder}/vgg.pth}",
                "{folder}/vgg.pth: no such file",
                ("stages.tokenizer_joint.loss={perceptual_weight: 1}",),
                "stages.tokenizer_joint.perceptual.vgg",
            ),
            (
                "VGG of a study",
                "stages.quantizer_study",
                "{training: {model: {patch_size: 8}, data: {sizes: [32]}, loss: {style_weight: 1}, "
                "perceptual: {vgg: {folder}/vgg.pth}}, "
                "quantizers: {a: {kind: kl}}}",
                "{folder}/vgg.pth: no such file",
                (),
                "stages.quantizer_study.training.perceptual.vgg",
            ),
            (
                "heads",
                "stages.tokenizer_image.perceptual",
                "{vgg: {folder}/torch.pth, heads: {folder}/lpips.pth}",
                "{folder}/lpips.pth: no such file",
                ("stages.tokenizer_image.loss={perceptual_weight: 1}",),
                "stages.tokenizer_image.perceptual.heads",
            ),
            (
                "text tokenizer",
                "stages.pretokenize.text_tokenizer",
                "{folder}/tokenizer.json",
                "is no tokenizer.json",
                (),
                "",
            ),
            ("encoder of features", "stages.pretokenize.features", "{folder}/siglip", "no vision encoder", (), ""),
            (
                "checkpoint to start from",
                "stages.train.init_from",
                "{folder}/llama",
                "holds neither model.safetensors nor",
                ("stages.pretokenize.text_tokenizer={folder}/text.json",),
                "",
            ),
            (
                "released checkpoint",
                "stages.tokenizer_image.official",
                "{folder}/omni.ckpt",
                "{folder}/omni.ckpt: no such file",
                ("stages.tokenizer_image.model=null",),
                "",
            ),
        )
    },
    "no encoder of an RAE": line(
        MODEL,
        RAE,
        "stages.tokenizer_image.model.encoder",
        "{folder}/nowhere: holds neither model.safetensors nor",
        encoder="{folder}/nowhere",
    ),
    "a text in the place of VGG": sets(
        "stages.tokenizer_image.perceptual",
        "{vgg: {folder}/data/text/a.txt}",
        "expected weights of torch.save or safetensors",
        "stages.tokenizer_image.loss={perceptual_weight: 1}",
        at="stages.tokenizer_image.perceptual.vgg",
    ),
    "a folder in the place of VGG": sets(
        "stages.tokenizer_image.perceptual",
        "{vgg: {folder}/data}",
        "is a folder, expected a file",
        "stages.tokenizer_image.loss={perceptual_weight: 1}",
        at="stages.tokenizer_image.perceptual.vgg",
    ),
    "a text in the place of a released checkpoint": sets(
        "stages.tokenizer_image.official",
        "{folder}/data/text/a.txt",
        "expected weights of torch.save or safetensors",
        "stages.tokenizer_image.model=null",
    ),
    "a text in the place of a tokenizer": sets(
        "stages.pretokenize.text_tokenizer", "{folder}/data/text/a.txt", "is no tokenizer.json"
    ),
    "a manifest of other keys": sets(
        "stages.ingest.sources.0.captions.manifest",
        "odd.jsonl",
        "the keys are picture_name_of, words",
    ),
    "a source of no known protocol": sets("stages.ingest.sources.0.uri", "nosuch://x", "cannot be opened"),
    # Numbers that torch would refuse, and values of another kind.
    "a beta of 1": sets(
        "stages.train.optimizer.betas", "[1.0, 0.95]", "less than 1", at="stages.train.optimizer.betas.0"
    ),
    "a beta below 0": sets(
        "stages.train.optimizer.betas", "[-1, 0.95]", "greater than or equal to 0", at="stages.train.optimizer.betas.0"
    ),
    "a tokenizer's beta": sets(
        "stages.tokenizer_image.optimizer.betas",
        "[0.9, 1.5]",
        "less than 1",
        at="stages.tokenizer_image.optimizer.betas.1",
    ),
    "an infinite rate": sets("stages.train.optimizer.lr", ".inf", "finite number"),
    "a rate that is no number": sets("stages.train.optimizer.lr", ".nan", "finite number"),
    "an infinite weight of a loss": sets(
        "stages.tokenizer_image.loss.feature_matching", ".inf", "finite number, got inf"
    ),
    "an infinite weight of training": sets("stages.train.loss.visual_weight", ".inf", "finite number, got inf"),
    "an infinite share": sets(
        "stages.train.packing.mixture",
        "{image: .inf}",
        "finite number, got inf",
        at="stages.train.packing.mixture.image",
    ),
    "an infinite weight of alignment": sets(
        "stages.train.alignment", "{weight: .inf}", "finite number, got inf", at="stages.train.alignment.weight"
    ),
    "a seed beyond torch's": sets("stages.train.seed", "18446744073709551616", "less than"),
    "a size that is no list": sets("stages.tokenizer_image.data.sizes", "32", "expected a list, such as [32]"),
    "steps in words": sets("stages.train.steps", "many", "valid integer"),
    "shares that do not sum": line(
        "splits: {train: 0.8,",
        "splits: {train: 0.9,",
        "stages.ingest.splits",
        "train + validation + test = 1, got 1.1",
    ),
    # Options that have no effect on what is chosen.
    "a codebook of an FSQ": sets(
        "stages.tokenizer_joint.quantizer",
        "{kind: fsq, codebook_size: 8192}",
        "codebook_size",
        at="stages.tokenizer_joint.quantizer.codebook_size",
    ),
    "a codebook's size as its codebook": sets(
        "stages.tokenizer_joint.quantizer",
        "{kind: vq, codebook: 512}",
        "codebook_size",
        at="stages.tokenizer_joint.quantizer.codebook",
    ),
    **{
        f"{option} of an FSQ": sets(
            "stages.tokenizer_joint.quantizer",
            f"{{kind: fsq, {option}: 1.0}}",
            "unknown key",
            at=f"stages.tokenizer_joint.quantizer.{option}",
        )
        for option in ("gumbel_tau", "kl_weight")
    },
    "a kind of quantizer that there is not": sets(
        "stages.tokenizer_joint.quantizer",
        "{kind: vqq}",
        "did you mean 'vq'?",
        at="stages.tokenizer_joint.quantizer.kind",
    ),
    **{
        f"{option} of a flow": sets(
            "stages.train.diffusion", f"{{{option}: {value}}}", "", at=f"stages.train.diffusion.{option}"
        )
        for option, value in (("data_std", 2.0), ("sigma_max", 10.0), ("sigma_min", 0.1), ("snr_gamma", 3.0))
    },
    **{
        f"{option} without its use": sets(
            "stages.train.model", f"{{{option}: {value}}}", "", at=f"stages.train.model.{option}"
        )
        for option, value in (("unet_width", 64), ("pixel_bottleneck", 16), ("flow_head_width", 64))
    },
    "networks of a loss without a weight": sets(
        "stages.tokenizer_image.perceptual", "{vgg: {folder}/torch.pth}", "has no effect"
    ),
    "a loss without its networks": sets(
        "stages.tokenizer_image.loss",
        "{perceptual_weight: 1}",
        "is missing, and the loss gives a weight to it",
        at="stages.tokenizer_image.perceptual",
    ),
    # Keys that are not there.
    "a key of a stage at the root": sets("train.steps", "3", "did you mean 'stages.train.steps'?", at="train"),
    "a typing mistake": sets("stages.train.stepz", "3", "unknown key; did you mean 'steps'?"),
    "a plus before the key": sets("+seed", "1", "unknown key; did you mean 'seed'?"),
    "no name": line("name: right\n", "", "name", "is missing"),
    "a pin of no artifact": sets("pins.train", "abcdef", "no artifact 'abcdef' of train"),
    "a pin of no stage": sets("pins.tokenizer_vq", "abcdef", "no stage 'tokenizer_vq'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The file of the right pipeline, its corpus, and outside files; sources are listed, and only manifests read."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, text in {
        "images/a.png": "",
        "images/b.png": "",
        "images/manifest.jsonl": "".join(json.dumps({"file": f"{x}.png", "caption": x}) + "\n" for x in "ab"),
        "images/odd.jsonl": json.dumps({"picture_name_of": "a", "words": "a"}) + "\n",
        "videos/a.mp4": "",
        "text/a.txt": "A text.",
        "text/a.md": "A text.",
    }.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "torch.pth").write_bytes(b"PK\x03\x04 and what torch.save writes")
    (folder / "text.json").write_text(corpora.text_tokenizer().to_json())
    (folder / "encoder").mkdir()
    corpora.vision_encoder(folder / "encoder")
    (folder / "right.yaml").write_text(PIPELINE.format(folder=folder))
    return folder


def filled(text: str, folder: Path) -> str:
    for name, value in {"folder": folder, "home": Path.home(), "here": Path.cwd()}.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def refusal(file: Path, overrides: list[str]) -> InputError:
    with pytest.raises(InputError) as caught:
        make_plan(load(str(file), overrides))
    assert caught.value.exit_code == 2
    return caught.value


def test_the_pipeline_that_the_mistakes_are_made_in_is_right(folder):
    assert [planned.status for planned in make_plan(load(str(folder / "right.yaml"))).stages] == ["run"] * 6
    assert len(WRONG) >= 53


@pytest.mark.parametrize("name", WRONG)
def test_plan_refuses_a_wrong_config(name, folder, tmp_path):
    wrong, file = WRONG[name], folder / "right.yaml"
    overrides = [filled(text, folder) for text in wrong.overrides]
    if wrong.old:
        text = file.read_text()
        assert wrong.old in text
        file = tmp_path / "wrong.yaml"
        file.write_text(text.replace(wrong.old, filled(wrong.new, folder), 1))
    error = refusal(file, overrides)
    assert (error.file, error.field) == (str(file), wrong.field), error
    assert filled(wrong.says, folder) in error.message
    # The same written down in the file: the message ends with the line of the field, or of the nearest key around it.
    written = tmp_path / "written.yaml"
    written.write_text(yaml_dialect.dump(raw(str(file), overrides)))
    error, lines = refusal(written, []), written.read_text().splitlines()
    assert (error.file, error.field) == (str(written), wrong.field), error
    if wrong.field in ("name", "train"):  # nothing is around them
        return
    told = int(re.search(r"\(line (\d+)\)", error.message)[1])
    key, item = lines[told - 1].strip(" -").partition(":")[0], wrong.field.split(".")[-1].isdigit()
    assert key in wrong.field.split(".") or item, (lines[told - 1], error)


@pytest.mark.parametrize("command", ["plan", "run", "doctor", "submit"])
@pytest.mark.parametrize("name", ["frames", "no VGG", "codes of a continuous tokenizer", "a beta of 1"])
def test_every_command_refuses_it_before_anything_starts(name, command, folder, monkeypatch, capsys):
    overrides = [filled(text, folder) for text in WRONG[name].overrides]
    monkeypatch.setattr(sys, "argv", ["omniloom", command, str(folder / "right.yaml"), *overrides])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"error: {folder}/right.yaml: {WRONG[name].field}: ")
    assert filled(WRONG[name].says, folder) in told
    assert not (folder / "storage").exists()
