"""Memory that this process frees, kept for what it allocates next; of glibc's allocator alone, others stay as they are.

A pass over a long prompt allocates and frees tens of megabytes in each layer, and a training step its gradients too.
glibc hands them back to the system each time, which clears every page anew when it is touched again.
"""

import ctypes
from functools import cache

KEPT = 256 << 20
"""Bytes of freed memory that the process may hold on to."""
_LARGEST = (128 << 20, 32 << 20)
"""Bytes up to which a single allocation can be kept, and what glibc before 2.35 takes at most."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h


@cache
def keep_freed_memory() -> bool:
    """Do so from now on, for the whole process; returns whether its allocator takes the wish."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT)) and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
