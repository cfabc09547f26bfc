"""What a checkpoint folder holds, told from its small files and the weights' headers; no weight is read here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelwright.checkpoints.dialect import refuse_names_of_others, refuse_other_dialects
from modelwright.checkpoints.source import find_folder, read_json, refuse_foreign_quantization
from modelwright.checkpoints.weights import weights_in
from modelwright.configs import CheckedConfig
from modelwright.configs.quantization import foreign_quantization, program_of
from modelwright.errors import CheckpointError
from modelwright.families import Family, architecture_of

ADAPTER = "adapter_config.json"
"""The file by which peft's adapters are known."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config of ours and weights.

    Attributes:
        folder: where it lies on this machine.
        record: the record of its family.
        architecture: the model that its ``config.json`` asks for.
        weight_bytes: the size of its weight files together.
        adapters: folders of LoRAs of peft's that whoever reads the weights folds in, in order; `serving` alone looks
            for them.
        quantized_by: another program that has quantized its weights, which are read as the numbers they stand for.
    """

    folder: Path
    record: Family
    architecture: str
    weight_bytes: int
    adapters: tuple[Path, ...] = ()
    quantized_by: str | None = None

    def with_adapter(self, folder: Path) -> "Checkpoint":
        """It with one more LoRA, which is folded in after those that it has."""
        return replace(self, adapters=(*self.adapters, folder))

    @property
    def model_class(self) -> Any:
        """The class of its model, which is imported now."""
        return self.record.model_class(self.architecture)

    @property
    def draws_tokens(self) -> bool:
        """Whether its model gives scores of the next token."""
        ours = self.record.architectures
        return ours[self.architecture] == ours[self.record.causal]

    @property
    def config_class(self) -> type[CheckedConfig]:
        """The config of its family."""
        return self.record.config_class

    @property
    def family(self) -> str:
        """The ``model_type`` of its config."""
        return self.record.model_type

    @property
    def reads_pictures(self) -> bool:
        """Whether its prompts may hold pictures."""
        return self.record.sees_pictures

    @property
    def tokens_are_colours(self) -> bool:
        """Whether its tokens are the colours of a palette, so that it needs no tokenizer."""
        return self.record.draws == "pixels"


def find_checkpoint(path: str | Path, companions: Iterable[str] = ()) -> Checkpoint:
    """Look at a folder, or fetch the hub's ``organisation/name`` (safetensors and text files only).

    Args:
        companions: patterns of files to fetch beside those that are read.

    Raises:
        CheckpointError: there is no such folder, it has no ``config.json`` or no weights, or an adapter beside them or
            in their place, its files are unsafe, or another program has quantized them.
        ConfigError: the model type is not one of ours; the message lists what is.
    """
    folder = find_folder(path, {}, companions)
    refuse_adapter(folder)
    return read_checkpoint(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """`find_checkpoint` of a folder on this machine, whatever adapter may lie beside its model."""
    if not (folder / "config.json").is_file():
        refuse_other_dialects(folder)
        raise CheckpointError(f"{folder} has no config.json")
    values = read_json(folder / "config.json")
    if "model_type" not in values:
        refuse_other_dialects(folder)
    record, architecture = architecture_of(values)
    headers = weights_in(folder)
    refuse_foreign_quantization(values, headers)
    refuse_names_of_others(folder, headers)
    shards = {header.shard for header in headers.values()}
    quantized = foreign_quantization(values)
    return Checkpoint(
        folder,
        record,
        architecture,
        sum(shard.stat().st_size for shard in shards),
        quantized_by=None if quantized is None else program_of(quantized),
    )


def refuse_adapter(folder: Path) -> None:
    """Raise a CheckpointError where a folder holds an adapter, which who reads a model alone would leave out."""
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} holds an adapter: chat, generate, serve and evaluate read it with the model that it is of, a "
            "run takes it as model.adapter beside model.path, and all else needs it folded in (modelwright checkpoint "
            "export --merge, or merge_and_unload of peft's)"
        )
