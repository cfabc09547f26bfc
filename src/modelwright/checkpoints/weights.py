"""The tensors of a folder in the official layout, wherever they lie: in safetensors beside the config, or in GGUF."""

from pathlib import Path

from modelwright.checkpoints.gguf.folder import headers_in, stands_for_gguf
from modelwright.checkpoints.shards import TensorHeader, read_headers


def weights_in(folder: Path, variant: str | None = None) -> dict[str, TensorHeader]:
    """Every tensor of the checkpoint in ``folder``, or of its ``variant``, by name; none is read.

    Raises:
        CheckpointError: as :func:`~modelwright.checkpoints.shards.read_headers`.
    """
    return headers_in(folder) if stands_for_gguf(folder) else read_headers(folder, variant)
