"""How a model's publisher says that it is to be sampled: ``generation_config.json``, as servers read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.configs.limits import SAMPLING
from modelwright.engine.generation_config import NOT_SERVED

_OF_A_REQUEST: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "num_return_sequences": (1,),
    "stop_strings": (),
    "suppress_tokens": (),
    "bad_words_ids": (),
}
"""Settings that a request may ask for here and a file may not, with the values that change nothing."""
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def published_sampling(folder: Path) -> Mapping[str, Any]:
    """The fields of `SamplingParams` that the folder's ``generation_config.json`` sets.

    A temperature, ``top_p`` and the like hold whether or not ``do_sample`` stands beside them, as in vLLM; a
    ``do_sample`` that is false without any temperature is greedy. What is out of its range is left out, and so is a
    file that transformers filled by itself (``_from_model_config``), of which nobody said anything.
    """
    said = _said(folder)
    found = {name: said[name] for name in _NAMES if _is_number(said.get(name)) and SAMPLING[name].allows(said[name])}
    if said.get("do_sample") is False and "temperature" not in found:
        found["temperature"] = 0.0
    return found


def left_out(folder: Path) -> tuple[str, ...]:
    """What else the file sets that would change which tokens are drawn, and how many: a server draws without it."""
    said = _said(folder)
    idle = NOT_SERVED | _OF_A_REQUEST
    return tuple(name for name in idle if said.get(name) not in (None, [], {}, *idle[name]))


def _said(folder: Path) -> Mapping[str, Any]:
    """What somebody said in the file."""
    try:
        said = json.loads((folder / "generation_config.json").read_text("utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) and not said.get("_from_model_config") else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
