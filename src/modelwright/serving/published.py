"""How a model's publisher says that it is to be sampled: ``generation_config.json``, as servers read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.configs.limits import SAMPLING

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def published_sampling(folder: Path) -> Mapping[str, Any]:
    """The fields of `SamplingParams` that the folder's ``generation_config.json`` sets.

    A temperature, ``top_p`` and the like hold whether or not ``do_sample`` stands beside them, as in vLLM; a
    ``do_sample`` that is false without any temperature is greedy. What is out of its range is left out, and so is a
    file that transformers filled by itself (``_from_model_config``), of which nobody said anything.
    """
    try:
        said = json.loads((folder / "generation_config.json").read_text("utf-8-sig"))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict) or said.get("_from_model_config"):
        return {}
    found = {name: said[name] for name in _NAMES if _is_number(said.get(name)) and SAMPLING[name].allows(said[name])}
    if said.get("do_sample") is False and "temperature" not in found:
        found["temperature"] = 0.0
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
