"""DeepSpeed and PyTorch's optimizers as this project imports them: told of the accelerator, and without what no
training calls. PyTorch's compiler, which takes longer to import than PyTorch itself, comes where something compiles."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import ModuleType

import torch

from omniloom.infra.training.optimizers import AdamW

_TUNER = "deepspeed.autotuning"
_MUON = "deepspeed.runtime.zero.muon"


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told which accelerator there is, and able to find the `ninja` of this interpreter's environment."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    scripts = os.path.dirname(sys.executable)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    _leave_out_tuner()
    _leave_out_muon()
    _leave_out_compiler()
    import deepspeed

    # A shared-memory collective that it would compile at the first step; training never calls it, inference alone does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if AdamW not in (tested := deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS):
        tested.append(AdamW)
    return deepspeed


def _leave_out_tuner() -> None:
    """Of DeepSpeed's autotuner its engine reads the config alone, and the package around that imports MLflow, which
    takes as long as PyTorch: the package's folder is given in its place."""
    found = None if "deepspeed" in sys.modules else importlib.util.find_spec("deepspeed")
    if found is None:
        return
    package = ModuleType(_TUNER)
    package.__path__ = [os.path.join(place, "autotuning") for place in found.submodule_search_locations or ()]
    sys.modules.setdefault(_TUNER, package)


def _leave_out_muon() -> None:
    """DeepSpeed asks of every optimizer whether it is its Muon, whose modules compile as they are imported. None is."""
    optimizer, update = ModuleType(f"{_MUON}.muon_optimizer"), ModuleType(f"{_MUON}.original_muon")
    optimizer.MuonWithAuxAdam = type("MuonWithAuxAdam", (torch.optim.Optimizer,), {})  # type: ignore[attr-defined]
    update.muon_update = None  # type: ignore[attr-defined]
    for module in (optimizer, update):
        sys.modules.setdefault(module.__name__, module)


def _leave_out_compiler() -> None:
    """An optimizer's own methods ask the compiler, which they import, to leave them alone, when they are first called:
    no compiled code of ours calls them."""
    for method in vars(torch.optim.Optimizer).values():
        if function := getattr(method, "__wrapped__", None):
            function.__dict__.setdefault("__dynamo_disable", function)
