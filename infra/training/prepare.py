"""Compile at set-up what DeepSpeed would compile at the first training step (about half a minute, once a machine).

`python -m omniloom.infra.training.prepare`. On CPUs that is the shared-memory collective; without g++ training runs on
gloo alone.
"""

from __future__ import annotations

import torch

from omniloom.infra.training.engine import has_compiler, import_deepspeed


def prepare() -> None:
    """Build DeepSpeed's CPU collective into torch's extension cache; nothing to do with a GPU or without a compiler."""
    if torch.cuda.is_available() or not has_compiler():
        return
    import_deepspeed()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load()


if __name__ == "__main__":
    prepare()
