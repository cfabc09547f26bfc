"""The small trained models inside the package: names, folders and what they are; loading them is `modelwright.load`.

Each is a folder beside this file in the official layout, with ``accuracy.json`` beside the weights: an object whose
``accuracy`` holds the fraction of held-out questions answered right, by task.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from modelwright.errors import CheckpointError, RequestError

_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class ZooModel:
    """One shipped model.

    Attributes:
        name: what `path` and the command line call it.
        family: its ``model_type``.
        parameters: how many numbers its weights hold.
        weight_bytes: the size of its weight files.
        accuracy: fraction right by task; empty where it was not measured.
    """

    name: str
    family: str
    parameters: int
    weight_bytes: int
    accuracy: dict[str, float]


def names() -> list[str]:
    """What ships, in alphabetical order."""
    return sorted(config.parent.name for config in _ROOT.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of a shipped model; a RequestError lists the names when there is no such model."""
    if name not in names():
        raise RequestError(f"the zoo has no model {name!r}; it has {', '.join(names()) or 'none'}")
    return _ROOT / name


def describe(name: str) -> ZooModel:
    """What is known of a shipped model, read from its small files and the headers of its weights.

    Raises:
        RequestError: there is no such model.
        CheckpointError: its files are damaged.
    """
    folder = path(name)
    shards = sorted(folder.glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        measured = folder / "accuracy.json"
        accuracy = json.loads(measured.read_text("utf-8"))["accuracy"] if measured.is_file() else {}
        return ZooModel(
            name=name,
            family=config["model_type"],
            parameters=sum(_count_parameters(shard) for shard in shards),
            weight_bytes=sum(shard.stat().st_size for shard in shards),
            accuracy={task: float(share) for task, share in accuracy.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the files of {name} in {folder} are damaged: {error!r}") from error


def _count_parameters(shard: Path) -> int:
    with safe_open(shard, framework="np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
