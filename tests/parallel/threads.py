"""Ranks as threads of this process, which show what slicing does without starting any; `processes` has real ones."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError
from typing import Any

import torch
from torch import Tensor

from modelwright.parallel import Mesh


@dataclass
class _Table:
    """Where the ranks lay what they have, one place each."""

    barrier: Barrier
    places: list[Any] = field(default_factory=list)
    failures: Barrier | None = None

    def exchange(self, rank: int, own: Any) -> list[Any]:
        self.places[rank] = own
        self.barrier.wait()
        found = list(self.places)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class ThreadMesh(Mesh):
    """A mesh whose ranks are threads; sums are taken in the ranks' order."""

    table: Any = field(default=None, compare=False, repr=False)

    def all_failed(self) -> bool:
        try:
            self.table.failures.wait()
        except BrokenBarrierError:
            return False
        return True

    def sum(self, own: Tensor) -> Tensor:
        return torch.stack(self.table.exchange(self.rank, own)).sum(dim=0)

    def concatenate(self, own: Tensor) -> Tensor:
        return torch.cat(self.table.exchange(self.rank, own), dim=-1)

    def least(self, number: int) -> int:
        return min(self.table.exchange(self.rank, number))

    def tell(self, order: Any) -> None:
        self.table.exchange(self.rank, pickle.dumps(order))

    def hear(self) -> Any:
        return pickle.loads(self.table.exchange(self.rank, None)[0])


def in_ranks(size: int, work: Callable[[Mesh], Any]) -> list[Any]:
    """What `work` returns in each rank; the first error is raised."""
    table = _Table(Barrier(size, timeout=600), [None] * size, Barrier(size, timeout=1))

    def of(rank: int) -> Any:
        try:
            with torch.no_grad():
                return work(ThreadMesh(rank, size, table=table))
        except BaseException:
            table.barrier.abort()  # the others wait for nobody
            raise

    with ThreadPoolExecutor(size) as pool:
        ends = [pool.submit(of, rank) for rank in range(size)]
    errors = [error for end in ends if (error := end.exception()) is not None]
    if errors:
        raise next((error for error in errors if isinstance(error, ValueError)), errors[0])
    return [end.result() for end in ends]
