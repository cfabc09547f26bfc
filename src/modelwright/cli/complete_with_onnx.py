"""``complete-image`` with onnxruntime: a folder written by ``modelwright export onnx``; imports no torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from modelwright.cli.complete_image_options import ColourSampling
from modelwright.errors import CheckpointError, RequestError
from modelwright.export.manifest import Manifest
from modelwright.export.runtime import OnnxDecoder
from modelwright.processing.pixel_settings import PixelSettings
from modelwright.serving.names import user_path


class OnnxCompleter:
    """A `Completer` of an exported ImageGPT, on the CPU.

    Raises:
        CheckpointError: there is no such folder, or it is not what the export writes.
        RequestError: it holds another family.
    """

    device = "cpu"

    def __init__(self, folder: Path):
        self.name = str(folder)
        self._folder = user_path(folder)
        if not self._folder.is_dir():
            raise CheckpointError(f"--onnx {folder}: there is no such folder")
        manifest = Manifest.read(self._folder)
        if manifest.family != "imagegpt" or manifest.max_positions is None:
            raise RequestError(f"--onnx {folder} holds a {manifest.family} model, which cannot complete pictures")
        self.settings = PixelSettings.read(self._folder)
        self.start_token, self.positions = manifest.vocab_size - 1, manifest.max_positions

    def load(self) -> None:
        self._decoder = OnnxDecoder(self._folder)

    def complete(
        self, rows: np.ndarray, new_tokens: int, sampling: ColourSampling, seed: int, tick: Callable[[], None]
    ) -> np.ndarray:
        return self._decoder.generate(
            rows,
            new_tokens,
            attention_mask=np.ones_like(rows),  # no colour is padding,
            eos_token_id=(),  # and none ends a picture
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            seed=seed,
            on_token=lambda _: tick(),
        )
