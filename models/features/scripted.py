"""A feature network as a TorchScript file, such as the published I3D of the Fréchet video distance.

In: a local file that `torch.jit.save` wrote. Out: the network, in eval mode.
`torch.jit.load` runs the file's own code in TorchScript's interpreter, which knows tensors, numbers and containers and
no Python: no function of Python can be named in it, and what it unpickles are its own classes.
`models.features.archive` looks at the file before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_scripted(path: str | Path) -> Any:
    """ValueError naming the file."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # torch raises several classes for a damaged file
        raise ValueError(f"{path}: TorchScript does not read it: {error}") from error
