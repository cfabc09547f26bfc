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
PIECE = 4 << 20
"""Bytes that are read and then looked at, while they are still in a cache of the processor."""
ALIGNED = 8
"""What the pieces of a tensor are a multiple of: the bytes of its longest number."""

Look = Callable[[memoryview], None]
"""Told of each piece of a memory that was filled; it may raise."""
Fill = Callable[[int, memoryview, Look], None]


@contextmanager
def reading(path: Path) -> Iterator[Fill]:
    """A function that fills a memory of bytes with those of the file from a place on, and has each piece looked at.

    One call at a time; it is several threads that look.

    Raises:
        OSError: there or in the call: the file cannot be read, or ends too early.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(path)) for _ in range(THREADS)]
        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        yield partial(_fill, files, threads)


def _fill(files: list[FileIO], threads: Executor, start: int, memory: memoryview, look: Look) -> None:
    if len(memory) < SHARED:
        return _fill_part(files[0], start, memory, look)
    share = -(-len(memory) // (len(files) * ALIGNED)) * ALIGNED
    places = range(0, len(memory), share)
    parts = [memory[place : place + share] for place in places]
    for _ in threads.map(partial(_fill_part, look=look), files, [start + place for place in places], parts):
        pass  # which raises what a thread raised


def _fill_part(file: FileIO, start: int, memory: memoryview, look: Look) -> None:
    file.seek(start)
    for place in range(0, len(memory), PIECE):
        piece, filled = memory[place : place + PIECE], 0
        while filled < len(piece):
            count = file.readinto(piece[filled:])
            if not count:
                raise OSError(f"it ends before byte {start + len(memory)}")
            filled += count
        look(piece)
