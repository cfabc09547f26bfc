"""Gradients of a whole step: where they are summed, their norm in fp32, whole and by part, and clipping."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from modelwright.training.optimizers import Steered


def fill_missing(steered: Iterable[Steered]) -> None:
    """What a step did not touch has a gradient of zero, so that every rank of a run steps the same parameters."""
    for each in steered:
        if each.weight.grad is None:
            each.weight.grad = torch.zeros_like(each.weight)


@torch.no_grad()
def norms_of(steered: Iterable[Steered]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The norm of the whole gradient and those of each part, in fp32."""
    parts: dict[str, list[Tensor]] = {}
    for each in steered:
        assert each.weight.grad is not None
        parts.setdefault(each.part, []).append(each.weight.grad)
    squares = {
        part: torch.stack([norm.float() for norm in torch._foreach_norm(found)]).square().sum()  # pyright: ignore[reportPrivateImportUsage]
        for part, found in parts.items()
    }
    return torch.stack(list(squares.values())).sum().sqrt(), {part: each.sqrt() for part, each in squares.items()}


@torch.no_grad()
def scale(steered: Iterable[Steered], factor: float) -> None:
    """Multiply every gradient."""
    if factor != 1.0:
        gradients: list[Any] = [each.weight.grad for each in steered]
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


def clipping(norm: float, most: float | None) -> float:
    """What gradients of this ``norm`` are multiplied by so that it is ``most`` at most; torch's rule."""
    return 1.0 if most is None else min(1.0, most / (norm + 1e-6))
