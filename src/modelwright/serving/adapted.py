"""`find_adapted`, a model that is called by the folder of an adapter of it."""

from pathlib import Path

from modelwright.checkpoints.folder import ADAPTER, Checkpoint, find_checkpoint, read_checkpoint
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.errors import CheckpointError
from modelwright.serving.names import model_path


def find_adapted(path: str | Path) -> Checkpoint:
    """What `find_checkpoint` finds or, of a folder with an adapter, the checkpoint that this is of, and where it lies.

    That is the folder itself where it holds a whole model too. Otherwise the adapter says it: a folder, relative to
    where the command is typed or to the adapter's own, a name of the zoo, or a hub id.

    Raises:
        CheckpointError, ConfigError: as `find_checkpoint`, of either, or the adapter does not say what it is of.
    """
    folder = find_folder(path, {})
    if not (folder / ADAPTER).is_file():
        return find_checkpoint(path)
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors*")):
        return read_checkpoint(folder).with_adapter(folder)
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER} does not say in base_model_name_or_path what model the adapter is of"
        )
    beside = folder / base
    try:
        found = find_checkpoint(beside if not Path(base).exists() and beside.is_dir() else model_path(base))
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is an adapter of {base}, which cannot be read: {error}") from error
    return found.with_adapter(folder)
