"""Amounts as people read and write them: bytes, counts and operations; no arithmetic on configs."""

import re
from fractions import Fraction

from modelwright.errors import RequestError

BYTES_IN = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
"""Bytes of each unit: powers of 1000 for GB and its like, of 1024 for GiB and its like."""

MOST_BYTES = 2**60

_UNITS = {unit.lower(): unit for unit in BYTES_IN}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """``24GiB``, ``80 GB`` or ``512MiB`` as a whole number of bytes, rounded down.

    Raises:
        RequestError: it is no number followed by a unit, or comes to less than one byte or to no finite number.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise RequestError(f"a size is a number and one of {', '.join(BYTES_IN)}, like 24GiB; got {text!r:.80}")
    amount = int(Fraction(match[1]) * BYTES_IN[unit])
    if not 1 <= amount <= MOST_BYTES:
        raise RequestError(f"a size must be from one byte to 1048576 TiB, got {text!r:.80}")
    return amount


def format_bytes(amount: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1, to three digits: ``15.0 GiB``, ``512 B``."""
    return _scaled(amount, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_count(amount: float) -> str:
    """A plain number, with a thousands letter from a thousand on: ``236 B`` (billion), ``40.0 K``, ``7``."""
    return _scaled(amount, 1000, ("", "K", "M", "B", "T")).rstrip()


def format_operations(amount: float) -> str:
    """Floating-point operations, in powers of 1000: ``14.1 TFLOP``."""
    return _scaled(amount, 1000, ("FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(amount: float, step: int, units: tuple[str, ...]) -> str:
    place = 0
    while place < len(units) - 1 and float(_three_digits(amount)) >= step:
        amount, place = amount / step, place + 1
    return f"{f'{amount:.0f}' if place == 0 else _three_digits(amount)} {units[place]}"


def _three_digits(amount: float) -> str:
    """``9.87``, ``98.7``, ``987``: three digits, or all of those before the point."""
    for decimals, bound in ((2, 9.995), (1, 99.95)):
        if amount < bound:
            return f"{amount:.{decimals}f}"
    return f"{amount:.0f}"
