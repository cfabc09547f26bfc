"""The tokenizer of a checkpoint folder, for families whose processor is nothing else."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from modelwright.errors import CheckpointError


def read_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerFast:
    """``tokenizer.json`` as it is: the class that official files name could bring a pre-tokenizer of its own.

    Raises:
        CheckpointError: the folder holds none.
    """
    require_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def require_tokenizer(folder: Path) -> None:
    """Raise a CheckpointError where neither the folder nor its ``tokenizer`` folder holds a ``tokenizer.json``."""
    if not any((folder / part / "tokenizer.json").is_file() for part in ("", "tokenizer")):
        raise CheckpointError(f"{folder} has no tokenizer.json, without which no text can be read or written")
