"""How weights are stored by a `quantization_config`: bits, groups, scales and the modules left out; it reads no file.

Sections of other programs are read by `modelwright.planner.foreign`; here is what they come to.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WeightFormat:
    """How one matrix is stored.

    A block of `block` (outputs, inputs), None for all there are, has a scale of `scale` bytes and an offset of
    `offset` bytes; `each_input`, `each_output` and `each` are bytes beside those for each input, each output and the
    matrix. Fractions of a byte are what several share.
    """

    bits: float
    block: tuple[int | None, int | None] = (1, None)
    scale: float = 2
    offset: float = 0
    each_input: float = 0
    each_output: float = 0
    each: int = 0

    def bytes_of(self, inputs: int, outputs: int) -> int:
        """Of a matrix of so many inputs and outputs, all that is stored for it."""
        tall, wide = self.block
        blocks = math.ceil(outputs / (tall or outputs)) * math.ceil(inputs / (wide or inputs))
        beside = self.each_input * inputs + self.each_output * outputs + self.each
        return math.ceil(inputs * outputs * self.bits / 8 + blocks * (self.scale + self.offset) + beside)

    def __str__(self) -> str:
        """Its bits, with scales and offsets left out: ``4-bit``."""
        return f"{self.bits:g}-bit"


Matches = Callable[[str], bool]
"""Whether a module is meant, by its name."""


@dataclass(frozen=True)
class StoredWeights:
    """What a `quantization_config` says of a model's matrices.

    Attributes:
        method: what its program calls it.
        groups: the format of the modules that each matcher means; the first that matches counts.
        left_out: which modules keep the model's own type.
        unknown: what of the section is not understood, a sentence part each.
        kv: the type that it stores keys and values in; None for the model's.
    """

    method: str
    groups: tuple[tuple[Matches, WeightFormat], ...]
    left_out: Matches
    unknown: tuple[str, ...] = ()
    kv: str | None = None

    def format_of(self, names: tuple[str, ...]) -> WeightFormat | None:
        """How the module that goes by any of `names` is stored; None where it keeps the model's type."""
        if any(self.left_out(name) for name in names):
            return None
        return next((kind for meant, kind in self.groups for name in names if meant(name)), None)


@dataclass(frozen=True)
class ModuleNames:
    """What a family's modules are called on disk.

    `layer` is the prefix of a layer's, with `{layer}` for its number; the others are the modules within. `others` are
    more names of a projection, by the usual one: those of fused matrices and of another dialect.
    """

    layer: str = "model.layers.{layer}"
    attention: str = "self_attn"
    dense: str = "mlp"
    experts: str = "mlp.experts.0"
    shared: str = "mlp.shared_experts"
    head: str = "lm_head"
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, layer: int, part: str, projection: str) -> tuple[str, ...]:
        """Every full name of a projection in a part of a layer: `attention`, `dense`, `experts` or `shared`."""
        within = f"{self.layer.format(layer=layer)}.{getattr(self, part)}"
        return tuple(f"{within}.{name}" for name in (projection, *self.others.get(f"{part}.{projection}", ())))


def named(patterns: list[str], exact: bool = False) -> Matches:
    """Whether a name is meant by transformers' patterns: from its start to a dot, as an expression, or at its end.

    `exact` reads them as compressed-tensors does: a whole name, or an expression after ``re:``.
    """
    return (lambda name: _exactly(name, patterns)) if exact else (lambda name: _loosely(name, patterns))


def everything(_: str) -> bool:
    """Every module."""
    return True


def _exactly(name: str, patterns: list[str]) -> bool:
    return any(
        _matches(pattern[3:], name) if pattern.startswith("re:") else name == pattern or pattern == "Linear"
        for pattern in patterns
    )


def _loosely(name: str, patterns: list[str]) -> bool:
    bounded = [rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))" for pattern in patterns]
    return any(name.endswith(each) or _matches(whole, name) for each, whole in zip(patterns, bounded, strict=True))


def _matches(expression: str, name: str) -> bool:
    try:
        return re.match(expression, name) is not None
    except re.error:
        return False
