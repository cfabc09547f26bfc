"""How a layer that stores several official tensors as one says which part is which."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """Where one official tensor lies: rows ``start:stop`` of ``parameter``, or of its matrix ``item`` when stacked."""

    parameter: str
    start: int
    stop: int
    item: int | None = None

    @property
    def index(self) -> tuple[int | slice, ...]:
        """What to index the parameter with: ``parameter[slot.index]`` is the official tensor."""
        rows = slice(self.start, self.stop)
        return (rows,) if self.item is None else (self.item, rows)
