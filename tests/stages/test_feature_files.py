"""Files of feature networks, good and hostile: what is wrong is told by file and key before anything is spent."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import feature_references
import pytest
import torch

from omniloom.infra.errors import InputError
from omniloom.models.features import layouts
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.features.checks import check_features
from omniloom.stages.evaluate.features.config import FeaturesConfig
from omniloom.stages.evaluate.features.files import check_files

BRANCH = "Mixed_6c.branch7x7_2.conv.weight"


@pytest.fixture(scope="module")
def state():
    return feature_references.inception_state()


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scripted") / "i3d.pt"
    torch.jit.script(feature_references.Scripted()).save(str(path))
    return path


def refused(expected: str, field: str, **features):
    with pytest.raises(InputError, match=expected) as caught:
        check_files(FeaturesConfig.model_validate(features), "features")
    assert caught.value.field == f"features.{field}"
    return caught.value


def test_good_files_pass(state, scripted, tmp_path):
    inception = feature_references.save(state, tmp_path / "inception.safetensors")
    check_files(FeaturesConfig(inception=inception, i3d=str(scripted)), "features")
    check_files(FeaturesConfig(inception=str(scripted)), "features")
    own = {**state, "fc.weight": state["fc.weight"][:1000], "AuxLogits.conv0.conv.weight": torch.zeros(1)}
    check_files(FeaturesConfig(inception=feature_references.save(own, tmp_path / "own.safetensors")), "features")


def test_a_missing_key_and_a_wrong_shape(state, tmp_path):
    less = {key: value for key, value in state.items() if key != BRANCH}
    error = refused(
        f"{BRANCH}: is missing", "inception", inception=feature_references.save(less, tmp_path / "less.safetensors")
    )
    assert error.file.endswith("less.safetensors")
    turned = {**state, BRANCH: state[BRANCH].transpose(2, 3)}
    file = feature_references.save(turned, tmp_path / "turned.safetensors")
    refused(rf"{BRANCH}: expected the shape \(160, 160, 1, 7\), got \(160, 160, 7, 1\)", "inception", inception=file)
    whole = {**state, BRANCH: state[BRANCH].to(torch.int32)}
    file = feature_references.save(whole, tmp_path / "whole.safetensors")
    refused(f"{BRANCH}: expected floats, got I32", "inception", inception=file)
    file = feature_references.save({**state, "fc.weight": torch.zeros(21, 2048)}, tmp_path / "classes.safetensors")
    refused(r"fc.weight: expected the shape \(1008, 2048\) or \(1000, 2048\)", "inception", inception=file)


def test_a_file_that_was_cut_short(state, tmp_path):
    file = Path(feature_references.save(state, tmp_path / "inception.safetensors"))
    data = file.read_bytes()
    for size in (len(data) - 1, 1000, 8, 0):
        file.write_bytes(data[:size])
        refused("long|no safetensors", "inception", inception=str(file))
    file.write_bytes(data + b"more")
    refused("long", "inception", inception=str(file))
    file.write_bytes((10**15).to_bytes(8, "little") + b"{")
    refused("no safetensors", "inception", inception=str(file))
    for header in (b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}', b"{]"):
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        refused("header cannot be read", "inception", inception=str(file))
    refused("no such file", "inception", inception=str(tmp_path / "none.safetensors"))


class Ran:
    """Unpickled, it leaves a trace."""

    def __init__(self, at: Path):
        self.at = at

    def __reduce__(self):
        return (Path.touch, (self.at,))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_never_run(tmp_path, name, zipped):
    trace, file = tmp_path / "ran", tmp_path / name
    if zipped:
        torch.save({"fc.weight": Ran(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Ran(trace)))
    scripted = name.endswith(".pt")
    refused("no TorchScript file|no whole TorchScript" if scripted else "pickle", "inception", inception=str(file))
    assert not trace.exists()


def test_a_script_with_something_else_in_its_pickle(scripted, tmp_path):
    trace = tmp_path / "ran"

    def rewritten(name: str, **changed: bytes | None) -> str:
        path = tmp_path / name
        with zipfile.ZipFile(scripted) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.namelist():
                data = changed.get(entry.partition("/")[2].replace(".", "_").replace("/", "_"), source.read(entry))
                if data is not None:
                    target.writestr(entry, data)
        return str(path)

    good = rewritten("same.pt")
    check_files(FeaturesConfig(i3d=good), "features")
    for protocol in (0, 2, 4):
        hostile = pickle.dumps(Ran(trace), protocol=protocol)
        for part in ("data_pkl", "constants_pkl"):
            file = rewritten(f"hostile-{protocol}-{part}.pt", **{part: hostile})
            refused("none of TorchScript's|which TorchScript does not", "i3d", i3d=file)
    refused("cannot be read", "i3d", i3d=rewritten("cut.pt", data_pkl=b"\x80\x02X"))
    refused("holds no code", "i3d", i3d=rewritten("bare.pt", constants_pkl=None))
    data = scripted.read_bytes()
    Path(tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    refused("no whole TorchScript", "i3d", i3d=str(tmp_path / "half.pt"))
    assert not trace.exists()


class _Same(torch.nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


def test_a_script_that_is_called_otherwise(tmp_path):
    file = tmp_path / "other.pt"
    torch.jit.script(_Same()).save(str(file))
    refused("forward takes input; expected rescale, resize, return_features too", "i3d", i3d=str(file))
    refused("expected return_features too", "inception", inception=str(file))


def test_lpips_needs_both_its_files(tmp_path):
    vgg = {key: torch.zeros(shape) for key, (shape, *_) in layouts.vgg_tensors().items()}
    file = feature_references.save(vgg, tmp_path / "vgg.safetensors")
    for published in (True, False):
        heads = {key: torch.zeros(shape) for key, (shape, *_) in layouts.head_tensors(published).items()}
        good = feature_references.save(heads, tmp_path / f"heads-{published}.safetensors")
        check_files(FeaturesConfig.model_validate({"lpips": {"vgg": file, "heads": good}}), "features")
    del heads["lin3.weight"]
    bad = feature_references.save(heads, tmp_path / "heads.safetensors")
    refused("lin3.weight: is missing", "lpips.heads", lpips={"vgg": file, "heads": bad})
    refused("features.0.weight: is missing", "lpips.vgg", lpips={"vgg": good, "heads": good})


def test_folders(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    clip, dino = tmp_path / "clip", tmp_path / "dino"
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(clip)
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(dino)
    check_files(FeaturesConfig(clip=str(clip), dinov2=str(dino)), "features")
    refused("architectures", "clip", clip=str(dino))
    refused("architectures", "dinov2", dinov2=str(clip))
    config = EvaluateConfig.model_validate({"features": {"clip": str(clip)}, "gate": {"clip_score": 20.0}})
    with pytest.raises(InputError, match="no tower of texts") as caught:
        check_features(config, ("next_code",), True, config.gate.bounds)
    assert caught.value.field == "gate.clip_score"
    values = json.loads((dino / "config.json").read_text())
    (dino / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 2}))
    refused("encoder.layer.1.*is missing", "dinov2", dinov2=str(dino))
    (clip / "model.safetensors").unlink()
    refused("holds neither", "clip", clip=str(clip))


def test_a_network_without_a_figure_is_refused(tmp_path):
    def check(objectives=("next_code",), **fields):
        config = EvaluateConfig.model_validate({"features": {"inception": "a.safetensors"}, **fields})
        with pytest.raises(InputError) as caught:
            check_features(config, objectives, files=False)
        return str(caught.value)

    assert "text alone" in check(objectives=())
    assert "100 drawings or reconstructions" in check(drawings=99, reconstructions=99)
    assert "features.i3d: has no effect" in check(features={"i3d": "i3d.pt"}, videos=99)
    check_features(
        EvaluateConfig.model_validate({"features": {"inception": "a"}, "drawings": 99}), ("next_code",), False
    )
    with pytest.raises(ValueError, match="names no network"):
        FeaturesConfig()
    with pytest.raises(ValueError, match="without inception"):
        FeaturesConfig(i3d="a.pt", kid_subsets=3)
