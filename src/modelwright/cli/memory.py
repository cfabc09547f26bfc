"""The most memory this process has used, here and on an accelerator; imports no model library."""

import sys


def peak_memory(device: str) -> str:
    """Where the platform tells, in MiB: of the CUDA ``device``, where it is one, and of the process."""
    parts = []
    if device.startswith("cuda"):
        import torch

        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on {device}")
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB of the process")
    return ", ".join(parts) or "not known here"
