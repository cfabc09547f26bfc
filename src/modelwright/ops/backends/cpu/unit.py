"""What multiplies several rows of bf16 on this processor."""

from functools import cache

from modelwright.ops.backends.cpu.build import ask, available
from modelwright.ops.backends.cpu.layouts import BEST_UNIT, Unit


@cache
def unit() -> Unit:
    """The best unit of this processor; asks the system's permission for it, once."""
    return Unit(ask(BEST_UNIT)) if available() else Unit.STREAMS
