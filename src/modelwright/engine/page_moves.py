"""The moves of a step carried out: pages copied within the pools of a device, to host memory and back."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from modelwright.attention import PagePool
from modelwright.engine.step import Direction, Move


def carry_out(moves: Iterable[Move], pools: Sequence[PagePool], host_pools: Sequence[PagePool]) -> None:
    """Do the moves in order, neighbours of one direction at once.

    On a GPU they are queued on the current stream, before the pass that needs them, and the host waits for none.

    Args:
        moves: of a step.
        pools: those on the device, one for each layer.
        host_pools: those in host memory, one for each layer; none if nothing moves there.
    """
    for direction, together in groupby(moves, key=attrgetter("direction")):
        pairs = [(move.source, move.target) for move in together]
        if direction is Direction.WITHIN:
            for pool in pools:
                pool.copy(pairs)
            continue
        for pool, host in zip(pools, host_pools, strict=True):
            source, target = (pool, host) if direction is Direction.OUT else (host, pool)
            source.move(target, pairs)
