"""What a user may call a model: a name of the zoo, a folder, or a hub id; nothing is opened or fetched here."""

import os
from pathlib import Path

from modelwright import zoo


def model_path(name: str) -> str | Path:
    """Where a zoo name (which comes first), a folder or a hub id leads; a hub id stays as it is."""
    if name in zoo.names():
        return zoo.path(name)
    path = user_path(name)
    return path if os.path.exists(path) or name.startswith("~") else name


def user_path(path: str | Path) -> Path:
    """A path with ``~`` for the user's home folder, or as it is where nobody says what that is."""
    return Path(os.path.expanduser(path))
