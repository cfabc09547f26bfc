"""Which documents share a row; nothing here knows tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Documents put into rows of ``room`` tokens: the longest first, each where it leaves the least room (best fit).

    Args:
        lengths: of each document, at most ``room``.

    Returns:
        The numbers of the documents of each row, in order; rows stand in the order of their first documents, so that
        the order of documents is kept as far as packing allows.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # the room left and the number of each row, least room first
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        assert length <= room
        at = bisect_left(left, (length, -1))
        if at == len(left):
            row, free = len(rows), room
            rows.append([])
        else:
            free, row = left.pop(at)
        rows[row].append(number)
        insort(left, (free - length, row))
    return sorted(sorted(row) for row in rows)
