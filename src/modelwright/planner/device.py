"""The devices a plan is made for: how much memory each has and how many there are; nothing of the machine is probed."""

import re
from dataclasses import dataclass

from modelwright.errors import RequestError
from modelwright.planner.units import format_bytes, parse_bytes


@dataclass(frozen=True)
class Devices:
    """``count`` equal devices with ``memory`` bytes each, all of it for the model.

    What a driver and its libraries keep for themselves (on an accelerator some hundred MiB) is not taken off:
    state the memory that is free.
    """

    memory: int
    count: int = 1

    def __str__(self) -> str:
        return f"{self.count} x {format_bytes(self.memory)}"


def parse_devices(text: str) -> Devices:
    """``24GiB`` (one device) or ``24GiB,8`` (eight of them).

    Raises:
        RequestError: the size is none, or the count is no whole number of at least 1.
    """
    size, comma, count = text.partition(",")
    if comma and not re.fullmatch(r"0*[1-9]\d{0,6}", count.strip()):
        raise RequestError(
            f"a device is its memory and, after a comma, how many there are (1 to 9999999), like 24GiB,8; got {text!r}"
        )
    return Devices(parse_bytes(size), int(count) if comma else 1)
