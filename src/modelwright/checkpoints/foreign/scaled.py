"""Matrices as small floats or integers with scales: DeepSeek's fp8, compressed-tensors', FBGEMM's and modelopt's files.

Sources: transformers' ``FineGrainedFP8``, compressed-tensors (``compressors``), modelopt's export. Scales of
activations are passed over: rows are multiplied as they are.
"""

from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.foreign.packed import numbers, unpack
from modelwright.checkpoints.foreign.parts import Parts, Plain

OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "activation_scale", "output_scale")
OF_CACHES = ("k_scale", "v_scale", "q_scale")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The floats of four bits, of which the highest is the sign (OCP Microscaling Formats 1.0)."""
BLOCK = (128, 128)
WHOLE = ("F8_E4M3", "F8_E5M2", "I8")
"""Types of a number of its own, by safetensors' names."""


def read_scaled(parts: Parts) -> Plain:
    """``weight`` ``[out, in]`` times its scales: one, one of each row, of groups of a row's inputs, or of blocks."""
    kind = parts.headers["weight"].dtype if "weight" in parts.headers else None
    if kind == "U8":
        return _floats_of_four_bits(parts, "weight")
    out, inputs = parts.shape("weight")
    if kind not in WHOLE:
        raise parts.wrong(f"weight is stored as {kind}; {', '.join(WHOLE)} are known")
    block = _block(parts.section)
    ending = next(each for each in ("weight_scale_inv", "weight_scale") if each in parts.headers)

    def make() -> Tensor:
        made = parts.read("weight").to(torch.float32)
        zeros = parts.find("weight_zero_point")
        if zeros is not None:
            made -= _spread(parts, zeros.to(torch.float32), (out, inputs), block)
        return made.mul_(_spread(parts, _factors(parts.read(ending)), (out, inputs), block))

    return Plain((out, inputs), make)


def read_packed(parts: Parts) -> Plain:
    """compressed-tensors' ``weight_packed``: integers in words of 32 bits, or two floats of four bits in each byte.

    Of integers ``weight_shape`` says the size, and half of their range is subtracted; ``weight_zero_point`` is packed
    along the outputs. ``weight_g_idx`` says the group of each input.
    """
    if "weight_packed" in parts.headers and parts.headers["weight_packed"].dtype == "U8":
        return _floats_of_four_bits(parts, "weight_packed")
    parts.shape("weight_shape", 1)
    out, inputs = (int(each) for each in parts.read("weight_shape"))
    words = parts.shape("weight_packed")[1]
    known = [bits for bits in (2, 4, 8) if -(-inputs * bits // 32) == words]
    groups = parts.shape("weight_scale")[1]
    if not known or parts.shape("weight_packed")[0] != out or parts.shape("weight_scale")[0] != out:
        raise parts.wrong(f"weight_packed of {words} words for {inputs} inputs; integers of 2, 4 and 8 bits are known")
    if "weight_g_idx" not in parts.headers and inputs % groups:
        raise parts.wrong(f"{groups} groups do not divide {inputs} inputs")
    bits = known[0]

    def make() -> Tensor:
        steps = unpack(parts.read("weight_packed"), bits, inputs)
        packed = parts.find("weight_zero_point")
        zeros = torch.full((out, groups), 1 << bits - 1)  # the lowest integer is stored as 0
        if packed is not None:
            zeros = unpack(packed.t().contiguous(), bits, out).t()
        group_of = parts.find("weight_g_idx")
        return numbers(steps, parts.read("weight_scale"), zeros, None if group_of is None else group_of.long())

    return Plain((out, inputs), make)


def _floats_of_four_bits(parts: Parts, ending: str) -> Plain:
    """``[out, in / 2]``, the first of two in the lower half; scales of 16 or 32 inputs, and perhaps one of all.

    ``weight_scale_2`` multiplies (modelopt), and by ``weight_global_scale`` is divided (compressed-tensors).
    """
    out, half = parts.shape(ending)
    groups = parts.shape("weight_scale")[1]
    if parts.shape("weight_scale")[0] != out or half * 2 % groups:
        raise parts.wrong(f"{ending} and weight_scale are of other sizes than each other")

    def make() -> Tensor:
        places = unpack(parts.read(ending), 4, 2 * half).long()
        scales = _factors(parts.read("weight_scale"))
        more, less = parts.find("weight_scale_2"), parts.find("weight_global_scale")
        if less is not None:
            scales = scales / less.to(torch.float32)
        if more is not None:
            scales = scales * more.to(torch.float32)
        values = torch.tensor([*E2M1, *(-each for each in E2M1)])
        return numbers(values[places], scales, None)

    return Plain((out, 2 * half), make)


def _factors(scales: Tensor) -> Tensor:
    """Scales in fp32; bytes are exponents of two (E8M0)."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.to(torch.float32) - 127)
    return scales.to(torch.float32)


def _spread(parts: Parts, scales: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """What each number of a matrix is multiplied by, or a tensor that broadcasts to that."""
    out, inputs = shape
    if scales.numel() == 1:
        return scales.reshape(1, 1)
    if scales.shape == (out,):
        return scales[:, None]
    if scales.dim() == 2 and scales.shape[0] == out and inputs % scales.shape[1] == 0:
        return scales.repeat_interleave(inputs // scales.shape[1], dim=1)
    tall, wide = block
    if scales.shape != (-(-out // tall), -(-inputs // wide)):
        raise parts.wrong(
            f"scales of shape {list(scales.shape)} fit neither {[out, inputs]} nor its blocks of {list(block)}"
        )
    return scales.repeat_interleave(tall, 0)[:out].repeat_interleave(wide, 1)[:, :inputs]


def _block(section: Any) -> tuple[int, int]:
    """Rows and columns of a block, as DeepSeek's or a group of compressed-tensors' says."""
    groups = section.get("config_groups") or {}
    said = [section.get("weight_block_size")]
    said += [((group or {}).get("weights") or {}).get("block_structure") for group in groups.values()]
    tall, wide = next((each for each in said if each), BLOCK)
    return int(tall), int(wide)
