"""Whether each row of a result is to have the same bits whatever rows are computed beside it.

Usually not: kernels are chosen by the number of rows, and cut sums differently. Within :func:`invariant_rows` an
operation takes each row's sums in one order: by a kernel whose rows do not depend on each other, else row by row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_ASKED: ContextVar[bool] = ContextVar("invariant_rows", default=False)


@contextmanager
def invariant_rows() -> Iterator[None]:
    """Ask for it, as autocast is asked for, in this context and for its end."""
    before = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(before)


def rows_are_invariant() -> bool:
    """Whether it is asked for; never in a graph that torch compiles or exports, where kernels are its own."""
    return not torch.compiler.is_compiling() and _ASKED.get()


def row_wise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of each number of ``x`` ``[..., width]``, which torch computes by vectors and, at ends, without."""
    if not rows_are_invariant():
        return function(x)
    return one_by_one(function, x.reshape(-1, x.shape[-1])).view(x.shape)


def one_by_one(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``function`` of rows ``[n, ...]``, of one or several tensors, a row at a time: each call has one shape."""
    if len(rows[0]) == 0:
        return function(*rows)
    return torch.cat([function(*(part[i : i + 1].clone() for part in rows)) for i in range(len(rows[0]))])
