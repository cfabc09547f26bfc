"""Files and folders that are on the disk, not only on the way there, when a function returns."""

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a new file of text, and wait until the disk has it.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str, beside: str) -> None:
    """Put a file of text in the place of another, or where none was; a reader sees the one or the other.

    Args:
        beside: the name, in the same folder, under which it is written first.
    """
    part = path.with_name(beside)
    part.unlink(missing_ok=True)
    write_durably(part, text)
    os.replace(part, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the disk has what was written to a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until the disk has a folder's list of names."""
    sync_file(path)
