"""How much of the host's memory this process may use: what the machine has, or less where a container limits it.

Linux is asked through its files, of control groups in either version; other systems through ``os.sysconf``.
"""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
ASSUMED = 4 << 30
"""Bytes taken for free where the system says nothing, as Windows does not without further packages."""


def memory_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that this process may use at most: the least of the machine's and its control groups'; None if unknown."""
    limits = [limit for limit, _ in _groups(proc, cgroups)]
    installed = _meminfo(proc).get("MemTotal") or _installed()
    return min(limits if installed is None else [*limits, installed], default=None)


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that are free, with what files merely cache; on systems that do not say, half of what is installed."""
    left = [max(0, limit - used) for limit, used in _groups(proc, cgroups)]
    free = _meminfo(proc).get("MemAvailable")
    if free is None:
        installed = _installed()
        free = ASSUMED if installed is None else installed // 2
    return min([free, *left])


def _installed() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such function, or no such name
        return None


def _meminfo(proc: Path) -> dict[str, int]:
    """The sizes in ``meminfo`` in bytes; empty where there is no such file."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    said = (line.split(":", 1) for line in lines)
    return {name: int(rest.split()[0]) * 1024 for name, rest in said}


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """The limit of each control group that this process is in and that has one, and what is used of it, in bytes."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            yield from _limits(cgroups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _limits(cgroups / "memory", path, *names)


def _limits(root: Path, path: str, limit: str, used: str, cached: str) -> Iterator[tuple[int, int]]:
    """Those of a group and of all above it; in a container the root may be the group itself."""
    inside = Path(path.lstrip("/"))
    for group in {root / part for part in (inside, *inside.parents)} | {root}:
        most, taken = _number(group / limit), _number(group / used)
        if most is not None and taken is not None:
            yield most, taken - _cached(group / "memory.stat", cached)


def _number(file: Path) -> int | None:
    """What a file says; None where it is missing or says "max"."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cached(file: Path, name: str) -> int:
    """The bytes of a group that files merely cache."""
    try:
        said = dict(line.split() for line in file.read_text().splitlines())
        return int(said.get(name, 0))
    except (OSError, ValueError):
        return 0
