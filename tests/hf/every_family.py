"""A tiny model of each family, and tokens that it takes, for what holds of all of them alike."""

from typing import Any

from torch import Tensor

from tests.fakes import tiny_v2, tiny_vl2, tokens
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import tiny_llama

FAMILIES = {"deepseek_v2": tiny_v2, "deepseek_vl2": tiny_vl2, "llama": tiny_llama, "imagegpt": tiny_imagegpt}


def ids_for(model: Any, rows: int, length: int) -> Tensor:
    """int64 ``[rows, length]``."""
    return (colours if model.config.model_type == "imagegpt" else tokens)(rows, length)
