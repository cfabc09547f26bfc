"""Random tensors of drawn sizes, of which an example of an operation is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

Compute = Callable[[], Tensor]


@dataclass(frozen=True)
class Draw:
    """Random numbers and sizes, the type and device of the operation; without ``sizes`` those of a small decode."""

    numbers: torch.Generator
    dtype: torch.dtype
    device: torch.device
    sizes: torch.Generator | None

    @classmethod
    def typical(cls, dtype: torch.dtype, device: torch.device) -> Self:
        """The first of the sizes that each example names."""
        return cls(torch.Generator().manual_seed(0), dtype, device, None)

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype, device: torch.device) -> Self:
        """Any of the sizes."""
        sizes = torch.Generator().manual_seed(seed + 1)
        return cls(torch.Generator().manual_seed(seed), dtype, device, sizes)

    def one_of(self, *sizes: int) -> int:
        """One of some sizes, of which the first is the typical one."""
        return sizes[0 if self.sizes is None else int(torch.randint(len(sizes), (), generator=self.sizes))]

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers of the draw's type, on the CPU."""
        return (torch.randn(shape, generator=self.numbers) * scale).to(self.dtype)

    def choices(self, tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Different experts of each token and their weights, ``[tokens, top_k]``."""
        chosen = torch.rand(tokens, experts, generator=self.numbers).argsort(dim=-1)[:, :top_k]
        return chosen, torch.rand(tokens, top_k, generator=self.numbers)

    def here(self, x: Tensor) -> Tensor:
        """The tensor on the draw's device."""
        return x.to(self.device)


Example = Callable[[Draw], tuple[Compute, Compute]]
"""The operation on the draw's device and in its type, and the reference, on the CPU and in fp32."""
