"""A folder to a model and its processor, ready to run; names on disk and tensors are the business of `checkpoints`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from modelwright.checkpoints.folder import Checkpoint
from modelwright.checkpoints.shards import Progress
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import Reference, resolve
from modelwright.serving.adapted import find_adapted, words_of
from modelwright.serving.merge_adapter import merge_adapter

ATTENTION = ("sdpa", "eager")
"""Ways to compute attention: torch's kernels, or the product written out."""


@dataclass(frozen=True)
class Loaded:
    """A model and what turns text (and pictures) into its arrays; ``model, processor = load(...)`` works too.

    Attributes:
        model: in evaluation mode, on its device.
        processor: the family's processor, or what makes the same prompts for the engine; the tokenizer for a family
            that reads text alone, the image processor for one whose tokens are colours.
        checkpoint: what it was loaded from.
    """

    model: Any
    processor: Any
    checkpoint: Checkpoint

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processor))

    @property
    def tokenizer(self) -> Any:
        """What turns text into tokens and back; None for a model whose tokens are colours."""
        if self.checkpoint.tokens_are_colours:
            return None
        return self.processor.tokenizer if self.checkpoint.reads_pictures else self.processor


def load(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Loaded:
    """Load the model in a folder, of the family its ``config.json`` names, together with its processor.

    Args:
        path: a folder in the official layout, or a hub id ``organisation/name``.
        dtype: a floating type or its name; ``auto`` is the config's, else that of the stored weights.
        device: ``auto`` is the machine's accelerator where torch finds one, else the CPU.
        attn_implementation: ``sdpa`` (the default) or ``eager``.
        progress: called after each tensor with its name, the bytes read so far and the bytes to read.
        overrides: fields of the config.

    Raises:
        CheckpointError: a missing folder, config, weights, tokenizer or palette; a tensor missing, unexpected or
            misshapen.
        ConfigError: an unknown model type (what we have is listed), a broken rule, an unusable dtype or device.
    """
    place = pick_device(device)
    if attn_implementation not in (None, *ATTENTION):
        raise ConfigError(f"attn_implementation must be one of {', '.join(ATTENTION)}, not {attn_implementation!r}")
    checkpoint = find_adapted(path)
    config = read_config(checkpoint, overrides)
    processor = _read(checkpoint, checkpoint.record.processor, config)
    how = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    kind = checkpoint.model_class
    model = kind.from_pretrained(checkpoint.folder, config=config, dtype=dtype, progress=progress, **how)
    for adapter in checkpoint.adapters:
        merge_adapter(model, adapter)
    return Loaded(model.to(place), processor, checkpoint)


def load_network(
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> Loaded:
    """What the engine runs of a checkpoint that draws tokens: the weights of `load`, without transformers' classes.

    Not importing those saves about half of the time that a question to a small model takes.

    Args:
        dtype, device, progress: as for `load`.

    Raises:
        CheckpointError, ConfigError: as `load`.
    """
    place = pick_device(device)
    record, config = checkpoint.record, read_config(checkpoint)
    processor = _read(checkpoint, record.prompts or record.processor, config)
    model = record.network_class.read(checkpoint.folder, config, dtype, progress)
    for adapter in checkpoint.adapters:
        merge_adapter(model, adapter)
    return Loaded(model.to(place), processor, checkpoint)


def pick_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; a ConfigError when torch has no such device here."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion is what a build without CUDA raises
        raise ConfigError(f"device {str(name)!r} cannot be used here; {_devices()}", field="device") from error
    if device.type == "meta":
        raise ConfigError(f"device 'meta' holds no values; {_devices()}", field="device")
    return device


def _devices() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return f"torch finds cpu{f' and {accelerator.type}' if accelerator else ' only'}"


def read_config(checkpoint: Checkpoint, overrides: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A checkpoint's config, with `overrides` in place of its fields.

    Raises:
        ConfigError: one of them is no field, or a rule is broken.
    """
    config_class = checkpoint.config_class
    config, rest = config_class.from_pretrained(checkpoint.folder, return_unused_kwargs=True, **overrides)
    if rest:
        raise ConfigError(f"{config_class.__name__} has no field {next(iter(rest))!r} to override")
    return config


def _read(checkpoint: Checkpoint, reader: Reference, config: Any) -> Any:
    """What a reader of the family's record makes of the small files that prompts are made by."""
    folder = words_of(checkpoint)
    try:
        return resolve(reader)(folder, config)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        raise CheckpointError(f"the processor in {folder} cannot be read: {error}") from error
