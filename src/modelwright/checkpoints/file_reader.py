"""Bytes of a file read straight into memory that is there, long stretches by several threads; not what they mean.

No part of the file is mapped: what is mapped counts as the process's memory beside the copy until it is unmapped.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

THREADS = 4
SHARED = 4 << 20
"""Bytes from which on threads share the work; most of it is the system's, which prepares and fills pages."""

Fill = Callable[[int, memoryview], None]


@contextmanager
def reading(path: Path) -> Iterator[Fill]:
    """A function that fills a memory of bytes with those of the file from a place on; one call at a time.

    Raises:
        OSError: there or in the call: the file cannot be read, or ends too early.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(path)) for _ in range(THREADS)]
        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        yield partial(_fill, files, threads)


def _fill(files: list[FileIO], threads: Executor, start: int, memory: memoryview) -> None:
    if len(memory) < SHARED:
        return _fill_part(files[0], start, memory)
    share = -(-len(memory) // len(files))
    places = range(0, len(memory), share)
    parts = [memory[place : place + share] for place in places]
    for _ in threads.map(_fill_part, files, [start + place for place in places], parts):
        pass  # which raises what a thread raised


def _fill_part(file: FileIO, start: int, memory: memoryview) -> None:
    file.seek(start)
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled:])
        if not count:
            raise OSError(f"it ends before byte {start + len(memory)}")
        filled += count
