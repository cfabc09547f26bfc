"""Safetensors shards in a folder, read and written one at a time; pickles and paths that leave the folder are refused.

Leaves out what the tensors mean: names here are the names on disk.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modelwright.checkpoints.file_reader import reading
from modelwright.checkpoints.finite import check_finite
from modelwright.errors import CheckpointError, ConfigError
from modelwright.ops import host_memory

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_VARIANT = re.compile(r"[\w-]+(\.[\w-]+)*")
_HOW = " (modelwright convert --allow-pickle reads the tensors alone, and runs nothing)"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights may have, by safetensors' names."""
INTEGERS = {"I8": torch.int8, "U8": torch.uint8}
"""Types of quantized weights: one step to a byte, or two."""
Progress = Callable[[str, int, int], None]
"""Told of each tensor that is read or made: its name, the bytes so far and the bytes altogether."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class TensorHeader:
    """What a shard's header says of the tensor ``name``.

    ``dtype`` is in safetensors' words (``F32``, ``BF16``, ...), ``start`` the place in the file of its first byte. A
    file of another format says how to ``make`` the tensor, and whether it stands ``in_blocks`` for numbers that are
    coarser than their type; ``start`` then gives its turn.
    """

    name: str
    shard: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    make: Callable[[], Tensor] | None = None
    in_blocks: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in the file; 0 for a type that weights cannot have."""
        dtype = stored_type(self)
        return 0 if dtype is None else math.prod(self.shape) * dtype.itemsize


@dataclass(frozen=True)
class FileNames:
    """What the weights of a folder are called: those of no variant, or of one that lies beside them, such as ``fp16``.

    Attributes:
        single: the only file; index: where there are several, what says which tensor is in which.
        stem: what their names begin with.
    """

    single: str = SINGLE_FILE
    index: str = INDEX_FILE
    stem: str = "model"

    @classmethod
    def of(cls, variant: str | None) -> Self:
        """transformers' names of a variant; a :class:`ConfigError` for one that is no part of a file's name."""
        if variant is None:
            return cls()
        if not isinstance(variant, str) or not _VARIANT.fullmatch(variant):
            raise ConfigError(f"variant must be a word such as fp16, got {variant!r}", field="variant")
        return cls(f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json", f"model.{variant}")

    def shard(self, number: int, count: int) -> str:
        """The name of a shard, counted from 1."""
        return f"{self.stem}-{number:05d}-of-{count:05d}.safetensors"

    def holds(self, name: str) -> bool:
        """Whether a file of that name holds weights of this variant."""
        shard = re.fullmatch(rf"{re.escape(self.stem)}-\d{{5}}-of-\d{{5,6}}\.safetensors", name)
        return name == self.single or shard is not None


def read_headers(folder: Path, variant: str | None = None) -> dict[str, TensorHeader]:
    """Every tensor of the checkpoint in ``folder`` by name, from the shards' headers alone.

    Raises:
        CheckpointError: no weights (of that ``variant``), only pickles, an index that is not one or points outside the
            folder, a missing or damaged shard, a tensor that the index places wrongly or that two shards hold.
        ConfigError: a variant that is no part of a file's name.
    """
    files = FileNames.of(variant)
    indexed = {} if (folder / files.single).is_file() else _read_index(folder / files.index)
    headers = headers_of(_shards(folder, files, indexed))
    for name, shard in indexed.items():
        if name not in headers or headers[name].shard.name != shard:
            raise CheckpointError(f"{files.index} places {name} in {shard}, which does not hold it")
    return headers


def headers_of(shards: Iterable[Path]) -> dict[str, TensorHeader]:
    """Every tensor of the safetensors files ``shards`` by name.

    Raises:
        CheckpointError: a file is damaged, or two hold the same tensor.
    """
    headers: dict[str, TensorHeader] = {}
    for shard in shards:
        for header in _headers_in(shard):
            if header.name in headers:
                first = headers[header.name].shard.name
                raise CheckpointError(f"tensor {header.name} is in two shards: {first} and {shard.name}")
            headers[header.name] = header
    return headers


def read_tensors(
    headers: dict[str, TensorHeader],
    progress: Progress | None = None,
    room: Callable[[str], Tensor | None] = lambda name: None,
) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of ``headers``, which are of types that weights may have, as they lie in shard after shard.

    Args:
        headers: by the names that are to be given out.
        progress: called after each with its name, the bytes read so far and the bytes of all.
        room: contiguous memory on the CPU, of the size and type in the file, to read a tensor into.

    Yields:
        Names and tensors, in memory of their own; not those for which there was a room.

    Raises:
        CheckpointError: a file can no longer be read, or has become shorter; a tensor holds a NaN or an infinity.
    """
    by_shard: dict[Path, list[str]] = {}
    for name, header in headers.items():
        by_shard.setdefault(header.shard, []).append(name)
    total, done = sum(header.nbytes for header in headers.values()), 0
    for shard, names in by_shard.items():
        is_file = any(headers[name].make is None for name in names)
        with _damage_named(shard), reading(shard) if is_file else nullcontext() as fill:
            for name in sorted(names, key=lambda name: headers[name].start):
                make = headers[name].make
                if make is not None:
                    tensor = make()
                    check_finite(name, tensor, shard)
                    yield name, tensor
                else:
                    given = room(name)
                    tensor = _memory_for(headers[name]) if given is None else given
                    look = partial(_look, name, tensor.dtype, shard)
                    assert fill is not None  # for a tensor that lies in a file
                    fill(headers[name].start, tensor.view(-1).view(torch.uint8).numpy().data, look)
                    if given is None:
                        yield name, tensor
                done += headers[name].nbytes
                if progress is not None:
                    progress(name, done, total)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its name and size, and what makes it (on the CPU, contiguous) when its turn comes."""

    name: str
    nbytes: int
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Self:
        """A tensor that is there, of which a copy is written."""
        return cls(name, tensor.nbytes, lambda: tensor.detach().to("cpu", copy=True).contiguous())


@contextmanager
def open_shard(path: Path):
    """A safetensors file opened for reading; damage is a :class:`CheckpointError` that names the file."""
    with _damage_named(path), safe_open(path, framework="pt") as tensors:
        yield tensors


@contextmanager
def _damage_named(path: Path):
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def write_planned(
    folder: Path, planned: Iterable[PlannedTensor], max_shard_bytes: int, variant: str | None = None
) -> list[Path]:
    """Write tensors as one file or as shards with an index, made one shard at a time; returns the files, in order.

    Each file is written beside its place and then moved there, so that one that is being read stays whole. Files of an
    earlier checkpoint of the same ``variant`` in ``folder`` that are not written again are removed, last.

    Raises:
        OSError: a file cannot be written, for want of space say.
        CheckpointError: safetensors refuses the tensors.
    """
    entries, files = list(planned), FileNames.of(variant)
    groups = _fill(entries, max_shard_bytes)
    names = [files.single]
    if len(groups) > 1:
        names = [files.shard(i, len(groups)) for i in range(1, len(groups) + 1)]
    written = {path for path in folder.glob("model*.safetensors") if files.holds(path.name)}
    stale = {path for path in written if path.name not in names}
    weight_map: dict[str, str] = {}
    for name, group in zip(names, groups, strict=True):
        _write_shard(folder / name, group)
        weight_map |= dict.fromkeys((entry.name for entry in group), name)
    index = folder / files.index
    if len(groups) > 1:
        total = sum(entry.nbytes for entry in entries)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    else:
        index.unlink(missing_ok=True)
    for path in stale:
        path.unlink()
    return [folder / name for name in names]


def dtype_of(header: TensorHeader) -> torch.dtype | None:
    """torch's type for a header's floating type; None for anything else."""
    return FLOATS.get(header.dtype)


def stored_type(header: TensorHeader) -> torch.dtype | None:
    """torch's type for what a weight or its steps may be stored in; None for anything else."""
    return dtype_of(header) or INTEGERS.get(header.dtype)


def parse_size(size: int | str) -> int:
    """``5GB``, ``200MiB`` or a number of bytes, as bytes."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([KMG]I?B)\s*", str(size).upper())
    if isinstance(size, int) and size > 0:
        return size
    if match is None or not int(float(match[1]) * UNITS[match[2]]):
        raise ConfigError(f"max_shard_size must be bytes or a number with KB, MB or GB, not {size!r}")
    return int(float(match[1]) * UNITS[match[2]])


def _headers_in(shard: Path) -> Iterator[TensorHeader]:
    """What one file holds, by name; nothing is taken from its header before safetensors has checked all of it."""
    with open_shard(shard), shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, tensor in sorted(header.items()):
        start = 8 + length + tensor["data_offsets"][0]
        yield TensorHeader(name, shard, tuple(tensor["shape"]), tensor["dtype"], start)


def _look(name: str, dtype: torch.dtype, shard: Path, piece: memoryview) -> None:
    check_finite(name, torch.frombuffer(piece, dtype=dtype), shard)


def _memory_for(header: TensorHeader) -> Tensor:
    dtype = stored_type(header)
    assert dtype is not None, f"{header.name} is of type {header.dtype}"
    return host_memory.empty(header.shape, dtype)


def _write_shard(path: Path, group: list[PlannedTensor]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # that of any new file; safetensors lets the owner alone read what it writes
        save_file({entry.name: entry.make() for entry in group}, part, metadata={"format": "pt"})
        part.chmod(mode)
        os.replace(part, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise CheckpointError(f"{path.name} cannot be written: {' '.join(str(error).split())}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    finally:
        part.unlink(missing_ok=True)


def _fill(entries: list[PlannedTensor], limit: int) -> list[list[PlannedTensor]]:
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def _read_index(path: Path) -> dict[str, str]:
    """``weight_map`` of the index, checked; empty when the checkpoint is a single file."""
    if not path.is_file():
        return {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8-sig"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} is not a safetensors index: weight_map must be a non-empty object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise CheckpointError(
                f"{path} places {name} in {shard!r}; a shard must be a .safetensors file of the same folder"
            )
    return weight_map


def refuse_parts_of_ranks(folder: Path) -> None:
    """Raise a :class:`CheckpointError` where ranks of a distributed run have saved a part each, in folders of it."""
    ranks = sorted(int(path.name[5:]) for path in folder.glob("rank_*") if path.name[5:].isdecimal() and path.is_dir())
    if len(ranks) == 1:
        raise CheckpointError(f"{folder} holds no weights, and its folder rank_{ranks[0]} may: name that one")
    if ranks:
        raise CheckpointError(
            f"{folder} holds the parts of {len(ranks)} ranks (rank_{ranks[0]} to rank_{ranks[-1]}) and no whole "
            "checkpoint: merge them where they were saved (MindSpore's unified_safetensors, which reads the run's "
            "strategy files), then name the merged folder"
        )


def _shards(folder: Path, files: FileNames, indexed: dict[str, str]) -> list[Path]:
    if indexed:
        shards = [folder / name for name in sorted(set(indexed.values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing[:5])}"
            )
        return shards
    if (folder / files.single).is_file():
        return [folder / files.single]
    refuse_parts_of_ranks(folder)
    absent = f"{folder} holds no weights: neither {files.single} nor {files.index}"
    others = sorted(path.name for path in folder.glob("model*.safetensors"))
    if parts := [name for name in others if files.holds(name)]:
        raise CheckpointError(
            f"{folder} holds {len(parts)} shards ({parts[0]}) and no {files.index}, which says what is in them: "
            "fetch it from where the shards are from"
        )
    if others and files == FileNames.of(None):
        raise CheckpointError(f"{absent}; variant= reads those of another name, such as {others[0]}")
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and not others:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when read; "
            f"convert them to safetensors{_HOW if pickles[0].startswith('pytorch_model') else ''}"
        )
    raise CheckpointError(absent)
