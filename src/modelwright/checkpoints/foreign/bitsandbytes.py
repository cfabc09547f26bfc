"""Matrices as bitsandbytes stores them: integers of 8 bits, or places in a table of 16 numbers, in blocks.

Source: bitsandbytes' ``functional`` (QLoRA, arXiv:2305.14314; LLM.int8(), arXiv:2208.07339).
"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.foreign.parts import Parts, Plain

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
FULL_SCALE = 127


def read_four_bits(parts: Parts) -> Plain:
    """``weight``, two places in ``quant_map`` a byte, the first in its higher half; ``absmax`` scales each block.

    ``absmax`` may be bytes itself, places in ``nested_quant_map`` with blocks and scales of their own. What the state
    says of sizes is JSON in bytes.
    """
    ending = next((each for each in STATES if each in parts.headers), None)
    if ending is None:
        raise parts.wrong("there is no quant_state")
    try:
        state = json.loads(bytes(parts.read(ending).tolist()))
        shape, size = tuple(int(each) for each in state["shape"]), int(state["blocksize"])
    except (ValueError, KeyError, TypeError) as error:
        raise parts.wrong(f"{ending} cannot be read: {error!r}") from error
    count = math.prod(shape)

    def make() -> Tensor:
        stored = parts.read("weight").reshape(-1).contiguous().view(torch.uint8)
        places = torch.stack((stored >> 4, stored & 15), dim=1).flatten()
        scales = _absmax(parts, state)
        if len(places) < count or len(scales) * size < count:
            raise parts.wrong(f"{len(places)} places and {len(scales)} scales of {size} do not fill {list(shape)}")
        table = parts.read("weight.quant_map").to(torch.float32)
        made = table[places[:count].long()]
        return made.mul_(scales.repeat_interleave(size)[:count]).reshape(shape)

    return Plain(shape, make)


def read_eight_bits(parts: Parts) -> Plain:
    """``weight`` ``[out, in]`` in 127ths of ``SCB`` ``[out]``."""
    shape = parts.shape("weight")
    if parts.headers["weight"].dtype != "I8" or parts.shape("SCB", 1) != shape[:1]:
        raise parts.wrong("weight must be int8, and SCB a scale of each row")

    def make() -> Tensor:
        order = parts.find("weight_format")
        if order is not None and int(order) != 0:
            raise parts.wrong(f"weight_format {int(order)} is an order of one GPU's: 0 (by rows) is known")
        return parts.read("weight").to(torch.float32).mul_(parts.read("SCB")[:, None]).mul_(1 / FULL_SCALE)

    return Plain(shape, make)


def _absmax(parts: Parts, state: dict[str, Any]) -> Tensor:
    absmax = parts.read("weight.absmax")
    if "weight.nested_absmax" not in parts.headers:
        return absmax.to(torch.float32)
    table, outer = (parts.read(f"weight.nested_{each}").to(torch.float32) for each in ("quant_map", "absmax"))
    outer = outer.repeat_interleave(int(state["nested_blocksize"]))[: len(absmax)]
    return table[absmax.long()].mul_(outer).add_(float(state.get("nested_offset", 0.0)))
