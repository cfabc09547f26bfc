"""What makes prompts for a DeepSeek-VL2: as its processor does, without the class that transformers knows."""

import json
from pathlib import Path

from modelwright.errors import CheckpointError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.processing.tiled_prompts import TiledPrompts, TiledPromptSettings
from modelwright.processing.tokenizer import require_tokenizer

SETTINGS = "processor_config.json"


def read_prompts(folder: Path, config: DeepseekVLV2Config) -> TiledPrompts:
    """The maker of prompts that the processor in a folder has, told what official files say in ``config.json`` only.

    Raises:
        CheckpointError: the folder lacks a file, or one is damaged.
        ConfigError: a setting that breaks its rule.
    """
    require_files(folder)
    try:
        values = json.loads((folder / SETTINGS).read_text("utf-8-sig"))
    except ValueError as error:
        raise CheckpointError(f"{folder} holds no processor that can be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / SETTINGS} must hold a JSON object, and holds a {type(values).__name__}")
    told = {"tile_tag": config.tile_tag, "global_view_pos": config.global_view_pos}
    return TiledPrompts.read(folder, TiledPromptSettings.of_file(values, **told))


def require_files(folder: Path) -> None:
    """Raise a CheckpointError where a folder lacks a tokenizer or the processor's settings."""
    require_tokenizer(folder)
    if not (folder / SETTINGS).is_file():
        raise CheckpointError(f"{folder} has no {SETTINGS}, which says how pictures are cut into tiles")
