"""Bytes that a run holds now, held at most, and could hold: of its accelerator, or of its process on a CPU."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes; None where the system does not tell."""

    now: int | None
    peak: int | None
    total: int | None


def memory_use(device: str | torch.device) -> MemoryUse:
    """Of an accelerator what torch's allocator holds, of the CPU what this process does."""
    device = torch.device(device)
    if device.type == "cuda":
        now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return MemoryUse(now, peak, torch.cuda.get_device_properties(device).total_memory)
    now, peak = _resident(), _resident_peak()
    if now is not None and peak is not None:
        peak = max(now, peak)  # the system counts the two at different moments
    return MemoryUse(now, peak, _installed())


def _resident() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _resident_peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _installed() -> int | None:
    """The machine's memory, or less where this process may use less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total
