"""``complete-image`` with PyTorch: a checkpoint of the zoo, a folder or the hub, sampled on any device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modelwright.cli import terminal
from modelwright.cli.complete_image_options import DEFAULT_MODEL, ColourSampling
from modelwright.engine.complete import complete
from modelwright.errors import RequestError
from modelwright.families import families
from modelwright.processing.pixel_settings import PixelSettings
from modelwright.serving.load import pick_device
from modelwright.serving.merge_adapter import merge_adapter
from modelwright.serving.opened import find_model
from modelwright.serving.quiet import quieten_libraries


class TorchCompleter:
    """A `Completer` of a checkpoint.

    Raises:
        RequestError: the model is not one that completes pictures.
        CheckpointError, ConfigError: its folder cannot be read, or its device or number type not be used.
    """

    def __init__(self, model: str | None, dtype: str, device: str):
        quieten_libraries()
        self.name = DEFAULT_MODEL if model is None else model
        self.device = str(pick_device(device))
        self._dtype = dtype
        checkpoint = find_model(self.name).checkpoint
        record = checkpoint.record
        if record.draws != "pixels" or checkpoint.architecture != record.causal:
            able = " and ".join(family.causal for family in families() if family.draws == "pixels")
            raise RequestError(
                f"{self.name} is of class {checkpoint.model_class.__name__}, which cannot complete pictures; {able} can"
            )
        self._kind, self._folder, self._adapters = checkpoint.model_class, checkpoint.folder, checkpoint.adapters
        config: Any = record.config_class.from_pretrained(self._folder)
        self.settings = PixelSettings.read(self._folder)
        self.start_token, self.positions = config.start_token_id, config.n_positions

    def load(self) -> None:
        with terminal.loading_bar(self.name) as progress:
            model = self._kind.from_pretrained(self._folder, dtype=self._dtype, progress=progress)
        for adapter in self._adapters:
            merge_adapter(model, adapter)
        self._model = model.to(self.device)

    def complete(
        self, rows: np.ndarray, new_tokens: int, sampling: ColourSampling, seed: int, tick: Callable[[], None]
    ) -> np.ndarray:
        made = complete(
            self._model,
            torch.from_numpy(rows),
            new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            seed=seed,
            on_token=lambda _: tick(),
        )
        return made.numpy()
