"""A folder that appears whole or not at all, and the small files that go along with weights; no tensors here."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelwright.configs.quantization import BESIDE
from modelwright.errors import CheckpointError

COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "NOTICE*")
"""Patterns of the files that serve any layout: tokenizer, processor, generation settings, licence."""
FOLDERS = ("tokenizer", "additional_chat_templates")
"""The folders that are carried along: that of some official checkpoints' tokenizers, and that of chat templates."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write in, renamed to ``path`` at the end, or removed when something fails.

    Raises:
        CheckpointError: ``path`` is a file, or a folder that is not empty; or writing fails, for want of space say.
    """
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", ignore_cleanup_errors=True
        ) as holder:
            content = Path(holder) / path.name
            content.mkdir()
            yield content
            if path.is_dir():
                path.rmdir()  # empty, or this fails
            os.rename(content, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def check_new(path: Path) -> None:
    """Raise a :class:`CheckpointError` unless ``path`` is free: not there, or an empty folder."""
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"{path} is not empty; name a new folder")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; name a new folder")


def copy_companions(source: Path, target: Path, apart_from: set[str]) -> list[str]:
    """Copy the small files of ``source``; what is there already or named in ``apart_from`` is passed over.

    So is what says how another program stored weights, which are numbers in a new folder.

    Returns:
        The names of what was neither copied nor passed over, folders with a slash.
    """
    left = []
    for path in sorted(source.iterdir()):
        passed_over = path.name in apart_from or path.name in BESIDE or path.name.startswith(".")
        if passed_over or (target / path.name).exists():
            continue
        if path.is_dir() and path.name in FOLDERS:
            (target / path.name).mkdir()
            left += [f"{path.name}/{name}" for name in copy_companions(path, target / path.name, set())]
        elif path.is_file() and any(path.match(pattern) for pattern in COMPANIONS):
            shutil.copyfile(path, target / path.name)
        else:
            left.append(f"{path.name}/" if path.is_dir() else path.name)
    return left
