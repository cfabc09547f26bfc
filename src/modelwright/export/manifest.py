"""``modelwright_onnx.json``: what an exported folder says of itself; read and written without torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelwright.errors import CheckpointError

FILE = "modelwright_onnx.json"
FORMAT = 1
LOGITS_TO_KEEP = "logits_to_keep"
"""An input of the decoder, int64 ``[1]``: logits of the last n tokens only; 0 means all."""


@dataclass(frozen=True)
class Manifest:
    """What ``OnnxDecoder`` needs to know before it opens a graph.

    Attributes:
        family: the ``model_type``.
        graphs: file by name; ``decoder`` is always among them.
        dtype: of the weights and of the cache, as numpy names it.
        cache_layers: layers that cache.
        cache_parts: name, heads and width of the two tensors that each of them caches.
        takes_mask: whether the decoder reads an ``attention_mask``.
        vocab_size: tokens must be below it.
        max_positions: tokens that fit into one sequence; None where nothing bounds them.
        opset: ONNX's version.
        files: all files of the export, this one among them, with slashes; empty in folders of earlier versions.
    """

    family: str
    graphs: dict[str, str]
    dtype: str
    cache_dtype: str
    cache_layers: int
    cache_parts: list[dict[str, Any]]
    takes_mask: bool
    vocab_size: int
    max_positions: int | None
    opset: int
    files: tuple[str, ...] = ()

    def past_shapes(self, batch: int, past: int = 0) -> dict[str, tuple[int, ...]]:
        """The shape of every past tensor by the name of its input."""
        return {
            f"past.{layer}.{part['name']}": (batch, part["heads"], past, part["width"])
            for layer in range(self.cache_layers)
            for part in self.cache_parts
        }

    def write(self, folder: Path) -> None:
        """Write the file; the same manifest gives the same bytes."""
        text = json.dumps({"format": FORMAT} | asdict(self), indent=2) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the file of an exported folder.

        Raises:
            CheckpointError: the folder has none, or one that this version does not know.
        """
        path = folder / FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {FILE}: it is no folder that `modelwright export onnx` made")
        content = read_object(path)
        if content.pop("format", None) != FORMAT:
            raise CheckpointError(f"{path} has another format than {FORMAT}, the one this version reads")
        try:
            return cls(**content)
        except TypeError as error:
            raise CheckpointError(f"{path} does not fit format {FORMAT}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a :class:`CheckpointError` that names the file if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content
