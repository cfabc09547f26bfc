"""Freed memory that is kept: what is allocated again takes no page from the system; in processes of their own."""

import subprocess
import sys

import pytest

from modelwright.ops.freed_memory import KEPT, keep_freed_memory

TOUCH = """
import ctypes, resource
from modelwright.ops import freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def touch(sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [libc.malloc(size) for size in sizes]
    for part, size in zip(parts, sizes):
        ctypes.memset(part, 1, size)
    for part in parts:
        libc.free(part)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def run(code):
    return subprocess.run([sys.executable, "-c", TOUCH + code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not keep_freed_memory(), reason="the allocator is not glibc's")
def test_what_was_freed_takes_no_page_again():
    sizes = "[48 << 20, 24 << 20, 24 << 20]"
    before, after = run(
        f"""
touch({sizes}); print(touch({sizes}))
assert freed_memory.keep_freed_memory()
touch({sizes}); print(touch({sizes}))
"""
    ).split()
    assert int(before) > 48 << 8 and int(after) < 100  # 256 pages of 4 KiB are a megabyte


@pytest.mark.skipif(not keep_freed_memory(), reason="the allocator is not glibc's")
def test_more_than_the_limit_goes_back_to_the_system():
    resident = run(
        """
freed_memory.keep_freed_memory()
touch([100 << 20] * 5)
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1])
"""
    )
    assert int(resident) << 10 < KEPT + (300 << 20)  # what torch takes itself included


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr("modelwright.ops.freed_memory.ctypes.CDLL", lambda name: object())
    assert keep_freed_memory.__wrapped__() is False


@pytest.mark.skipif(not keep_freed_memory(), reason="the allocator is not glibc's")
def test_a_trainer_keeps_what_a_step_freed_for_the_next(tmp_path):
    pages = run(
        f"""
from modelwright.configs.run import RunConfig
from modelwright.training.trainer import Trainer
from tests.llamas import tiny_llama
here = {{"path": "here"}}
run = {{"model": here, "data": {{"train": [here]}}, "steps": 1, "output": {str(tmp_path)!r}}}
Trainer(RunConfig.of(run), model=tiny_llama(), batches=iter(()))
touch([24 << 20]); print(touch([24 << 20]))
"""
    )
    assert int(pages) < 100
