"""The ranks that share a model: how they meet and part, and what they say to each other; slicing is elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from modelwright.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells the processes that it starts."""
PATIENCE = timedelta(days=365)
"""How long a rank waits for the others: a session may lie idle for long, and one that died is noticed at once."""


AGREEMENT = timedelta(seconds=10)
"""How long a rank whose pass raised waits for the others to say that theirs did too."""


class RankLost(RuntimeError):
    """The ranks cannot go on together: one of them ended, or failed in the middle of a pass."""


@dataclass(frozen=True)
class Mesh:
    """One rank's view of all of them; every method but `share` is called by all ranks together.

    Attributes:
        rank: this one's number; 0 is the one that serves.
        size: how many there are. A mesh of one talks to nobody; a larger one is the whole process group, which it does
            not hold: whoever destroys the group is rid of it.
        failures: the same ranks, for talk of passes that raised; None where nobody can talk of them.
        sums: how many sums and concatenations this rank has begun, in a list of one.
    """

    rank: int = 0
    size: int = 1
    failures: Any = field(default=None, compare=False, repr=False)
    sums: list[int] = field(default_factory=lambda: [0], compare=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this rank says what all compute."""
        return self.rank == 0

    def share(self, things: int) -> range:
        """This rank's part of so many things; the parts follow each other and differ by one at most."""
        return range(things * self.rank // self.size, things * (self.rank + 1) // self.size)

    def sum(self, own: Tensor) -> Tensor:
        """The sum of every rank's tensor, bit for bit the same on each; `own` may be overwritten."""
        if self.size > 1:
            own = own.contiguous()
            self.sums[0] += 1
            with _linked():
                dist.all_reduce(own)
        return own

    def concatenate(self, own: Tensor) -> Tensor:
        """Every rank's ``[..., n]`` side by side, ``[..., size * n]``."""
        if self.size == 1:
            return own
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self.sums[0] += 1
        with _linked():
            dist.all_gather(parts, own)
        return torch.cat(parts, dim=-1)

    def least(self, number: int) -> int:
        """The smallest of the numbers that the ranks have."""
        if self.size == 1:
            return number
        least = torch.tensor(number)
        with _linked():
            dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def all_failed(self) -> bool:
        """Whether every rank's pass raised at the same place, so that all may go on; called where one's did.

        A rank whose pass did not raise waits for a sum that nobody adds to, and cannot go on.
        """
        if self.failures is None:
            return False
        own = torch.tensor(self.sums[0])
        everyones = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(everyones, own, group=self.failures)
        except RuntimeError:  # it took too long, or a rank is gone
            return False
        return all(bool(other == own) for other in everyones)

    def tell(self, order: Any) -> None:
        """Rank 0 says what the others `hear`: anything that pickles."""
        if self.size > 1:
            self._broadcast([order])

    def hear(self) -> Any:
        """What rank 0 tells; the call waits for it."""
        said = [None]
        self._broadcast(said)
        return said[0]

    def _broadcast(self, said: list[Any]) -> None:
        with _linked():
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))


@contextmanager
def process_group(
    device: torch.device | str = "cpu", rank: int = -1, size: int = -1, store: Store | None = None
) -> Iterator[Mesh]:
    """The ranks of this run as a mesh, until the block is left: gloo between CPUs, NCCL between GPUs.

    Args:
        device: this rank's own.
        rank, size, store: which of how many, and where they meet; left out, as torchrun's environment says.

    Raises:
        ConfigError: a kind of device between which nothing carries tensors, or nothing says which rank this is.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"several ranks compute on cpu or cuda, got {kind}")
    missing = [name for name in TORCHRUN if name not in os.environ]
    if store is None and missing:
        raise ConfigError(
            f"ranks meet as torchrun says, and {missing[0]} is not set: start this with torchrun --nproc-per-node N, "
            "or pass rank, size and store"
        )
    carriers = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"  # orders go between CPUs in any case
    with _linked():
        dist.init_process_group(carriers, timeout=PATIENCE, rank=rank, world_size=size, store=store)
    try:
        failures = dist.new_group(timeout=AGREEMENT, backend="gloo") if dist.get_world_size() > 1 else None
        yield Mesh(dist.get_rank(), dist.get_world_size(), failures)
    finally:
        dist.destroy_process_group()


@contextmanager
def _linked() -> Iterator[None]:
    """What torch raises when a connection breaks, as :class:`RankLost`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"the ranks cannot reach each other: {str(error).splitlines()[0]}") from error
