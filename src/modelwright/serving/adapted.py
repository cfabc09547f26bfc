"""A model that is called by the folder of an adapter of it, and by whose words it is then asked."""

from pathlib import Path

from modelwright.checkpoints.folder import ADAPTER, Checkpoint, find_checkpoint, read_checkpoint
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.errors import CheckpointError
from modelwright.processing.tokenizer import read_chat_templates
from modelwright.serving.names import model_path

_TOKENIZER, _PROCESSOR = "tokenizer.json", "processor_config.json"


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


def words_of(checkpoint: Checkpoint) -> Path:
    """Where the tokenizer and the chat template of a checkpoint's prompts lie.

    They are the last adapter's that has a tokenizer of its own, for in its template it learnt to answer. Where it has
    none and the model has one, both are the model's. What a model that sees needs besides comes from the same folder,
    so that an adapter without it has no tokenizer of its own.
    """
    needed = [_TOKENIZER, *([_PROCESSOR] if checkpoint.reads_pictures else [])]
    own = [folder for folder in checkpoint.adapters if all((folder / name).is_file() for name in needed)]
    if own and (read_chat_templates(own[-1]) or not read_chat_templates(checkpoint.folder)):
        return own[-1]
    return checkpoint.folder
