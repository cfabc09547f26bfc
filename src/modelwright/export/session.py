"""A decoder graph open in onnxruntime: content, mask and past in, scores and the longer past out; nothing is chosen.

The past stays in onnxruntime's own values from pass to pass and is never copied to arrays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelwright.errors import CheckpointError, ConfigError
from modelwright.export.manifest import LOGITS_TO_KEEP, Manifest

Past = Mapping[str, Any]
"""onnxruntime's values by the names of the graph's ``past`` inputs."""


def open_session(path: Path, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        threads: of one operator; None leaves the number to onnxruntime.

    Raises:
        ConfigError: onnxruntime is not installed, or ``threads`` is below 1.
        CheckpointError: the file is missing, or no graph that onnxruntime can open.
    """
    runtime = import_onnxruntime()
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind of damage
        raise CheckpointError(f"onnxruntime cannot open {path}: {' '.join(str(error).split())}") from error


def import_onnxruntime() -> Any:
    """The module; a ConfigError that says how to get it where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError('onnxruntime is not installed: pip install "modelwright[onnx]"') from error
    return onnxruntime


class DecoderSession:
    """The decoder graph of an exported folder.

    Args:
        folder: the folder; manifest: what it says of itself; threads: see :func:`open_session`.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None):
        self.manifest = manifest
        self.session = open_session(folder / manifest.graphs["decoder"], threads)
        self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._names = [output.name for output in self.session.get_outputs()]

    def no_past(self, batch: int) -> Past:
        """The past of a first pass."""
        shapes = self.manifest.past_shapes(batch)
        dtype = np.dtype(self.manifest.cache_dtype)
        return {name: self._value(np.zeros(shape, dtype)) for name, shape in shapes.items()}

    def run(
        self, content: Mapping[str, np.ndarray], mask: np.ndarray, past: Past, keep: int = 1
    ) -> tuple[np.ndarray, Past]:
        """One pass.

        Args:
            content: the new tokens, ``[batch, tokens, ...]`` by the name of their input.
            mask: int64 ``[batch, past + tokens]`` with 0 at padding; all ones where the graph takes none.
            past: of the pass before, or :meth:`no_past`.
            keep: logits of this many last tokens; 0 means all.

        Returns:
            The logits ``[batch, kept, vocabulary]`` and the past of the next pass.
        """
        inputs = dict(content) | {LOGITS_TO_KEEP: np.array([keep])}
        if self.manifest.takes_mask:
            inputs["attention_mask"] = mask
        feeds = {name: self._value(np.ascontiguousarray(array)) for name, array in inputs.items()} | dict(past)
        logits, *present = self.session.run_with_ort_values(self._names, feeds)
        return logits.numpy(), dict(zip(past, present, strict=True))

    def prefill(
        self, content: Mapping[str, np.ndarray], mask: np.ndarray, chunk: int | None = None
    ) -> tuple[np.ndarray, Past]:
        """The first tokens, ``chunk`` at a time: the last one's scores ``[batch, vocabulary]`` and the past."""
        batch, tokens = next(iter(content.values())).shape[:2]
        size, past = tokens if chunk is None else chunk, self.no_past(batch)
        for start in range(0, tokens, size):
            stop = min(start + size, tokens)
            part = {name: array[:, start:stop] for name, array in content.items()}
            logits, past = self.run(part, mask[:, :stop], past)
        return logits[:, -1], past
