"""How a layer that stores several official tensors as one says which part is which."""

from dataclasses import dataclass

from torch import nn

Index = tuple[int | slice | list[int], ...]


@dataclass(frozen=True)
class Slot:
    """Where one official tensor lies: rows ``start:stop`` of ``parameter``, or of its matrix ``item`` when stacked.

    With ``runs`` above 1 the rows repeat: ``start:stop`` of each of that many runs, ``period`` rows apart.
    """

    parameter: str
    start: int
    stop: int
    item: int | None = None
    runs: int = 1
    period: int = 0

    @property
    def index(self) -> Index:
        """What to index the parameter with: ``parameter[slot.index]`` is the official tensor."""
        rows = self._rows()
        return (rows,) if self.item is None else (self.item, rows)

    def _rows(self) -> slice | list[int]:
        if self.runs == 1:
            return slice(self.start, self.stop)
        if self.stop - self.start == 1:
            return slice(self.start, self.start + (self.runs - 1) * self.period + 1, self.period)
        starts = range(0, self.runs * self.period, self.period)
        return [first + row for first in starts for row in range(self.start, self.stop)]


def own_tensors(layer: nn.Module) -> list[str]:
    """The names of a layer's own tensors; those of an adapter that was put around it are not among them."""
    return [name for name in layer.state_dict() if "." not in name.removeprefix("base_layer.")]
