"""Bringing the products of a weight in int4 nearer to those of the given one: scales for its steps, steps for those.

What is lowered is ``e H e^T`` of each row's error e, with the Hessian H of GPTQ and its damping. Given the steps it is
a quadratic of the scales and offsets, whose least place is found at once. Given those, the steps are gone through one
input after the other, each taking the step that is best while all others stay (coordinate descent, as in QuantEase,
Behdin et al., arXiv:2309.01885). No row is left with a larger error than it came with.
"""

import torch
from torch import Tensor

from modelwright.ops.gptq import COLUMNS, DAMPING
from modelwright.ops.weight_only import Int4Weight, dequantise, int4_of, rounded_to, unpack_steps

TURNS = 3
"""How often scales are fitted; between two fits the steps are gone through once."""
STIFFNESS = 1e-3
"""What is added to the diagonal of a fit's equations, as a share of it: two steps of a group may be too alike."""
AT_ONCE = 1 << 22
"""Numbers of the fits' equations that are held at once."""


def refine(weight: Tensor, hessian: Tensor, rounded: Int4Weight) -> Int4Weight:
    """A weight ``[out, in]`` in int4, in the same format, whose products are nearer to those of the given one.

    Args:
        hessian: fp32 ``[in, in]``, the sum of ``x x^T`` over the inputs x.
        rounded: the weight as :func:`modelwright.ops.gptq.gptq` has rounded it.
    """
    damped = _damped(hessian)
    best, least = rounded, _errors(weight, damped, rounded)
    for turn in range(TURNS):
        found = _stepped(weight, damped, best) if turn else best
        found = _fitted(weight, damped, found)
        errors = _errors(weight, damped, found)
        better = errors < least
        best, least = _rows_of(better, found, best), torch.where(better, errors, least)
    return best


def _damped(hessian: Tensor) -> Tensor:
    """The Hessian with GPTQ's damping, of a mean diagonal of 1."""
    sizes = hessian.diagonal()
    mean = sizes.mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = hessian / mean
    damped.diagonal().add_(DAMPING)
    return damped


def _errors(weight: Tensor, hessian: Tensor, rounded: Int4Weight) -> Tensor:
    """``e H e^T`` of each row, ``[out]``."""
    rest = weight.float() - dequantise(rounded)
    return ((rest @ hessian) * rest).sum(dim=-1)


def _rows_of(chosen: Tensor, first: Int4Weight, second: Int4Weight) -> Int4Weight:
    """The rows of ``first`` that are ``chosen``, the others of ``second``."""
    rows = chosen[:, None]
    offsets = None
    if first.offsets is not None and second.offsets is not None:
        offsets = torch.where(rows, first.offsets, second.offsets)
    return Int4Weight(
        torch.where(rows, first.steps, second.steps), torch.where(rows, first.scales, second.scales), offsets
    )


def _stepped(weight: Tensor, hessian: Tensor, rounded: Int4Weight) -> Int4Weight:
    """Each input's step the best one, the other inputs' being what they then are; the largest inputs first."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    groups = (order // rounded.group).tolist()
    values = dequantise(rounded)
    steps = unpack_steps(rounded.steps)
    pull = (weight.float() - values) @ hessian  # [out, in]: what a change of each input's value would mend
    for first in range(0, len(order), COLUMNS):
        some = order[first : first + COLUMNS]
        between, own = hessian[some][:, some], pull[:, some]
        changes = torch.empty_like(own)
        for i, column in enumerate(some.tolist()):
            scale = rounded.scales[:, groups[first + i]]
            shift = None if rounded.offsets is None else rounded.offsets[:, groups[first + i]]
            wanted = values[:, column] + own[:, i] / between[i, i]
            steps[:, column], value = rounded_to(wanted, scale, shift)
            changes[:, i] = value - values[:, column]
            own -= changes[:, i, None] * between[i]
        pull -= changes @ hessian[some]
    return int4_of(steps, rounded.scales, rounded.offsets)


def _fitted(weight: Tensor, hessian: Tensor, rounded: Int4Weight) -> Int4Weight:
    """The same steps with the scales and offsets, bf16, that suit each row best."""
    old = rounded.scales if rounded.offsets is None else torch.cat((rounded.scales, rounded.offsets), dim=-1)
    rest = weight.float() - dequantise(rounded)
    steps = unpack_steps(rounded.steps).float() - 8
    some = max(1, AT_ONCE // old.shape[-1] ** 2)
    changes = [
        _best_change(own, of, hessian, old.shape[-1], rounded.group)
        for own, of in zip(rest.split(some), steps.split(some), strict=True)
    ]
    new = (old.float() + torch.cat(changes)).bfloat16()
    if rounded.offsets is None:
        return Int4Weight(rounded.steps, new)
    scales, offsets = new.chunk(2, dim=-1)
    return Int4Weight(rounded.steps, scales.contiguous(), offsets.contiguous())


def _best_change(rest: Tensor, steps: Tensor, hessian: Tensor, unknowns: int, group: int) -> Tensor:
    """How scales, and then offsets, are to change so that as little as possible stays of ``rest`` ``[rows, in]``.

    A row's error is ``rest - B c`` with the changes c ``[unknowns]`` and B ``[in, unknowns]``, whose columns hold the
    steps of one group each, and then the ones: ``(B^T H B) c = B^T H rest``.
    """
    rows, groups = len(rest), rest.shape[-1] // group
    apart = steps.unflatten(-1, (groups, group))
    pull = rest @ hessian

    def summed(x: Tensor) -> Tensor:
        return x.unflatten(-1, (groups, group)).sum(dim=-1)

    sides, wanted = rest.new_empty(rows, unknowns, unknowns), [summed(pull * steps)]
    for g in range(groups):
        sides[:, g, :groups] = summed((apart[:, g] @ hessian[g * group : (g + 1) * group]) * steps)
    if unknowns > groups:
        by_group = summed(hessian).unflatten(0, (groups, group))  # [groups, group, groups]
        across = torch.einsum("rgi,gik->rgk", apart, by_group)
        sides[:, :groups, groups:], sides[:, groups:, :groups] = across, across.transpose(1, 2)
        sides[:, groups:, groups:] = by_group.sum(dim=1)
        wanted.append(summed(pull))
    wide = sides.double()
    diagonal = wide.diagonal(dim1=1, dim2=2)
    diagonal += STIFFNESS * diagonal + torch.finfo(torch.float32).tiny
    factors, failed = torch.linalg.cholesky_ex(wide)
    found = torch.cholesky_solve(torch.cat(wanted, dim=-1).double()[..., None], factors)[..., 0]
    return torch.where((failed == 0)[:, None], found, 0.0).float()
