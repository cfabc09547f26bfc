"""Tensors on disk as torch's distributed checkpoint writes them, which reads them again under any layout.

Only tensors go there: everything else is JSON beside them, so that reading a checkpoint runs nothing of its content.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from modelwright.errors import CheckpointError

_ALONE = "torch.distributed is disabled, unavailable or uninitialized"
_METADATA = ".metadata"
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}
"""What torch's metadata, a pickle, is made of."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors on the CPU, by their names, into a new folder; the disk has them in the end.

    Raises:
        OSError: a file cannot be written.
    """
    _quieten()
    writer = FileSystemWriter(folder, sync_files=True)
    _unwrapped(lambda: save(dict(tensors), storage_writer=writer, no_dist=_alone()))


def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, in place, with those of the same names in a folder.

    Raises:
        CheckpointError: a name is of one side alone, a shape or a type differs, or the files are damaged. The tensors
            may hold something of the files then.
    """
    _check_same(folder, described(folder), into)
    _quieten()
    try:
        _unwrapped(lambda: load(dict(into), storage_reader=_Reader(folder), no_dist=_alone()))
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def new_tensors(folder: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a folder in memory of their own: those that are named, or all.

    Raises:
        CheckpointError: one is not there, or the files are damaged.
    """
    found = described(folder)
    chosen = list(found if names is None else names)
    if unknown := [name for name in chosen if name not in found]:
        raise CheckpointError(f"{folder} has no tensor {unknown[0]}")
    made = {name: torch.empty(found[name][0], dtype=found[name][1]) for name in chosen}
    _quieten()
    try:
        _unwrapped(lambda: load(dict(made), storage_reader=_Reader(folder), no_dist=_alone()))
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return made


def described(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor in a folder, by name."""
    found = {}
    for name, entry in _Reader(folder).read_metadata().state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{name} in {folder} is no tensor, and a checkpoint of ours holds nothing else")
        found[name] = entry.size, entry.properties.dtype
    return found


class _Reader(FileSystemReader):
    """torch's, which runs nothing that a file asks for and leaves its folder for no other."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / _METADATA
        try:
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
            for info in metadata.storage_data.values():
                if not re.fullmatch(r"[\w.]+", info.relative_path) or ".." in info.relative_path:
                    raise pickle.UnpicklingError(f"it names the file {info.relative_path!r}")
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _check_same(folder: Path, found: Mapping[str, tuple[torch.Size, torch.dtype]], into: Mapping[str, Tensor]) -> None:
    if missing := sorted(into.keys() - found.keys()):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of this run, among them {missing[0]}")
    if left := sorted(found.keys() - into.keys()):
        raise CheckpointError(f"{folder} holds {len(left)} tensors that this run has not, among them {left[0]}")
    for name, tensor in into.items():
        shape, dtype = found[name]
        if tuple(shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} must be of shape {list(tensor.shape)} for this run, and {folder} has {list(shape)}"
            )
        if dtype != tensor.dtype:
            raise CheckpointError(f"{name} must be {tensor.dtype} for this run, and in {folder} it is {dtype}")


def _unwrapped(work: Callable[[], Any]) -> None:
    """Do it; torch's `CheckpointException`, which no ``except Exception`` catches, becomes what brought it about."""
    try:
        work()
    except CheckpointException as error:
        raise _cause(next(iter(error.failures.values()))[0]) from error


def _cause(error: BaseException) -> BaseException:
    """The system's refusal behind an error, where there is one: torch's zip writer fails over it in its own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def _quieten() -> None:
    """Let torch not warn that it saves in one process; one filter for all threads, since no thread has its own."""
    warnings.filterwarnings("ignore", message=_ALONE, category=UserWarning)
