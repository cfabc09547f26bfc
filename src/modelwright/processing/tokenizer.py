"""The tokenizer of a checkpoint folder, as its files say: which marks it puts around a text, and its chat templates."""

import json
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from modelwright.errors import CheckpointError
from modelwright.processing.marks import put_marks

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"


def read_tokenizer(folder: Path, config: Any) -> PreTrainedTokenizerFast:
    """`read_fast_tokenizer`, for families whose processor it is.

    Raises:
        CheckpointError: the folder holds none.
    """
    require_tokenizer(folder)
    return read_fast_tokenizer(folder)


def read_fast_tokenizer(source: str | Path, **hub: Any) -> PreTrainedTokenizerFast:
    """``tokenizer.json`` as it is: the class that official files name could bring a pre-tokenizer of its own.

    ``add_bos_token`` and ``add_eos_token`` of ``tokenizer_config.json`` decide whether a text gets these marks,
    whatever ``tokenizer.json`` does; what is left out, or stands there as null, decides nothing.

    Args:
        source: a folder, or the hub's ``organisation/name`` with the options that transformers knows.
    """
    folder = tokenizer_folder(Path(source))
    place = folder if folder.is_dir() else source
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place, **hub)
    path = cached_file(place, CONFIG, _raise_exceptions_for_missing_entries=False, **hub)
    settings = {} if path is None else _read_settings(Path(path))
    put_marks(tokenizer, settings.get("add_bos_token"), settings.get("add_eos_token"))
    if tokenizer.chat_template is None and Path(source).is_dir():
        tokenizer.chat_template = read_chat_templates(Path(source))
    return tokenizer


def tokenizer_folder(folder: Path) -> Path:
    """Where a checkpoint's tokenizer lies: in the folder itself, or in its ``tokenizer`` folder."""
    inner = folder / "tokenizer"
    return inner if (inner / "tokenizer.json").is_file() and not (folder / "tokenizer.json").exists() else folder


def require_tokenizer(folder: Path) -> None:
    """Raise a CheckpointError where neither the folder nor its ``tokenizer`` folder holds a ``tokenizer.json``."""
    if not (tokenizer_folder(folder) / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json, without which no text can be read or written")


def read_chat_templates(folder: Path) -> str | dict[str, str] | None:
    """The chat template that a checkpoint's small files hold, or several by their names; None where there is none.

    Files come before the entry in ``tokenizer_config.json``, as in transformers; both may lie beside the tokenizer or,
    where that has a folder of its own, in the checkpoint's folder.

    Raises:
        CheckpointError: a file cannot be read, or the entry is no text and no list of named ones.
    """
    for place in dict.fromkeys((tokenizer_folder(folder), folder)):
        files = {path.stem: path for path in sorted((place / MORE_TEMPLATES).glob("*.jinja"))}
        if (place / TEMPLATE).is_file():
            files["default"] = place / TEMPLATE
        found: Any = {name: _read_text(path) for name, path in files.items()}
        if not found and (place / CONFIG).is_file():
            found = _templates_of(_read_settings(place / CONFIG).get("chat_template"), place / CONFIG)
        if found:
            return found["default"] if isinstance(found, dict) and set(found) == {"default"} else found
    return None


def _templates_of(entry: Any, path: Path) -> str | dict[str, str]:
    """The entry of a ``tokenizer_config.json``: a template, or several as a mapping or a list of named ones."""
    if isinstance(entry, list) and all(
        isinstance(each, dict) and {"name", "template"} <= each.keys() for each in entry
    ):
        entry = {each["name"]: each["template"] for each in entry}
    texts = [*entry, *entry.values()] if isinstance(entry, dict) else [entry or ""]
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: chat_template must be a text or a list of name and template, got {entry!r:.80}")
    return cast(str | dict[str, str], entry or "")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and holds a {type(settings).__name__}")
    return settings


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
