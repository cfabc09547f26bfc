"""The ImageGPT image processor, used as transformers' own; the pixels themselves are the business of `pixels`."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from modelwright.errors import CheckpointError, RequestError
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.processing.pictures import as_pictures
from modelwright.processing.pixel_settings import FILE, PixelSettings
from modelwright.processing.pixels import Pixels


class ImageGPTImageProcessor:
    """Pictures in, ``input_ids`` out: the palette index of each pixel in raster order, without a start token.

    The ids are those of transformers' processor (its Pillow backend) for the same settings, and either reads the
    ``preprocessor_config.json`` that the other writes. Unlike there, pictures of any mode are made RGB (transparency
    on white, upright by their EXIF orientation), and floats in 0..1 need no ``do_rescale=False``.

    Args:
        settings: those of `PixelSettings`: ``clusters``, ``size``, ``do_resize``, ``resample``, ...

    Raises:
        ConfigError: an unknown setting, or one that breaks its rule.
    """

    model_input_names = ["input_ids"]

    def __init__(self, **settings: Any):
        self.settings = PixelSettings().changed(**_on_the_host(settings))
        self.pixels = Pixels(self.settings)

    @classmethod
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> Self:
        """Read the ``preprocessor_config.json`` of a folder, or of the hub's ``organisation/name``.

        Raises:
            CheckpointError: there is none, or it is no JSON object.
            ConfigError: it belongs to another processor, or a setting breaks its rule.
        """
        folder = Path(path) if Path(path).is_dir() else _fetch(str(path))
        processor = cls.__new__(cls)
        processor.settings = PixelSettings.read(folder, **_on_the_host(overrides))
        processor.pixels = Pixels(processor.settings)
        return processor

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write ``preprocessor_config.json``, which transformers reads too; returns its path in a list, as there."""
        return [str(self.settings.write(folder))]

    def fields_without_effect(self) -> dict[str, str]:
        """What the file said beyond the settings, each by name, with the reason that it changes nothing."""
        return self.settings.fields_without_effect()

    @property
    def clusters(self) -> np.ndarray | None:
        """The palette, float64 ``[k, 3]``, read-only; None where there is none."""
        return self.settings.clusters

    @property
    def size(self) -> dict[str, int]:
        """Height and width of the pictures that tokens are made of."""
        return {"height": self.settings.height, "width": self.settings.width}

    def __call__(self, images: Any, return_tensors: str | None = None, **overrides: Any) -> BatchFeature:
        """The tokens of one picture or many.

        Args:
            images: anything `as_pictures` takes: pictures, paths, arrays, tensors, batches and lists of them.
            return_tensors: ``np`` or ``pt`` for one array, None for a list with an array each.
            overrides: settings for this call.

        Returns:
            ``input_ids``, int64 ``[batch, height * width]``; without ``do_color_quantize`` instead ``pixel_values``,
            float32 ``[batch, 3, height, width]``.

        Raises:
            RequestError: a picture that cannot be read, none at all, or sizes that differ where they must not.
            ConfigError: a setting that breaks its rule, or no palette to quantise with.
        """
        kind = None if return_tensors is None else getattr(return_tensors, "value", return_tensors)
        if kind not in (None, "np", "pt"):
            raise RequestError(f"return_tensors must be np, pt or None, got {return_tensors!r}")
        pixels = Pixels(self.settings.changed(**_on_the_host(overrides))) if overrides else self.pixels
        if pixels.settings.do_color_quantize:
            pixels.settings.require_clusters()  # before pictures are read, which may take a while
        levels = pixels.fit(as_pictures(images))
        if pixels.settings.do_color_quantize:
            return BatchFeature({"input_ids": list(pixels.encode(levels))}, tensor_type=kind)
        return BatchFeature({"pixel_values": list(pixels.values(levels))}, tensor_type=kind)

    preprocess = __call__

    def decode(self, ids: Any) -> list[Image.Image]:
        """The pictures of ``ids [batch, height * width]`` (or one row); a start token before a row is left out.

        Raises:
            RequestError: a row is not as long as a picture, or holds what is no colour of the palette.
        """
        array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids
        return [Image.fromarray(picture) for picture in self.pixels.decode(array)]

    def __repr__(self) -> str:
        colours = "no" if self.clusters is None else len(self.clusters)
        return f"{type(self).__name__}({colours} colours, {self.settings.height} x {self.settings.width} pixels)"


def _on_the_host(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a palette that is a tensor as an array."""
    clusters = settings.get("clusters")
    return settings | {"clusters": clusters.detach().cpu().numpy()} if isinstance(clusters, Tensor) else settings


def _fetch(name: str) -> Path:
    """The folder with the hub's file of that name, fetched where it is not yet here."""
    try:
        return Path(hf_hub_download(name, FILE)).parent
    except Exception as error:  # a name that is no hub id, no such file there, no network
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{name} is not a folder here, and the hub has no {FILE} of it: {reason}") from error


def read_processor(folder: Path, config: ImageGPTConfig) -> ImageGPTImageProcessor:
    """The image processor in a folder, whose palette must have a colour for each token that the model knows.

    Raises:
        CheckpointError: there is none, or its palette has another number of colours.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise CheckpointError(f"{folder} has no preprocessor_config.json, which says what colour each token is")
    processor = ImageGPTImageProcessor.from_pretrained(folder)
    colours = None if processor.clusters is None else len(processor.clusters)
    if colours not in (None, config.start_token_id):
        raise CheckpointError(
            f"the palette in {folder} has {colours} colours and must have vocab_size - 1 ({config.start_token_id})"
        )
    return processor
