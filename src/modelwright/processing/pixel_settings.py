"""ImageGPT's ``preprocessor_config.json`` as checked settings, read and written; no pixel is touched here."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from modelwright.errors import CheckpointError, ConfigError
from modelwright.processing.file_keys import meant, without_effect

FILE = "preprocessor_config.json"
KIND = "ImageGPTImageProcessor"
_FIXED = {"do_rescale": True, "do_center_crop": False, "do_pad": False, "do_convert_rgb": True}
"""Official switches that stand one way here: floats in 0..1 are told by their values, only ``size`` shapes pictures."""
_NOTES = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "transformers_version")
"""Keys of hub files that say nothing the settings do not say."""


@dataclass(frozen=True, eq=False)
class PixelSettings:
    """How a picture becomes colours of a palette; names and defaults are transformers' own.

    Attributes:
        clusters: the palette, float64 ``[k, 3]``, in the range that pixels take: -1..1 unless normalised otherwise.
        size: ``{"height": h, "width": w}`` in pixels; may be given as one number, a square's, or as the pair.
        do_resize: pictures are stretched to ``size``; without it they keep their own.
        resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
        rescale_factor: what 0..255 is multiplied by.
        do_normalize, image_mean, image_std: ``(x - mean) / std`` per channel afterwards; one number stands for three.
        do_color_quantize: whether the result is the nearest cluster of each pixel or the values themselves.
        unread: what a file held beside these, kept for the file that is written.

    Raises:
        ConfigError: a value of the wrong type or out of its range; the message states the rule and the value.
    """

    clusters: np.ndarray | None = None
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 256, "width": 256})
    do_resize: bool = True
    resample: int = 2
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    do_color_quantize: bool = True
    unread: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("do_resize", "do_normalize", "do_color_quantize"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        height, width = _sides(self.size)
        checked = {
            "size": {"height": height, "width": width},
            "resample": _resample(self.resample),
            "rescale_factor": _number("rescale_factor", self.rescale_factor),
            "image_mean": _per_channel("image_mean", self.image_mean),
            "image_std": _per_channel("image_std", self.image_std),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.rescale_factor <= 0:
            raise ConfigError(f"rescale_factor must be above 0, got {self.rescale_factor}")
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std ({list(self.image_std)}) must be above 0: pixels are divided by it")
        if self.clusters is not None:
            object.__setattr__(self, "clusters", _clusters(self.clusters, self.levels()))

    @property
    def height(self) -> int:
        """Rows of a picture."""
        return self.size["height"]

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return self.size["width"]

    def levels(self) -> np.ndarray:
        """float32 ``[256, 3]``: what each of 0..255 becomes in each channel, rounded where transformers rounds it."""
        values = (np.arange(256)[:, None] * np.full(3, self.rescale_factor)).astype(np.float32)
        if not self.do_normalize:
            return values
        return (values - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)

    def colours(self) -> np.ndarray:
        """uint8 ``[k, 3]``: the palette as people see it, ``levels`` undone and rounded to the nearest of 0..255."""
        values = self.require_clusters()
        if self.do_normalize:
            values = values * np.array(self.image_std) + np.array(self.image_mean)
        return np.clip(np.rint(values / self.rescale_factor), 0, 255).astype(np.uint8)

    def require_clusters(self) -> np.ndarray:
        """The palette; a ConfigError where there is none."""
        if self.clusters is None:
            raise ConfigError(
                "clusters must hold a palette [k, 3] to turn pixels into tokens or back, and there is none: "
                f"{FILE} brings one, modelwright.processing.fit_clusters makes one from pictures"
            )
        return self.clusters

    def changed(self, **values: Any) -> Self:
        """These settings with others in their place; None changes nothing. A ConfigError names an unknown one."""
        known = _KNOWN
        for name, value in values.items():
            if name in _FIXED:
                if value is not None and value is not _FIXED[name]:
                    raise ConfigError(f"{name} must be {str(_FIXED[name]).lower()} for {KIND}, got {value!r}")
            elif name not in known and value is not None:
                near = meant(name, known)
                raise ConfigError(f"{KIND} has no setting {name!r}{f': did you mean {near}?' if near else ''}")
        return replace(self, **{name: value for name, value in values.items() if name in known and value is not None})

    @classmethod
    def read(cls, folder: str | Path, **overrides: Any) -> Self:
        """The settings in a folder's ``preprocessor_config.json``, with ``overrides`` in their place.

        Keys of the file that are no settings are kept and listed by `fields_without_effect`.

        Raises:
            CheckpointError: there is no such file, or it is not a JSON object.
            ConfigError: it belongs to another processor, or a setting breaks its rule.
        """
        path = Path(folder) / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {FILE}, which says how pictures become tokens") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a JSON object, not a {type(values).__name__}")
        kind = values.get("image_processor_type") or KIND
        if not str(kind).startswith(KIND):
            raise ConfigError(f"{path} describes a {kind}, not an {KIND}")
        read = {name: value for name, value in values.items() if name in (*_KNOWN, *_FIXED)}
        other = {name: value for name, value in values.items() if name not in (*read, *_NOTES)}
        return replace(cls(), unread=other).changed(**read | overrides)

    def fields_without_effect(self) -> dict[str, str]:
        """What the file said beyond the settings, each by name, with the reason that it changes nothing."""
        return without_effect(self.unread, _KNOWN)

    def write(self, folder: str | Path) -> Path:
        """Write the file as transformers writes and reads it, into a folder that is made where it is missing."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        values = dict(self.unread) | {name: getattr(self, name) for name in _KNOWN}
        if self.clusters is not None:
            values["clusters"] = self.clusters.tolist()
        values |= {"do_rescale": True, "image_processor_type": KIND}
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path


_KNOWN = tuple(each.name for each in fields(PixelSettings) if each.name != "unread")


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        sides = (size["height"], size["width"]) if set(size) == {"height", "width"} else ()
    else:
        sides = (size, size) if _is_whole(size) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(_is_whole(n) and n >= 1 for n in sides):
        raise ConfigError(
            f'size must be {{"height": h, "width": w}}, a pair of both or one number for a square, all at least 1; '
            f"got {size!r}"
        )
    height, width = sides
    return int(height), int(width)


def _resample(value: Any) -> int:
    if not _is_whole(value) or value not in set(Image.Resampling):
        known = ", ".join(f"{each.value} ({each.name.lower()})" for each in sorted(Image.Resampling))
        raise ConfigError(f"resample must be one of {known}; got {value!r}")
    return int(value)


def _per_channel(name: str, values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != 3:
        raise ConfigError(f"{name} must be one number or one each for red, green and blue, got {values!r}")
    red, green, blue = (_number(name, value) for value in values)
    return red, green, blue


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"{name} must hold finite numbers, got {value!r}")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _clusters(values: Any, levels: np.ndarray) -> np.ndarray:
    """The palette as float64 that nothing changes any more; ``levels`` [256, 3] bound what a colour may be."""
    try:
        clusters = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"clusters must be numbers of shape [k, 3]: {error}") from error
    if clusters.ndim != 2 or clusters.shape[1] != 3 or not len(clusters):
        raise ConfigError(f"clusters must have shape [k, 3] with at least one colour, got {list(clusters.shape)}")
    low, high = min(-1.0, float(levels.min())), max(1.0, float(levels.max()))  # where normalising is off, -1..1 too
    slack = (high - low) / 255  # a palette may be rounded
    if not (clusters.min() >= low - slack and clusters.max() <= high + slack):
        raise ConfigError(
            f"clusters must lie in {low:g}..{high:g}, as pixels do, got {clusters.min():g}..{clusters.max():g}"
        )
    clusters.setflags(write=False)
    return clusters
