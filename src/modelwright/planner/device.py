"""The devices a plan is made for: how much memory each has and how many there are; nothing of the machine is probed."""

import re
from dataclasses import dataclass

from modelwright.errors import RequestError
from modelwright.planner.units import format_bytes, parse_bytes


@dataclass(frozen=True)
class Devices:
    """``count`` equal devices with ``memory`` bytes each, all of it for the model.

    What a driver and its libraries keep for themselves (on an accelerator some hundred MiB) is not taken off:
    state the memory that is free. A `count` of None leaves it to the config: as many as its layout asks for, or one.
    """

    memory: int
    count: int | None = None

    def __str__(self) -> str:
        return format_bytes(self.memory) if self.count is None else f"{self.count} x {format_bytes(self.memory)}"


def parse_devices(text: str) -> Devices:
    """``24GiB``, or ``24GiB,8`` for eight of them.

    Raises:
        RequestError: the size is none, or the count is no whole number of at least 1.
    """
    size, comma, count = text.partition(",")
    if comma and not re.fullmatch(r"0*[1-9]\d{0,4}", count.strip()):
        raise RequestError(
            f"devices must be their memory and, after a comma, how many there are (1 to 99999), like 24GiB,8; "
            f"got {text!r:.80}",
            field="devices",
        )
    return Devices(parse_bytes(size), int(count) if comma else None)
