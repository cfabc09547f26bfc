"""A checkpoint folder into one whose matrices are stored as integers; one shard in memory at a time, and no model.

Which matrices, and in what form, is said in ``quantized_model.py``. Leaves out what the rounding costs in loss.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.conversion_source import TensorReader
from modelwright.checkpoints.convert import READ_AT_ONCE
from modelwright.checkpoints.finite import check_range
from modelwright.checkpoints.folder import Checkpoint, find_checkpoint
from modelwright.checkpoints.new_folder import COMPANIONS, check_new, copy_companions, new_folder
from modelwright.checkpoints.places import split
from modelwright.checkpoints.quantized_model import (
    is_quantized,
    parts_of,
    quantized_names,
    relative_error,
    rows_of,
    settings_for,
    transposed_names,
)
from modelwright.checkpoints.recipes import copy_of
from modelwright.checkpoints.rounded_layers import store
from modelwright.checkpoints.shards import (
    INDEX_FILE,
    PlannedTensor,
    Progress,
    TensorHeader,
    dtype_of,
    parse_size,
    write_planned,
)
from modelwright.checkpoints.source import choose_dtype, settle_foreign_quantization
from modelwright.checkpoints.weights import weights_in
from modelwright.configs import CheckedConfig
from modelwright.configs.engine import QuantSettings, weight_quantization
from modelwright.errors import CheckpointError, ConfigError
from modelwright.ops.weight_only import Int4Weight


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization wrote.

    Attributes:
        tensors: how many tensors the new checkpoint holds.
        bytes: their size together; source_bytes: that of the files they were made from.
        shards: how many weight files.
        errors: for each rounded matrix, by its official name, ``|stored - given| / |given|`` (Frobenius norms).
    """

    tensors: int
    bytes: int
    source_bytes: int
    shards: int
    errors: dict[str, float]


def quantize(
    src: str | Path,
    dst: str | Path,
    method: str,
    *,
    group: int | None = None,
    keep_head: bool = True,
    symmetric: bool = False,
    max_shard_size: int | str = "5GB",
    calibrated: Any = None,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize a checkpoint folder; ``dst`` appears whole at the end, or not at all.

    It then holds, bit for bit, what ``quantize_model`` of ``quantized_model.py`` makes of the loaded model.

    Args:
        src: a folder in the official layout, or a hub id.
        dst: a folder that is not there yet, or is empty.
        method, group, keep_head, symmetric: as over there.
        max_shard_size: bytes of one weight file at most, or text such as ``200MB`` or ``5GiB``.
        calibrated: the model of ``src`` as ``quantize_model`` calibrated it in the same way; its integers are written.
        progress: called after each tensor with its name, the bytes made so far and the bytes to make.

    Raises:
        CheckpointError: unsafe, damaged or missing files, weights that are quantized already, a ``dst`` in use.
        ConfigError: an unknown method or group, or matrices that the method does not fit.
    """
    target, limit = Path(dst).absolute(), parse_size(max_shard_size)
    check_new(target)
    source = _Source.open(find_checkpoint(src, COMPANIONS), partial(settings_for, method, group, keep_head, symmetric))
    with new_folder(target) as folder, TensorReader(source.headers, limit // READ_AT_ONCE) as reader:
        work = _Work(source, reader, progress, _integers_of(calibrated, source))
        planned = list(work.plan())
        work.total = sum(entry.nbytes for entry in planned)
        shards = write_planned(folder, planned, limit)
        source.config.save_pretrained(folder)
        copy_companions(source.folder, folder, {"config.json", INDEX_FILE})
    return QuantizeReport(len(planned), work.total, source.file_bytes, len(shards), work.errors)


@dataclass(frozen=True)
class _Source:
    """A checkpoint of floats, and what is to be made of it: config, types before rounding, shapes and types after.

    What is not rounded keeps the type that it has in the file.
    """

    folder: Path
    file_bytes: int
    headers: dict[str, TensorHeader]
    config: Any
    settings: QuantSettings
    types: dict[str, torch.dtype]
    made: dict[str, Tensor]
    rounded: frozenset[str]
    transposed: frozenset[str]

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings_of: Callable[[Any], QuantSettings]) -> "_Source":
        kind, found = checkpoint.model_class, weights_in(checkpoint.folder)
        for header in found.values():
            if is_quantized(header):
                raise CheckpointError(
                    f"{checkpoint.folder} is quantized already ({header.name} is {header.dtype}); "
                    "quantize the checkpoint it was made from"
                )
        config: Any = checkpoint.config_class.from_pretrained(checkpoint.folder)
        settings = settings_of(config)
        settle_foreign_quantization(config, found)
        kind.settle_ties(config, found)
        plain = _empty(kind, config, None)
        used = plain.match(found)
        dtype = choose_dtype({}, config, used.values())
        config.dtype, config.architectures = str(dtype).removeprefix("torch."), [kind.__name__]
        config.quant_config = settings.to_config()
        model = _empty(kind, config, config.quant_config)
        own = model.state_dict()
        made = {name: own[place.parameter][place.index] for name, place in model.places().items()}
        return cls(
            checkpoint.folder,
            checkpoint.weight_bytes,
            used,
            config,
            settings,
            plain.stored_types(dtype),
            made,
            quantized_names(made),
            transposed_names(plain),
        )


def _empty(kind: Any, config: CheckedConfig, asked: dict[str, Any] | None) -> Any:
    config = copy.deepcopy(config)
    config.quant_config = asked  # pyright: ignore[reportAttributeAccessIssue]
    with torch.device("meta"):
        return kind(config)


def _integers_of(calibrated: Any, source: _Source) -> dict[str, Tensor] | None:
    """The official tensors of a calibrated model; None where there is none."""
    if calibrated is None:
        return None
    settings = weight_quantization(calibrated.config)
    if settings != source.settings:
        raise ConfigError(f"the calibrated model is stored as {settings}, and {source.settings} is asked for")
    return dict(split(calibrated.places(), calibrated.state_dict()))


def _weight_of(name: str, tensors: Mapping[str, Tensor]) -> Int4Weight:
    parts = (tensors.get(part) for part in (name, f"{name}_scale", f"{name}_offset"))
    steps, scales, offsets = (None if part is None else part.cpu().contiguous() for part in parts)
    assert steps is not None and scales is not None  # the settings are the same
    return Int4Weight(steps, scales, offsets)


class _Work:
    """Makes the tensors of the new checkpoint one after the other, and keeps what there is to report."""

    def __init__(
        self, source: _Source, reader: TensorReader, progress: Progress | None, known: Mapping[str, Tensor] | None
    ):
        self._source, self._reader, self._progress, self._known = source, reader, progress, known
        self._waiting: dict[str, Tensor] = {}
        self._done = 0
        self.total = 0
        self.errors: dict[str, float] = {}

    def plan(self) -> Iterator[PlannedTensor]:
        """What to write, in order; scales come right after their steps."""
        source = self._source
        for name in source.headers:
            if name not in source.rounded:
                header = source.headers[name]
                kept = source.types[name] if header.in_blocks else dtype_of(header)
                assert kept is not None  # the headers are matched
                yield self._planned(name, name, kept)
                continue
            for part in (name, f"{name}_scale", f"{name}_offset"):
                if part in source.made:
                    yield self._planned(name, part, source.made[part].dtype)

    def _planned(self, name: str, part: str, dtype: torch.dtype) -> PlannedTensor:
        return PlannedTensor(part, self._source.made[part].numel() * dtype.itemsize, partial(self._make, name, part))

    def _make(self, name: str, part: str) -> Tensor:
        if part not in self._waiting:
            self._waiting |= self._made_from(name)
        tensor = self._waiting.pop(part)
        self._done += tensor.nbytes
        if self._progress is not None:
            self._progress(part, self._done, self.total)
        return tensor

    def _made_from(self, name: str) -> dict[str, Tensor]:
        source = self._source
        given = self._reader.follow(copy_of(name, source.headers[name].shape))
        if name not in source.rounded:
            kept = source.types[name] if source.headers[name].in_blocks else given.dtype
            return {name: given.to(kept, copy=True, memory_format=torch.contiguous_format)}
        check_range(name, given, source.types[name])
        rows = rows_of(name, given.to(source.types[name]), source.transposed)
        stored = store(name, rows, source.settings) if self._known is None else _weight_of(name, self._known)
        self.errors[name] = relative_error(rows, stored)
        return dict(parts_of(name, stored))
