"""Which checkpoints of a run go when a new one is complete, and how they go."""

import os
import re
import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints.locks import removing
from modelwright.training.checkpoints.manifest import MANIFEST, files_in
from modelwright.training.checkpoints.saved import Saved

_LEFT_OVER = re.compile(r"\.step-\d{6,18}\.(writing|replaced|removing)-[0-9a-f]{8}")


def hidden_name(folder: Path, what: str) -> Path:
    """A place beside a checkpoint: for one in ``writing``, ``replaced`` by another of its step, or in ``removing``."""
    return folder.with_name(f".{folder.name}.{what}-{secrets.token_hex(4)}")


def surplus(saved: Sequence[Saved], keep: int, keep_every: int | None) -> list[Saved]:
    """Those of complete checkpoints, in the order of writing, that are neither of the last nor of those kept for ever.

    Args:
        keep: how many of the last stay, at least 1.
        keep_every: the steps that are multiples of it stay, too.
    """
    older = saved[: -max(1, keep)]
    return [entry for entry in older if keep_every is None or entry.step % keep_every]


def remove(saved: Saved) -> bool:
    """Remove a checkpoint, if nobody reads it and no file but its own lies in it; whether it is gone.

    It loses its name first, so that a death in between leaves no half of one.
    """
    own = {*saved.manifest.files, MANIFEST}
    if saved.folder.is_symlink() or any(name not in own for name in files_in(saved.folder)):
        return False
    with removing(saved.folder) as free:
        if free:
            gone = hidden_name(saved.folder, "removing")
            os.rename(saved.folder, gone)
            shutil.rmtree(gone)
        return free


def left_over(folder: Path, apart_from: Collection[Path] = ()) -> list[Path]:
    """What dead processes have left half-written or half-removed."""
    found = (path for path in folder.iterdir() if _LEFT_OVER.fullmatch(path.name) and path.is_dir())
    return [path for path in found if path not in apart_from]


def complete(entries: Sequence[Saved | tuple[Path, CheckpointError]]) -> list[Saved]:
    """Those whose files are all there and of their size."""
    found = []
    for entry in entries:
        if isinstance(entry, Saved):
            try:
                entry.verify(hashes=False)
            except CheckpointError:
                continue
            found.append(entry)
    return found
