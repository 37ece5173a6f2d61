"""Peak arithmetic rates of devices, for model FLOPs utilization (MFU)."""

from __future__ import annotations

import torch

# Dense bf16 products in TFLOP/s, from NVIDIA's data sheets of each (without sparsity). The first name that the
# device's begins with counts: an H100 PCIe is slower than the SXM module that `NVIDIA H100` stands for.
_BF16_TFLOPS = {
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200 NVL": 835.0,
    "NVIDIA H200": 989.0,
    "NVIDIA A100": 312.0,
    "NVIDIA A30": 165.0,
    "NVIDIA L40S": 362.0,
}


def peak_tflops(precision: str) -> float | None:
    """Peak TFLOP/s of this process's GPU in bf16; None where it is unknown: on CPUs, for other GPUs, in fp32."""
    if precision != "bf16" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in _BF16_TFLOPS.items() if name.startswith(known)), None)
