"""Published implementations to hold feature networks and their distances against, as far as they are installed; and
networks with random weights in the layouts that people have."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from omniloom.models.features import layouts


def reference(package: str):
    """The import machinery's word on a package that lies in the folder of published implementations, or is installed:
    `pip install --no-deps --target FOLDER torch-fidelity prdc`, since torch-fidelity without torchvision may not be
    where torchmetrics finds it."""
    folders = [os.environ["OMNILOOM_REFERENCES"]] if "OMNILOOM_REFERENCES" in os.environ else None
    spec = importlib.machinery.PathFinder.find_spec(package, folders)
    if spec is None:
        pytest.skip(f"{package} is not installed; OMNILOOM_REFERENCES names the folder that has it")
    return spec


def prdc():
    (folder,) = reference("prdc").submodule_search_locations
    spec = importlib.util.spec_from_file_location("prdc_alone", Path(folder, "prdc.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_fidelity(module: str):
    """One of torch-fidelity's modules; its package imports torchvision, which these do not need."""
    spec = reference("torch_fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    stub = types.ModuleType("torch_fidelity.utils")  # of what it imports the functions on features call nothing
    for name in (
        "create_feature_extractor",
        "extract_featuresdict_from_input_id_cached",
        "resolve_feature_extractor",
        "resolve_feature_layer_for_metric",
        "get_cacheable_input_name",
        "cache_lookup_one_recompute_on_miss",
    ):
        setattr(stub, name, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        patch.setitem(sys.modules, "torch_fidelity.utils", stub)
        try:
            return importlib.import_module(f"torch_fidelity.{module}")
        except ImportError as error:
            pytest.skip(f"torch-fidelity's {module} does not import: {error}")
        finally:
            for name in [name for name in sys.modules if name.startswith("torch_fidelity.")]:
                del sys.modules[name]


def inception_state(classes: int = layouts.FID_CLASSES, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under which signals keep their size through all layers."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for key, conv in layouts.inception_convs():
        fan = conv.into * conv.kernel[0] * conv.kernel[1]
        state[f"{key}.conv.weight"] = (
            torch.randn(conv.out, conv.into, *conv.kernel, generator=generator) * (2 / fan) ** 0.5
        )
        state[f"{key}.bn.weight"] = 1 + 0.1 * torch.randn(conv.out, generator=generator)
        state[f"{key}.bn.bias"] = 0.1 * torch.randn(conv.out, generator=generator)
        state[f"{key}.bn.running_mean"] = 0.1 * torch.randn(conv.out, generator=generator)
        state[f"{key}.bn.running_var"] = 1 + 0.2 * torch.rand(conv.out, generator=generator)
        state[f"{key}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = torch.randn(classes, layouts.INCEPTION_WIDTH, generator=generator) * 0.01
    state["fc.bias"] = torch.zeros(classes)
    return state


def save(state: dict[str, torch.Tensor], path: Path) -> str:
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return str(path)


class Scripted(torch.nn.Module):
    """What TorchScript files of I3D and Inception are called like: of uint8 pictures or videos the colours' means and
    deviations, and where they lie."""

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = True):
        x = x.float()
        if rescale:
            x = x / 127.5 - 1
        shape = x.flatten(2)
        ramp = torch.linspace(0.0, 1.0, shape.shape[2])
        return torch.cat([shape.mean(2), shape.std(2), (shape * ramp).mean(2)], 1)
