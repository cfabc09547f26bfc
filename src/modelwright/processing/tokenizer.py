"""The tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from modelwright.errors import CheckpointError


def read_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerFast:
    """`read_fast_tokenizer`, for families whose processor it is.

    Raises:
        CheckpointError: the folder holds none.
    """
    require_tokenizer(folder)
    return read_fast_tokenizer(folder)


def read_fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """``tokenizer.json`` as it is: the class that official files name could bring a pre-tokenizer of its own."""
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder(folder))


def tokenizer_folder(folder: Path) -> Path:
    """Where a checkpoint's tokenizer lies: in the folder itself, or in its ``tokenizer`` folder."""
    inner = folder / "tokenizer"
    return inner if (inner / "tokenizer.json").is_file() and not (folder / "tokenizer.json").exists() else folder


def require_tokenizer(folder: Path) -> None:
    """Raise a CheckpointError where neither the folder nor its ``tokenizer`` folder holds a ``tokenizer.json``."""
    if not (tokenizer_folder(folder) / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json, without which no text can be read or written")
