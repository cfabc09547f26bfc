"""A Llama's sampling fields as a Hugging Face folder's ``generation_config.json``, and back; nothing is sampled."""

import copy
import json
from pathlib import Path
from typing import Any

from modelwright.checkpoints.dialect import GENERATION_FILE
from modelwright.checkpoints.source import read_json
from modelwright.families.llama.config import LlamaConfig

SAMPLING_ONLY = ("top_k", "top_p")
"""Keys that transformers refuses beside ``do_sample: false``."""
FIELDS = {
    "do_sample": "do_sample",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "max_length": "max_decode_length",
}
"""transformers' name of a setting to the config's field."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Settings that both files hold; the config's own, which the model reads too, count."""
NOTES = ("transformers_version", "_from_model_config")


def write_generation(folder: Path, config: LlamaConfig) -> None:
    """Write the config's sampling fields for transformers' ``generate``."""
    values = {name: getattr(config, field) for name, field in FIELDS.items()}
    values |= {name: getattr(config, name) for name in TOKENS}
    settings = {
        name: value
        for name, value in values.items()
        if value is not None and (config.do_sample or name not in SAMPLING_ONLY)
    }
    (folder / GENERATION_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def with_generation(config: LlamaConfig, folder: Path) -> LlamaConfig:
    """A copy of the config whose sampling fields are what the folder's file says, where it has one."""
    config, said = copy.deepcopy(config), _read(folder)
    for name, field in FIELDS.items():
        if said.get(name) is not None:
            setattr(config, field, said[name])
    config.check()
    return config


def unsaid(config: LlamaConfig, folder: Path) -> list[str]:
    """The keys of the folder's file whose values a config has no field for, or another value in it."""
    said = _read(folder)
    known = FIELDS.keys() | set(NOTES) | {name for name in TOKENS if said.get(name) == getattr(config, name)}
    return sorted(name for name in said if name not in known)


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / GENERATION_FILE) if (folder / GENERATION_FILE).is_file() else {}
