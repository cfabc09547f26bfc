"""An exported folder that appears whole or not at all, in place of an older export if there is one; no graphs here."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelwright.checkpoints.new_folder import copy_companions
from modelwright.errors import CheckpointError
from modelwright.export.manifest import FILE, Manifest

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

    Files in ``path`` that no export wrote are in the new folder too, unless it has others of these names.

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
            _list_files(content)
            if path.exists():
                _keep_others(path, content)
                os.rename(path, old)
            try:
                os.rename(content, path)
            except OSError:
                if old.exists():
                    os.rename(old, path)
                raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def _list_files(folder: Path) -> None:
    """Let the manifest name all files of the folder, itself among them."""
    with suppress(CheckpointError):  # there is none that could name them
        files = sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if not each.is_dir())
        replace(Manifest.read(folder), files=tuple(files)).write(folder)


def _keep_others(old: Path, new: Path) -> None:
    """Link, or copy, what lies in ``old`` and was not exported to ``new``, as it is."""
    exported = _exported(old)
    for each in sorted(old.rglob("*")):
        name, target = each.relative_to(old), new / each.relative_to(old)
        if name.as_posix() in exported or target.exists() or target.is_symlink():
            continue
        if each.is_dir() and not each.is_symlink():
            if not any(part.is_file() for part in each.rglob("*")):
                target.mkdir(parents=True, exist_ok=True)
            continue  # its files bring it along
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(each, target, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(each, target, follow_symlinks=False)


def _exported(folder: Path) -> set[str]:
    """The files that an export wrote in a folder: those that its manifest names, or whatever looks like a graph."""
    try:
        manifest = Manifest.read(folder)
    except CheckpointError:
        return {FILE} | {path.name for path in folder.glob("*.onnx*")}
    graphs = [name for graph in manifest.graphs.values() for name in (graph, f"{graph}.data")]
    return {FILE, *graphs, *manifest.files}


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
