"""Compile at set-up what DeepSpeed would compile at the first training step (about half a minute, once a machine).

`python -m infra.training.prepare`. On CPUs that is the shared-memory collective; it needs g++ and ninja.
"""
from __future__ import annotations

import torch

from infra.training.engine import import_deepspeed


def prepare() -> None:
    """Build DeepSpeed's CPU collective into torch's extension cache; nothing to do where there is a GPU."""
    if torch.cuda.is_available():
        return
    import_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load()


if __name__ == "__main__":
    prepare()
