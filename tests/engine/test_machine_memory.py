"""What a process may use of the host's memory, as the files of Linux say it and where there are none."""

import os
from pathlib import Path

import pytest

from modelwright.engine.machine_memory import ASSUMED, free_memory, memory_limit

MEMINFO = "MemTotal:       1000 kB\nMemFree:          3 kB\nMemAvailable:    400 kB\nHugePages_Total:  0\n"


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """Folders for /proc, with its memory, and /sys/fs/cgroup."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    groups.mkdir()
    return proc, groups


def write(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in files.items():
        (folder / name.replace("__", ".")).write_text(f"{said}\n")


def test_free_is_with_what_files_merely_cache(machine):
    assert free_memory(*machine) == 400 * 1024
    assert memory_limit(*machine) == 1000 * 1024


@pytest.mark.parametrize("where", ["", "pod/one"], ids=["a container's own root", "a group below"])
def test_a_control_group_may_allow_less(machine, where):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("0::/pod/one\n")
    write(groups / where, memory__max=300_000, memory__current=250_000, memory__stat="anon 1\ninactive_file 70000")
    assert memory_limit(*machine) == 300_000
    assert free_memory(*machine) == 120_000


def test_a_group_above_counts_and_one_without_a_limit_does_not(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("0::/pod/one\n")
    write(groups / "pod" / "one", memory__max="max", memory__current=100)
    write(groups / "pod", memory__max=200_000, memory__current=199_000)
    assert memory_limit(*machine) == 200_000 and free_memory(*machine) == 1_000


def test_groups_of_the_first_version(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("3:cpu:/x\n4:memory:/box\n0::/\n")
    stat = "inactive_file 1\ntotal_inactive_file 5000"
    limit = {"memory__limit_in_bytes": 50_000, "memory__usage_in_bytes": 20_000, "memory__stat": stat}
    write(groups / "memory" / "box", **limit)
    assert memory_limit(*machine) == 50_000 and free_memory(*machine) == 35_000


def test_a_full_group_has_nothing_left(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("0::/\n")
    write(groups, memory__max=1000, memory__current=2000)
    assert free_memory(*machine) == 0


def test_systems_without_such_files_are_asked_for_what_is_installed(tmp_path, monkeypatch):
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_limit(tmp_path, tmp_path) == installed and free_memory(tmp_path, tmp_path) == installed // 2
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert memory_limit(tmp_path, tmp_path) is None and free_memory(tmp_path, tmp_path) == ASSUMED
