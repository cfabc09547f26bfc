"""`TensorDialect`, what a conversion asks of another program's way to write a family, which the record names."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from modelwright.checkpoints.layouts import PackedTensor
from modelwright.checkpoints.shards import headers_of, refuse_parts_of_ranks
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import families, resolve

HUGGING_FACE = "hf"
"""The name of the official dialect, which needs no description here: files hold what models save."""
GGUF = "gguf"
"""The name of llama.cpp's one file that holds all of a checkpoint."""
GENERATION_FILE = "generation_config.json"
"""The official dialect's file of sampling settings."""
YAMLS = (".yaml", ".yml")


class TensorDialect(Protocol):
    """How another program writes the configs and tensors of one family.

    Attributes:
        title: the program's name in sentences.
        architecture: the only model that it has.
        own_files: files beside its weights that mean nothing elsewhere.
        ties: its names of the tensors that a config may tie, each with the one that it then is.
    """

    @property
    def title(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def own_files(self) -> frozenset[str]: ...

    @property
    def ties(self) -> Mapping[str, str]: ...

    def holds(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are written in this dialect."""
        ...

    def read_config(self, file: Path) -> tuple[Any, list[str]]:
        """The config in a file, and what the file says of the place of weights, which the config leaves out."""
        ...

    def run_sections(self, file: Path) -> list[str]:
        """The sections of a config file that are about a training run and no part of a model's config."""
        ...

    def write_config(self, folder: Path, config: Any) -> None:
        """Write a config's file into a folder; a ConfigError where the dialect cannot express it."""
        ...

    def left_out(self, name: str) -> str | None:
        """Why a tensor of a file is no weight of the model; None for all that should be one."""
        ...

    def usual_name(self, name: str) -> str:
        """The name that `tensors` gives to a tensor which some versions of the program call otherwise."""
        ...

    def tensors(self, config: Any, shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[PackedTensor]:
        """Every tensor of a model, packed as tensors called and shaped like `shapes` are, or as they are written."""
        ...

    def with_sampling(self, config: Any, folder: Path) -> Any:
        """A copy of the config with the sampling settings that the folder's official file states."""
        ...

    def write_sampling(self, folder: Path, config: Any) -> None:
        """Write the config's sampling settings as the official dialect's file."""
        ...

    def unsaid(self, config: Any, folder: Path) -> list[str]:
        """The settings in the folder's official file that the config does not say."""
        ...


def other_dialects() -> dict[str, TensorDialect]:
    """Every family's other dialect by its name."""
    found = (family.dialect for family in families())
    return {dialect.name: resolve(dialect.tensors) for dialect in found if dialect is not None}


def refuse_other_dialects(folder: Path) -> None:
    """Raise a :class:`CheckpointError` with the line to type where a folder's tensors are named in another dialect."""
    shards = sorted(folder.glob("*.safetensors"))
    refuse_names_of_others(folder, headers_of(shards))
    if not shards:
        refuse_parts_of_ranks(folder)
    if not shards and any(path.suffix in YAMLS for path in folder.glob("*")) and any(folder.glob("*.ckpt")):
        raise CheckpointError(
            f"{folder} holds .ckpt weights, which only MindSpore reads; save them as safetensors there"
        )


def refuse_names_of_others(folder: Path, names: Collection[str]) -> None:
    """As `refuse_other_dialects`, of the tensors in the folder that are called so."""
    for dialect in other_dialects().values():
        if dialect.holds(names):
            raise CheckpointError(
                f"{folder} is a {dialect.title} checkpoint, which runs once it is converted: "
                f"modelwright convert {shlex.quote(str(folder))} NEW_FOLDER"
            )


def dialect_called(name: str | None) -> TensorDialect | None:
    """The dialect of that name; None for the official one, which None means too.

    Raises:
        ConfigError: there is none of that name.
    """
    others = other_dialects()
    if name not in (None, HUGGING_FACE, *others):
        raise ConfigError(f"to must be one of {', '.join((HUGGING_FACE, *others, GGUF))}; got {name!r}")
    return None if name in (None, HUGGING_FACE) else others[name]
