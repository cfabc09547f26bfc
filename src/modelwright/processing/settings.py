"""The rules the settings of the DeepSeek-VL2 processor must keep; what they mean is said in `deepseek_vl2`."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelwright.errors import ConfigError
from modelwright.processing.chat import chat_format
from modelwright.processing.file_keys import NOTES, meant


def refuse_unknown(settings: Mapping[str, Any], known: Sequence[str]) -> None:
    """A ConfigError for a setting that a person typed and that does not exist, with the nearest one that does."""
    for name in settings:
        if name not in NOTES:
            near = meant(name, known)
            hint = f": did you mean {near}?" if near else ""
            raise ConfigError(f"DeepseekVLV2Processor has no setting {name!r}{hint}")


def check_settings(
    *,
    candidate_resolutions: Sequence[Sequence[int]],
    patch_size: int,
    downsample_ratio: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    sft_format: str,
    tile_tag: str,
    global_view_pos: str,
) -> None:
    """A ConfigError names the first rule that is broken and the values that break it."""
    chat_format(sft_format)
    side = candidate_resolutions[0][0] if len(candidate_resolutions) else 0
    if patch_size < 1 or downsample_ratio < 1 or side < patch_size:
        raise ConfigError(
            f"the tile of {side} pixels (candidate_resolutions[0]) must hold at least one patch of patch_size "
            f"({patch_size}) pixels, and downsample_ratio ({downsample_ratio}) must be positive"
        )
    for resolution in candidate_resolutions:
        if len(resolution) != 2 or any(length < side or length % side for length in resolution):
            raise ConfigError(
                f"candidate_resolutions holds {list(resolution)}: both sides must be multiples of the tile ({side})"
            )
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != 3:
            raise ConfigError(f"{name} ({list(values)}) must have 3 values, one each for red, green and blue")
    if 0 in image_std:
        raise ConfigError(f"image_std ({list(image_std)}) must not hold 0: pixels are divided by it")
    for name, value, allowed in (
        ("tile_tag", tile_tag, ("2D", "1D")),
        ("global_view_pos", global_view_pos, ("head", "tail")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} ({value!r}) must be one of {', '.join(allowed)}")
