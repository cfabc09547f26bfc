"""How many bytes a number takes: floating types, weight quantization and the types of cached keys and values."""

import math
from dataclasses import dataclass
from typing import Literal

from modelwright.errors import RequestError
from modelwright.planner.shapes import Linear
from modelwright.planner.stored import WeightFormat

Quant = Literal["fp8", "int8", "int4"]

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Floating types that weights, activations and caches can have."""
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
QUANTS: tuple[Quant, ...] = ("fp8", "int8", "int4")
KV_BYTES_OF = {**BYTES_OF, "fp8": 1, "int8": 1}
SCALE_BYTES: dict[Quant, int] = {"fp8": 4, "int8": 4, "int4": 2}
"""What one scale takes: float32, or bfloat16 in int4, as its offset; fp8 has one for a matrix's output, as int8 has."""
KV_SCALE_BYTES = 4
"""int8 keeps a float32 scale for each cached vector, as the engine does; fp8 is cached without scales."""


@dataclass(frozen=True)
class Precision:
    """The types of one plan.

    `weights` is that of every parameter but the embedding and the norms, which have their own; `compute` that of
    activations and `kv` that of the cache.
    With `quant` the matrices of attention, feed-forwards and experts are stored as ``modelwright quantize`` stores
    them; embedding, router, biases and norms, vision and projector are not quantized, nor what attention needs wide
    (`Linear.kept`). With `as_stored` matrices have the formats in which another program has stored them, where it has.
    In int4 `group` inputs share a scale and, unless `symmetric`, an offset; `head` is whether the
    output head is quantized too.
    """

    weights: str
    embedding: str
    norms: str
    compute: str
    kv: str
    quant: Quant | None = None
    group: int = 32
    symmetric: bool = False
    head: bool = False
    as_stored: bool = False

    @classmethod
    def uniform(cls, dtype: str, kv: str | None = None, quant: Quant | None = None) -> "Precision":
        """One type for everything; the cache's is the same unless stated."""
        return cls(dtype, dtype, dtype, dtype, kv or dtype, quant)

    @property
    def width(self) -> int:
        """Bytes of one weight that is not quantized."""
        return BYTES_OF[self.weights]

    @property
    def computed_width(self) -> int:
        """Bytes of one activation."""
        return BYTES_OF[self.compute]

    def matrix_bytes(self, linear: Linear, tensor: int = 1, stored: WeightFormat | None = None) -> int:
        """The weight of `linear` (not its bias) on one of `tensor` ranks, scales included; `stored` is its format.

        int8 and fp8 have one scale per output; int4 has one for every output and `group` inputs, and as many offsets.
        """
        inputs, outputs = (size // (tensor if linear.cut == side else 1) for side, size in _sides(linear))
        if stored is not None and self.as_stored:
            return stored.bytes_of(inputs, outputs)
        if self.quant is None or linear.kept:
            return inputs * outputs * self.width
        if self.quant == "int4":
            pairs = outputs * math.ceil(inputs / self.group) * (1 if self.symmetric else 2)
            return math.ceil(inputs * outputs / 2) + pairs * SCALE_BYTES["int4"]
        return inputs * outputs + outputs * SCALE_BYTES[self.quant]

    def kv_bytes(self, numbers: int, vectors: int) -> int:
        """Of `numbers` cached in `vectors`, each of which has a scale of its own where the type needs one."""
        scales = vectors * KV_SCALE_BYTES if self.kv == "int8" else 0
        return numbers * KV_BYTES_OF[self.kv] + scales


def _sides(linear: Linear) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("inputs", linear.inputs), ("outputs", linear.outputs)


def float_type(name: str, field: str) -> str:
    """The floating type called `name`, short or long (`bf16`, `bfloat16`); `field` is named when there is none.

    Raises:
        RequestError: no such type.
    """
    return _chosen(name, field, tuple(BYTES_OF))


def kv_type(name: str, field: str) -> str:
    """The type of cached numbers called `name`: a floating one, `fp8` or `int8`.

    Raises:
        RequestError: no such type.
    """
    return _chosen(name, field, tuple(KV_BYTES_OF))


def quantization(name: str, field: str) -> Quant:
    """The weight quantization called `name`.

    Raises:
        RequestError: no such quantization.
    """
    for quant in QUANTS:
        if quant == name.lower():
            return quant
    raise RequestError(f"{field} must be one of {', '.join(QUANTS)}, got {name!r}", field=field)


def _chosen(name: str, field: str, allowed: tuple[str, ...]) -> str:
    plain = name.lower().removeprefix("torch.")
    plain = SHORT_NAMES.get(plain, plain)
    if plain not in allowed:
        raise RequestError(f"{field} must be one of {', '.join(allowed)}, got {name!r}", field=field)
    return plain
