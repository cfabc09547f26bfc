"""An exported folder that appears whole or not at all, in place of an older export if there is one; no graphs here."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelwright.checkpoints.new_folder import copy_companions
from modelwright.errors import CheckpointError
from modelwright.export.manifest import FILE

INDEX = "*.index.json"
"""What names the shards of weights that are not carried along."""


def check_ours(path: Path) -> None:
    """Raise a CheckpointError unless ``path`` is free, an empty folder, or an export of ours."""
    if path.is_dir() and any(path.iterdir()) and not (path / FILE).is_file():
        raise CheckpointError(f"{path} is not empty and holds no {FILE}, so it is no export of ours: name a new folder")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; name a new folder")


@contextmanager
def exported_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write in, which takes its place at the end, or goes when something fails.

    Raises:
        CheckpointError: see :func:`check_ours`; or writing fails, for want of space say.
    """
    check_ours(path)
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", ignore_cleanup_errors=True
        ) as holder:
            content, old = Path(holder) / "new", Path(holder) / "old"
            content.mkdir()
            yield content
            check_ours(path)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(content, path)
            except OSError:
                if old.exists():
                    os.rename(old, path)
                raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def write_small_files(folder: Path, model: Any, source: Path | None) -> None:
    """The model's config, how it generates, and of its ``source`` folder whatever else goes along with weights."""
    config = model.config.to_dict()
    config |= {"architectures": [type(model).__name__], "_name_or_path": ""}
    _write(folder / "config.json", config)
    if model.generation_config is not None:
        _write(folder / "generation_config.json", model.generation_config.to_diff_dict())
    if source is not None:
        copy_companions(source, folder, apart_from={path.name for path in source.glob(INDEX)})


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
