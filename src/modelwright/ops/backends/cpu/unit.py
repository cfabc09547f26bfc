"""What multiplies several rows of bf16 on this processor."""

from enum import IntEnum
from functools import cache

from modelwright.ops.backends.cpu.build import build


class Unit(IntEnum):
    """What multiplies several rows of bf16; few rows, and fp32, are dot products while the weight streams by.

    Few are 4 rows, 8 with an int8 weight and 16 with an int4 weight. ``DOTS`` are AVX-512's dot products over blocks of
    the weight, ``TILES`` the processor's matrix unit (AMX).
    """

    STREAMS = 0
    DOTS = 1
    TILES = 2


@cache
def unit() -> Unit:
    """The best unit of this processor; asks the system's permission for it, once."""
    library = build().library
    return Unit.STREAMS if library is None else Unit(library.best_unit())
