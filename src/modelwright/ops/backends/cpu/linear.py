"""Linear layers and chosen experts over few and several rows by the compiled kernels: the checks and the pointers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import available, call
from modelwright.ops.backends.cpu.layouts import EXPERT_ROWS, LAYER, LINEAR_ROWS, WEIGHT, Unit, WeightKind
from modelwright.ops.backends.cpu.unit import unit
from modelwright.ops.weight_only import Int4Weight, Int8Weight

INPUTS = (torch.float32, torch.bfloat16)
Weight = Tensor | Int8Weight | Int4Weight
_PLAIN, _INT8, _INT4 = map(int, WeightKind)  # a member of an enumeration takes a quarter of a microsecond to find


def serves_linear(x: Tensor, *weights: Weight) -> bool:
    """Whether the kernels take ``x`` and these weights: on the CPU, contiguous, of known types."""
    return x.is_cpu and x.dtype in INPUTS and all(_fits(x, weight) for weight in weights) and available()


def _fits(x: Tensor, weight: Weight) -> bool:
    if isinstance(weight, Tensor):
        return weight.dtype == x.dtype and weight.device == x.device and weight.is_contiguous()
    return weight.steps.device == x.device and weight.steps.is_contiguous() and weight.scales.is_contiguous()


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, by: Unit | None = None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``; the weight is read once.

    Sums are taken in fp32. Integers that meet more than few rows (:class:`Unit`) of bf16 are rounded to bf16 as by
    :func:`modelwright.ops.weight_only.dequantise`. ``by`` is one of this machine's units; None is the best.

    Raises:
        ValueError: the widths differ.
    """
    return linears(x, [(weight, bias)], by)[0]


def linears(x: Tensor, layers: Sequence[tuple[Weight, Tensor | None]], by: Unit | None = None) -> list[Tensor]:
    """:func:`linear` for several ``(weight, bias)`` that read the same ``x``, in one call that shares out all rows.

    Raises:
        ValueError: the widths differ.
    """
    for weight, _ in layers:
        _check(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    biases = [None if bias is None else bias.to(x.dtype).contiguous() for _, bias in layers]
    outs = [x.new_empty(*x.shape[:-1], _rows(weight)) for weight, _ in layers]
    pack = LAYER.pack
    packed = (
        pack(*_pointers(weight), _rows(weight), 0 if bias is None else bias.data_ptr(), out.data_ptr())
        for (weight, _), bias, out in zip(layers, biases, outs, strict=True)
    )
    call(
        LINEAR_ROWS,
        b"".join(packed),
        len(outs),
        x.dtype == torch.bfloat16,
        rows.data_ptr(),
        rows.stride(0),
        len(rows),
        unit() if by is None else by,
        torch.get_num_threads(),
    )
    return outs


def serves_experts(x: Tensor, w_in: Weight, w_out: Weight) -> bool:
    """:func:`serves_linear` for both weights, which are to be stored alike."""
    return type(w_in) is type(w_out) and serves_linear(x, w_in, w_out)


def experts(x: Tensor, chosen: Tensor, weights: Tensor, w_in: Weight, w_out: Weight, by: Unit | None = None) -> Tensor:
    """The gated feed-forward (SiLU) of each token's chosen experts; only theirs are read, and each once.

    x ``[tokens, dim]``, chosen and weights ``[tokens, top_k]``, w_in ``[experts, 2 * width, dim]`` (gate rows, then up
    rows), w_out ``[experts, dim, width]`` -> ``[tokens, dim]``; see :func:`modelwright.ops.experts.looped_experts`.
    Each expert multiplies its tokens as :func:`linear` does.
    """
    x, chosen = x.contiguous(), chosen.to(torch.int64).contiguous()
    weights = weights.to(torch.float32).contiguous()
    _check(x, w_in)
    out = torch.empty_like(x)
    call(
        EXPERT_ROWS,
        WEIGHT.pack(*_pointers(w_in)),
        WEIGHT.pack(*_pointers(w_out)),
        _rows(w_in) // 2,
        x.dtype == torch.bfloat16,
        x.data_ptr(),
        len(x),
        chosen.shape[1],
        chosen.data_ptr(),
        weights.data_ptr(),
        out.data_ptr(),
        unit() if by is None else by,
        torch.get_num_threads(),
    )
    return out


def _rows(weight: Weight) -> int:
    return (weight if isinstance(weight, Tensor) else weight.steps).shape[-2]


def _check(x: Tensor, weight: Weight) -> None:
    """Pointers carry no sizes, so that what does not fit is refused before."""
    inputs = _pointers(weight)[1]
    if x.shape[-1] != inputs:
        raise ValueError(f"the width of x ({x.shape[-1]}) must be the inputs of the weight ({inputs})")


def _pointers(weight: Weight) -> tuple[int, ...]:
    """What :data:`WEIGHT` packs."""
    if isinstance(weight, Tensor):
        return _PLAIN, weight.shape[-1], 0, weight.data_ptr(), 0, 0
    steps, scales = weight.steps, weight.scales
    if isinstance(weight, Int8Weight):
        return _INT8, steps.shape[-1], 0, steps.data_ptr(), scales.data_ptr(), 0
    offsets = 0 if weight.offsets is None else weight.offsets.data_ptr()
    return _INT4, 2 * steps.shape[-1], weight.group, steps.data_ptr(), scales.data_ptr(), offsets
