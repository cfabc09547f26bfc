"""The models of the commands that run an engine: found by what the user calls them, and read with a bar."""

from pathlib import Path

from modelwright import zoo
from modelwright.checkpoints.folder import Checkpoint, find_checkpoint
from modelwright.checkpoints.load import Loaded, load
from modelwright.cli import terminal
from modelwright.cli.options import DEFAULT_MODEL
from modelwright.errors import RequestError


def find_model(name: str) -> Checkpoint:
    """The checkpoint of a zoo name (which comes first), a folder or a hub id."""
    if name == DEFAULT_MODEL or name in zoo.names():
        return find_checkpoint(zoo.path(name))
    return find_checkpoint(Path(name).expanduser() if name.startswith("~") else name)


def load_model(name: str, checkpoint: Checkpoint, dtype: str, device: str, task: str) -> Loaded:
    """The model of `checkpoint`, which the user calls `name`.

    Raises:
        RequestError: it has no head that draws tokens; the message says that it cannot do `task`.
    """
    with terminal.loading_bar(name) as progress:
        loaded = load(checkpoint.folder, dtype=dtype, device=device, progress=progress)
    if not loaded.model.can_generate():
        raise RequestError(f"{name} is a {type(loaded.model).__name__}, which cannot {task}")
    return loaded
