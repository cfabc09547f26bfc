"""How fast a device multiplies at most, in FLOP/s: what its maker says, or a product measured here."""

import time
from collections.abc import Mapping
from types import MappingProxyType

import torch

TERA = 1e12
# Dense products, without sparsity, as the data sheets have them: bfloat16 and float16, TensorFloat-32, float32. The
# first name that a device's own contains is meant, so longer ones stand first.
DEVICES: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "GB200": (2500, 1250, 80),
        "B200": (2250, 1125, 75),
        "H200 NVL": (836, 418, 60),
        "H200": (989, 494, 67),
        "H100 NVL": (835, 417, 60),
        "H100 PCIe": (756, 378, 51),
        "H100": (989, 494, 67),
        "H800": (989, 494, 67),
        "A100": (312, 156, 19.5),
        "A800": (312, 156, 19.5),
        "A40": (149.7, 74.8, 37.4),
        "A10G": (70, 35, 35),
        "A10": (125, 62.5, 31.2),
        "L40S": (362, 183, 91.6),
        "L40": (181, 90.5, 90.5),
        "L4": (121, 60, 30.3),
        "RTX 4090": (165.2, 82.6, 82.6),
        "RTX 3090": (71, 35.6, 35.6),
        "V100": (125, 15.7, 15.7),
        "T4": (65, 8.1, 8.1),
        "MI300X": (1307.4, 653.7, 163.4),
        "MI250X": (383, 95.7, 95.7),
    }
)
_SIDE, _SECONDS = 512, 0.15


def peak_flops(device: str | torch.device, dtype: str | torch.dtype) -> tuple[float, str]:
    """FLOP/s that a device can do, and where that is from: ``table`` or ``measured``.

    A device of the table is not asked; any other multiplies matrices of ones for a moment. No random numbers are drawn.
    """
    device = torch.device(device)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if device.type == "cuda":
        known = peak_of(torch.cuda.get_device_name(device), kind)
        if known is not None:
            return known, "table"
    # Where a processor has no products of a short type, kernels may take them in float32, which is then the faster.
    return max(measured_flops(device, each) for each in (kind, torch.float32)), "measured"


def peak_of(name: str, dtype: torch.dtype) -> float | None:
    """What the table says of a device's name, such as ``NVIDIA H200``; None where it does not know it."""
    found = next((speeds for known, speeds in DEVICES.items() if known.lower() in name.lower()), None)
    if found is None:
        return None
    half, tensor, single = found
    if dtype in (torch.bfloat16, torch.float16):
        return half * TERA
    return (single if torch.get_float32_matmul_precision() == "highest" else tensor) * TERA


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest of some products of two matrices, in FLOP/s."""
    side = _SIDE if device.type == "cpu" else 8 * _SIDE
    a = torch.ones(side, side, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return 2 * side**3 / max(best, 1e-9)
