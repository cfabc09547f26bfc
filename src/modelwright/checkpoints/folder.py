"""What a checkpoint folder holds, told from its small files and the weights' headers; no weight is read here."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from modelwright.checkpoints.shards import read_headers
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.configs import CheckedConfig
from modelwright.errors import CheckpointError
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.hf.registry import model_class


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config of ours and weights.

    Attributes:
        folder: where it lies on this machine.
        model_class: what its ``config.json`` asks for.
        weight_bytes: the size of its weight files together.
    """

    folder: Path
    model_class: type[ModelwrightPreTrainedModel]
    weight_bytes: int

    @property
    def config_class(self) -> type[CheckedConfig]:
        """The config of its family."""
        return cast(type[CheckedConfig], self.model_class.config_class)

    @property
    def family(self) -> str:
        """The ``model_type`` of its config."""
        return self.config_class.model_type

    @property
    def reads_pictures(self) -> bool:
        """Whether its config has a vision part."""
        return "vision_config" in self.config_class.sub_configs

    @property
    def tokens_are_colours(self) -> bool:
        """Whether its tokens are the colours of a palette, so that it needs no tokenizer."""
        return issubclass(self.config_class, ImageGPTConfig)


def find_checkpoint(path: str | Path) -> Checkpoint:
    """Look at a folder, or fetch the hub's ``organisation/name`` (safetensors and text files only).

    Raises:
        CheckpointError: there is no such folder, it has no ``config.json`` or no weights, or its files are unsafe.
        ConfigError: the model type is not one of ours; the message lists what is.
    """
    folder = find_folder(path, {})
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json")
    named = model_class(read_json(folder / "config.json"))
    shards = {header.shard for header in read_headers(folder).values()}
    return Checkpoint(folder, named, sum(shard.stat().st_size for shard in shards))
