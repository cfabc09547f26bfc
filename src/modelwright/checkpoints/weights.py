"""The tensors of a folder in the official layout, wherever they lie and whoever stored them.

They are in safetensors beside the config, as numbers or as another program quantized them, or in GGUF.
"""

from pathlib import Path

from modelwright.checkpoints.foreign.headers import as_numbers
from modelwright.checkpoints.gguf.folder import headers_in, stands_for_gguf
from modelwright.checkpoints.shards import TensorHeader, read_headers


def weights_in(folder: Path, variant: str | None = None) -> dict[str, TensorHeader]:
    """Every tensor of the checkpoint in ``folder``, or of its ``variant``, by name; none is read.

    Raises:
        CheckpointError: as :func:`~modelwright.checkpoints.shards.read_headers`; or what another program stored for a
            weight does not fit together.
    """
    if stands_for_gguf(folder):
        return headers_in(folder)
    return as_numbers(folder, read_headers(folder, variant))
