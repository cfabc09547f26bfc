"""Matrices as packed integers in groups of inputs: GPTQ's, AWQ's, AutoRound's and MLX's files.

Sources: AutoGPTQ and GPTQModel (``qlinear``), AutoAWQ (``utils/packing_utils``), AutoRound, MLX (``mx.quantize``).
"""

import math

import torch

from modelwright.checkpoints.foreign.packed import PACKED, numbers, unpack
from modelwright.checkpoints.foreign.parts import Parts, Plain

AWQ_COLUMNS = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which of the eight integers in a word is the first output's, the second's, ..."""


def read_gptq(parts: Parts) -> Plain:
    """``qweight`` ``[in * bits / 32, out]``, ``qzeros`` ``[groups, out * bits / 32]``, ``scales`` ``[groups, out]``.

    Zeros are stored less one, unless the section's ``checkpoint_format`` is ``gptq_v2``; ``g_idx`` ``[in]`` says the
    group of each input.
    """
    form = parts.section.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise parts.wrong(f'checkpoint_format "{form}" is not known: gptq and gptq_v2 are')
    groups, out = parts.shape("scales")
    bits = _bits(parts, parts.shape("qzeros")[1], out)
    inputs = parts.shape("qweight")[0] * 32 // bits
    if "g_idx" in parts.headers:
        inputs = min(inputs, *parts.shape("g_idx", 1))
    if parts.shape("qzeros")[0] != groups or parts.shape("qweight")[1] != out or groups > inputs:
        raise parts.wrong("qweight, qzeros and scales are of other sizes than each other")
    size = _group(parts, inputs, groups)

    def make() -> torch.Tensor:
        steps = unpack(parts.read("qweight").t().contiguous(), bits, inputs)
        zeros = unpack(parts.read("qzeros"), bits, out).to(torch.int16).t() + (form == "gptq")
        own = parts.find("g_idx")
        group_of = torch.arange(inputs) // size if own is None else own.long()
        return numbers(steps, parts.read("scales").t(), zeros, group_of)

    return Plain((out, inputs), make)


def read_awq(parts: Parts) -> Plain:
    """``qweight`` ``[in, out / 8]``, ``qzeros`` ``[groups, out / 8]``, ``scales`` ``[groups, out]``, four bits each."""
    form = str(parts.section.get("version") or "gemm").lower()
    if form != "gemm":
        raise parts.wrong(f'AWQ of version "{form}" is stored in an order that is not known: gemm is')
    groups, out = parts.shape("scales")
    inputs, words = parts.shape("qweight")
    if words * 8 != out or parts.shape("qzeros") != (groups, words) or inputs % groups:
        raise parts.wrong("qweight, qzeros and scales are of other sizes than each other")

    def make() -> torch.Tensor:
        steps, zeros = (
            unpack(parts.read(each), 4, out).unflatten(1, (-1, 8))[..., AWQ_COLUMNS].flatten(1).t()
            for each in ("qweight", "qzeros")
        )
        return numbers(steps.contiguous(), parts.read("scales").t(), zeros)

    return Plain((out, inputs), make)


def read_autoround(parts: Parts) -> Plain:
    """What AutoRound stored in GPTQ's or AWQ's order, as the section's ``packing_format`` says."""
    form = parts.section.get("packing_format") or "auto_round:auto_gptq"
    if form not in _AUTOROUND:
        raise parts.wrong(f'packing_format "{form}" is not known: {", ".join(_AUTOROUND)} are')
    return _AUTOROUND[form](parts)


def read_mlx(parts: Parts) -> Plain:
    """``weight`` ``[out, in * bits / 32]`` of whole words; ``scales`` and ``biases`` ``[out, groups]`` are added."""
    own = parts.section.get(parts.name.removesuffix(".weight"))
    said = own if isinstance(own, dict) else parts.section
    if (mode := said.get("mode") or "affine") != "affine":
        raise parts.wrong(f'MLX\'s mode "{mode}" is not known: affine is')
    out, groups = parts.shape("scales")
    inputs = groups * _size(parts, said.get("group_size", 64))
    bits = _bits(parts, parts.shape("weight")[1], inputs)
    if parts.shape("weight")[0] != out or parts.shape("biases") != (out, groups):
        raise parts.wrong("weight, scales and biases are of other sizes than each other")

    def make() -> torch.Tensor:
        steps = unpack(parts.read("weight"), bits, inputs)
        scales, biases = (parts.read(each).to(torch.float32) for each in ("scales", "biases"))
        made = steps.to(torch.float32).unflatten(1, (groups, -1))
        return made.mul_(scales[..., None]).add_(biases[..., None]).flatten(1)

    return Plain((out, inputs), make)


_AUTOROUND = {"auto_round:auto_gptq": read_gptq, "auto_round:auto_awq": read_awq}


def _bits(parts: Parts, words: int, count: int) -> int:
    """Bits of each of ``count`` integers in so many words."""
    bits = words * 32 // count
    if bits not in PACKED or math.ceil(count * bits / 32) > words:
        raise parts.wrong(f"{words} words for {count} integers are no number of bits that is known: {PACKED} are")
    return bits


def _group(parts: Parts, inputs: int, groups: int) -> int:
    """Inputs of a group, of which the last may be smaller."""
    said = parts.section.get("group_size")
    size = said if isinstance(said, int) and said > 0 else inputs
    return size if math.ceil(inputs / size) == groups else math.ceil(inputs / groups)


def _size(parts: Parts, size: object) -> int:
    if not isinstance(size, int) or size <= 0:
        raise parts.wrong(f"group_size must be a positive number, got {size!r:.40}")
    return size
