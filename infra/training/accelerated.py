"""DeepSpeed as this project imports it: told of its accelerator, and without what no training calls."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import ModuleType

import torch

_TUNER = "deepspeed.autotuning"


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told which accelerator there is, and able to find the `ninja` of this interpreter's environment."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    scripts = os.path.dirname(sys.executable)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    _leave_out_tuner()
    import deepspeed

    # A shared-memory collective that it would compile at the first step; training never calls it, inference alone does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
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
