"""Sizing: the figures that `doctor` tells of a pipeline are those of the modules it would build."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import corpora
import pytest
from distributions import install

from omniloom.models.tokenizer.build import build_tokenizer
from omniloom.models.tokenizer.vit import load_vit
from omniloom.pipelines.config import load, raw, validate
from omniloom.pipelines.sizing import sizes

TITOK = {
    "architecture": "titok",
    "image_size": 32,
    "patch_size": 8,
    "num_latents": 12,
    "width": 64,
    "heads": 2,
    "head_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "quantizer": {"kind": "fsq", "levels": [8, 5, 5]},
}


@pytest.mark.parametrize("model, tokens", [(None, 16), (TITOK, 16 + 12)], ids=["omni", "titok"])
def test_a_tokenizers_figures(model, tokens):
    values = raw("demo")
    if model:
        values["stages"]["tokenizer_image"]["model"] = model
        values["stages"]["tokenizer_joint"]["data"] = values["stages"]["tokenizer_image"]["data"]
    config = validate(values, "demo")
    stage, found = config.stages.tokenizer_image, sizes(config)
    image, joint = found["tokenizer_image"], found["tokenizer_joint"]
    parameters = sum(p.numel() for p in build_tokenizer(stage.model).parameters())
    assert image["parameters"] == joint["parameters"] == parameters
    assert max(stage.data.sizes) == 4 * stage.model.patch_size  # 16 patches
    assert image["image_tokens_per_step"] == stage.data.image_batch * tokens
    assert ("video_tokens_per_step" in joint) == (model is None)
    trained = image["parameters"] + image["discriminator_parameters"]
    assert (stage.engine.zero_stage, stage.workers.count) == (1, 2)  # the optimizer steps a copy of its half
    assert image["weights_bytes"] == 4 * trained and image["gradients_bytes"] == 4 * trained
    assert image["memory_per_worker_bytes"] == sum(
        v for k, v in image.items() if k.endswith("_bytes") and k != "memory_per_worker_bytes"
    )


def test_workers_that_share_rows_out_have_an_nth_of_each():
    def told(**fields) -> dict:
        values = raw("demo")
        train = values["stages"]["train"]
        train["workers"] = {**train.get("workers", {}), "count": 2, "accumulate": fields.pop("accumulate", 1)}
        train["engine"] = {**train.get("engine", {}), **fields}
        train["packing"]["length"] = 511  # 256 for one of two, 512 together
        return sizes(validate(values, "demo"))["train"]

    whole, shared = told(), told(sequence_parallel=2, accumulate=2)
    assert shared["tokens_per_worker_and_pass"] * 511 == whole["tokens_per_worker_and_pass"] * 256
    assert shared["activations_bytes"] == pytest.approx(whole["activations_bytes"] / 2, rel=0.1)
    assert shared["weights_bytes"] == whole["weights_bytes"]  # ZeRO goes over all workers


def test_a_frozen_encoder_has_weights_alone(tmp_path):
    values = raw("demo")
    values["stages"]["tokenizer_image"]["model"] = {
        "architecture": "rae",
        "encoder": str(corpora.vision_encoder(tmp_path)),
        "width": 32,
        "heads": 2,
        "head_dim": 16,
        "decoder_layers": 2,
    }
    values["stages"]["tokenizer_joint"]["data"] = values["stages"]["tokenizer_image"]["data"]
    found = sizes(validate(values, "demo"))
    image, encoder = found["tokenizer_image"], load_vit(tmp_path)
    frozen = sum(p.numel() for p in encoder.parameters())
    trained = image["parameters"] + image["discriminator_parameters"] - frozen
    assert image["weights_bytes"] == 4 * (trained + frozen) and image["gradients_bytes"] == 4 * trained
    assert found["tokenizer_joint"]["parameters"] == image["parameters"]
    batch = validate(values, "demo").stages.tokenizer_image.data.image_batch
    assert image["image_tokens_per_step"] == batch * 16


def test_frozen_weights_beside_an_adapter_have_neither_gradients_nor_states(tmp_path):
    llama = corpora.language_model(tmp_path / "llama")
    values = raw("demo")
    values["stages"]["pretokenize"] |= {"text_tokenizer": str(llama / "tokenizer.json")}
    del values["stages"]["pretokenize"]["vocab_size"]
    del values["stages"]["train"]["model"]
    values["stages"]["train"] |= {"init_from": str(llama)}
    whole = sizes(validate(values, "demo"))["train"]
    assert "trained_parameters" not in whole
    values["stages"]["train"] |= {"adapter": {"rank": 2}}
    found = sizes(validate(values, "demo"))["train"]
    trained, frozen = found["trained_parameters"], found["parameters"] - found["trained_parameters"]
    matrices = 2 * 2 * sum((48 + 32, 24 + 32, 24 + 32, 32 + 48, 48 + 32, 48 + 32, 32 + 48))  # layers, rank, both sides
    assert matrices < trained < found["parameters"] < whole["parameters"] + matrices + 1000
    config = validate(values, "demo").stages.train
    assert (config.engine.zero_stage, config.workers.count, bool(config.engine.ema_decay)) == (1, 2, True)
    assert found["weights_bytes"] == 4 * (trained + frozen)
    assert (found["gradients_bytes"], found["optimizer_bytes"]) == (4 * trained, 8 * -(-trained // 2))


def test_what_starts_from_a_pinned_artifact_is_not_sized(tmp_path):
    def sized(*overrides: str) -> set[str]:
        return set(sizes(load("demo", [f"storage={tmp_path}", *overrides])))

    assert sized() == {"tokenizer_image", "tokenizer_joint", "train"}
    image = ("stages.tokenizer_image=null", "pins.tokenizer_image=abc")
    assert sized(*image) == set()
    assert sized("stages.pretokenize=null", "pins.pretokenize=abc") == {"tokenizer_image", "tokenizer_joint"}
    rest = [f"stages.{name}=null" for name in ("tokenizer_joint", "pretokenize", "train", "evaluate")]
    assert sized(*rest) == {"tokenizer_image"} and sized(*rest, "stages.tokenizer_image=null") == set()


QUANTIZER = """
from dataclasses import dataclass
from typing import Literal

from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, QuantizerKind


@dataclass(frozen=True)
class Config(QuantizerConfig):
    kind: Literal["NAME"] = "NAME"
    dim: int = 4
    size: int = 16
    restart_dead_after: float = 16.0


KIND = QuantizerKind("NAME", Config, "NAME_module:Quantizer")
"""
MODULE = """
import torch
from omniloom.models.tokenizer.quantizers.base import DiscreteQuantizer


class Quantizer(DiscreteQuantizer):
    def __init__(self, config):
        super().__init__(config)
        self.input_dim = self.dim = config.dim
        self.table = torch.nn.Parameter(torch.linspace(-1, 1, config.dim))
        self.mean_square = LINE
"""
PROJECT = """
[project]
name = "NAME-quantizer"
version = "1.2"
entry-points."omniloom.quantizers" = {NAME = "NAME:KIND"}
[tool.setuptools]
py-modules = ["NAME", "NAME_module"]
"""
SIZED = """
import json, sys
from omniloom.infra.errors import InputError
from omniloom.pipelines.config import load
from omniloom.pipelines.sizing import sizes
found = {}
for name in ("reads", "raises"):
    config = load("demo", ["storage=/nowhere", f"stages.tokenizer_image.model.quantizer={{kind: {name}}}"])
    try:
        found[name] = sizes(config)["tokenizer_image"]["parameters"]
    except InputError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


def test_a_quantizer_that_meta_tensors_do_not_serve_is_built_or_named(tmp_path):
    """Of another distribution: one reads a tensor's value, one cannot be built anywhere."""
    for name, line in (("reads", "float(self.table.square().mean())"), ("raises", "1 / 0")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(PROJECT.replace("NAME", name))
        (folder / f"{name}.py").write_text(QUANTIZER.replace("NAME", name))
        (folder / f"{name}_module.py").write_text(MODULE.replace("LINE", line))
        install(folder, tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SIZED], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = load("demo", [f"storage={tmp_path}"]).stages.tokenizer_image.model
    ours = build_tokenizer(model)
    channels = 4 - model.quantizer.dim  # of the two projections around it, on either side
    width, codebook = model.width, sum(p.numel() for p in ours.codebook.parameters())
    expected = sum(p.numel() for p in ours.parameters()) - codebook + channels * (2 * width + 1) + 4
    assert found["reads"] == expected
    for part in (
        "stages.tokenizer_image.model.quantizer: ",
        "kind raises of the distribution raises-quantizer 1.2 cannot be built: ZeroDivisionError: division by zero",
    ):
        assert part in found["raises"]
