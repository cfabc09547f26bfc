"""The most memory this process has used, here and on an accelerator; imports no model library."""

import sys


def peak_memory(device: str) -> str:
    """Where the platform tells, in MiB: of the CUDA ``device``, where it is one, and of the process."""
    sizes = peak_bytes(device)
    parts = [f"{size / 2**20:.0f} MiB {'of the' if where == 'process' else 'on'} {where}" for where, size in sizes]
    return ", ".join(parts) or "not known here"


def peak_bytes(device: str) -> list[tuple[str, int]]:
    """As (where, bytes), where the platform tells: what torch's allocator held of a CUDA ``device``, and `process`."""
    sizes = []
    if device.startswith("cuda"):
        import torch

        sizes.append((device, torch.cuda.max_memory_allocated(device)))
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        sizes.append(("process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
    return sizes
