"""What GPUs have, by the name that Ray gives a node's accelerator: H100, A100-80G, L4. No torch, no GPU.

Figures are those of NVIDIA's data sheets: memory, read as GiB, and dense bf16 products (without sparsity). Where a name
stands for GPUs of two sizes (A100, unless Ray tells A100-40G from A100-80G), memory is not known; nothing is of a name
which is not here. An H100 counts as the SXM module, as in `infra.training.peak`.
"""

from __future__ import annotations

from dataclasses import dataclass

LABEL = "accelerator_type:"  # what Ray puts before the name among a node's resources


@dataclass(frozen=True)
class Gpu:
    """memory: bytes; tflops: dense bf16. None where it is not published, or the GPU has none."""

    memory: int | None = None
    tflops: float | None = None


def _gpu(gib: int | None, tflops: float | None) -> Gpu:
    return Gpu(None if gib is None else gib << 30, tflops)


_KNOWN = {
    "T4": _gpu(16, None),  # Turing, as Volta, multiplies no bf16
    "A10G": _gpu(24, None),
    "L4": _gpu(24, 121.0),
    "L40S": _gpu(48, 362.0),
    "A100": _gpu(None, 312.0),
    "A100-40G": _gpu(40, 312.0),
    "A100-80G": _gpu(80, 312.0),
    "H20": _gpu(96, 148.0),
    "H100": _gpu(80, 989.0),
    "H200": _gpu(141, 989.0),
    "B200": _gpu(180, 2250.0),
}


def known(name: str | None) -> Gpu:
    """Of Ray's name for it; nothing is known of other names."""
    return _KNOWN.get(name or "", Gpu())
