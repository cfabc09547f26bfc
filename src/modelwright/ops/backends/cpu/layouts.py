"""What Python hands to the compiled kernels: every constant, structure and function, declared once.

Python packs and calls by these tables, and :func:`header` writes the C++ side of them, which is compiled with the
kernels: a kernel that is defined otherwise, or a compiler that lays a structure out otherwise, does not compile.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Self


class Unit(IntEnum):
    """What multiplies several rows of bf16; few rows, and fp32, are dot products while the weight streams by.

    Few are 4 rows, 8 with an int8 weight and 16 with an int4 weight. ``DOTS`` are AVX-512's dot products over blocks of
    the weight, ``TILES`` the processor's matrix unit (AMX).
    """

    STREAMS = 0
    DOTS = 1
    TILES = 2


class WeightKind(IntEnum):
    """How the numbers of a weight are stored; ``PLAIN`` is the type of the rows that it meets."""

    PLAIN = 0
    INT8 = 1
    INT4 = 2


class StoredKind(IntEnum):
    """How the vectors in pages are stored."""

    FP32 = 0
    BF16 = 1
    INT8 = 2


CONSTANTS = {"LANES": 16, "BLOCK": 32, "MOST_PARTS": 2, "PREFILL_CHANNELS": 8}
"""Numbers of a vector register; rows of a block that is turned; parts of a key; channels of a prompt's values that are
taken together."""
LANES, BLOCK, MOST_PARTS, PREFILL_CHANNELS = CONSTANTS.values()
ENUMS = (Unit, WeightKind, StoredKind)

_LETTERS = {"int32_t": "i", "int64_t": "q", "float": "f", **{kind.__name__: "i" for kind in ENUMS}}
"""The codes of the module ``struct`` for C's types; that of a pointer is P."""
_TYPES = {"i": ctypes.c_int32, "q": ctypes.c_int64, "f": ctypes.c_float, "P": ctypes.c_void_p}


@dataclass(frozen=True)
class Field:
    """A member of a structure or a parameter of a function: C's type or a structure, and how many of them."""

    kind: "str | Structure"
    name: str
    count: int = 1

    @classmethod
    def of(cls, declared: Any) -> Self:
        """From ``"int64_t heads"``, or a structure, a name and perhaps a number."""
        parts: Any = declared.rsplit(" ", 1) if isinstance(declared, str) else declared
        return cls(*parts)

    @property
    def alignment(self) -> str:
        """The code of the member's widest number, which C aligns it to."""
        return self.kind.alignment if isinstance(self.kind, Structure) else _letter(self.kind)

    @property
    def format(self) -> str:
        """The code of the member, as often as there are of it."""
        return (self.kind.format if isinstance(self.kind, Structure) else _letter(self.kind)) * self.count

    @property
    def text(self) -> str:
        """C's declaration."""
        kind = self.kind.name if isinstance(self.kind, Structure) else self.kind
        return f"{kind} {self.name}" + (f"[{self.count}]" if self.count > 1 else "")


@dataclass(frozen=True)
class Structure:
    """A C structure; ``pack`` takes its numbers one after another, those of nested structures in their places."""

    name: str
    fields: tuple[Field, ...]

    @property
    def alignment(self) -> str:
        """The code of the widest number in it."""
        return max((field.alignment for field in self.fields), key=struct.calcsize)

    @property
    def format(self) -> str:
        """The codes of its members between marks that pad it to whole widths of the widest, as C does."""
        return f"0{self.alignment}{''.join(field.format for field in self.fields)}0{self.alignment}"

    @cached_property
    def pack(self) -> Callable[..., bytes]:
        """The structure as bytes."""
        return struct.Struct(f"@{self.format}").pack

    @property
    def size(self) -> int:
        """Bytes of it."""
        return struct.calcsize(f"@{self.format}")

    def offsets(self) -> dict[str, int]:
        """How many bytes from its beginning each member lies."""
        before, found = "@", {}
        for field in self.fields:
            found[field.name] = struct.calcsize(f"{before}0{field.alignment}")
            before += field.format
        return found


@dataclass(frozen=True)
class Function:
    """A function of the kernels; it is given structures as bytes, and pointers and numbers as numbers."""

    name: str
    parameters: tuple[Field, ...]
    result: str = "void"

    def of(self, library: ctypes.CDLL) -> Any:
        """The function of a loaded library, which converts numbers itself: that takes less than making C's of each.

        Raises:
            AttributeError: the library has none of that name.
        """
        function = getattr(library, self.name)
        function.argtypes = [_argument(field) for field in self.parameters]
        function.restype = None if self.result == "void" else _TYPES[_LETTERS[self.result]]
        return function

    @property
    def text(self) -> str:
        """C's declaration."""
        return f"{self.result} {self.name}({', '.join(field.text for field in self.parameters)});"


def _letter(kind: str) -> str:
    return "P" if kind.endswith("*") else _LETTERS[kind]


def _argument(field: Field) -> Any:
    assert isinstance(field.kind, str)
    pointed_to = field.kind.removeprefix("const ").removesuffix("*")
    return ctypes.c_char_p if pointed_to in {one.name for one in STRUCTURES} else _TYPES[_letter(field.kind)]


def _structure(name: str, *declared: Any) -> Structure:
    return Structure(name, tuple(map(Field.of, declared)))


def _function(name: str, *declared: str, result: str = "void") -> Function:
    return Function(name, tuple(map(Field.of, declared)), result)


WEIGHT = _structure(
    "Weight",
    *("WeightKind kind", "int64_t in", "int64_t group"),  # how, inputs of a row, inputs that share an int4 scale
    *("const void* data", "const void* scales", "const void* offsets"),
)
LAYER = _structure("LinearLayer", (WEIGHT, "weight"), "int64_t out", "const void* bias", "void* y")
STORED = _structure(
    "Stored",  # vectors in pages; strides count elements
    *("StoredKind kind", "int64_t width", "const void* rows", "int64_t page", "int64_t token", "int64_t head"),
    *("const float* scales", "int64_t scale_page", "int64_t scale_token", "int64_t scale_head"),
)
QUERIES = _structure("QueryRows", "const void* rows", "int64_t sequence", "int64_t head")
DECODE = _structure(
    "Decode",
    *("int64_t sequences", "int64_t heads", "int64_t kv_heads", "int64_t parts"),
    *((QUERIES, "queries", MOST_PARTS), (STORED, "keys", MOST_PARTS), (STORED, "values")),
    *("const int32_t* contexts", "const int32_t* tables", "int64_t table", "int64_t page_size"),
    *("int64_t share", "float scale"),
)
PREFILL = _structure(
    "Prefill",  # one sequence; its first query sees `past` keys and its own; strides count elements
    *("int64_t heads", "int64_t kv_heads", "int64_t tokens", "int64_t keys", "int64_t past"),
    *("int64_t k_width", "int64_t v_width"),
    *("const bf16* q", "int64_t q_head", "int64_t q_token", "const bf16* k", "int64_t k_head", "int64_t k_token"),
    *("const bf16* v", "int64_t v_head", "int64_t v_token", "bf16* out", "float scale"),
)
COLUMNS = _structure(
    "Columns",  # x [rows, in], weight [in, out], bias [out] or none, y [rows, out]
    *(
        "int64_t in",
        "int64_t out",
        "int64_t rows",
        "const void* x",
        "const void* weight",
        "const void* bias",
        "void* y",
    ),
)
TOKENS = _structure("Tokens", "const void* data", "int64_t batch", "int64_t head", "int64_t token")
TRAINED = _structure(
    "Trained",  # strides count elements; true bytes of the mask [batch, heads, tokens, keys] are what a query sees
    *("int64_t batch", "int64_t heads", "int64_t kv_heads", "int64_t tokens", "int64_t keys"),
    *("int64_t k_width", "int64_t v_width"),
    *((TOKENS, name) for name in ("q", "k", "v", "out", "gradient", "of_q", "of_k", "of_v")),
    *("float* sums", "const uint8_t* mask", "int64_t mask_batch", "int64_t mask_head", "int64_t mask_query"),
    *("int32_t causal", "float scale", "float scale2"),
)
STRUCTURES = (WEIGHT, LAYER, STORED, QUERIES, DECODE, PREFILL, COLUMNS, TOKENS, TRAINED)

BEST_UNIT = _function("best_unit", result="Unit")
LINEAR_ROWS = _function(
    "linear_rows",
    *("const LinearLayer* layers", "int64_t number", "int32_t halves", "const void* x", "int64_t x_stride"),
    *("int64_t count", "Unit unit", "int32_t threads"),
)
EXPERT_ROWS = _function(
    "expert_rows",
    *("const Weight* w_in", "const Weight* w_out", "int64_t width", "int32_t halves", "const void* x"),
    *("int64_t tokens", "int64_t top_k", "const int64_t* chosen", "const float* weights", "void* y"),
    *("Unit unit", "int32_t threads"),
)
PAGED_DECODE = _function("paged_decode", "const Decode* d", "int32_t halves", "void* out", "int32_t threads")
LATENT_IN = _function(
    "latent_in",
    *("int32_t halves", "const void* kv_b", "int64_t heads", "int64_t rows", "int64_t nope", "int64_t rank"),
    *("const void* q", "int64_t head", "int64_t token", "int64_t tokens", "void* y", "int32_t threads"),
)
LATENT_OUT = _function(
    "latent_out",
    *("int32_t halves", "const void* kv_b", "int64_t heads", "int64_t rows", "int64_t nope", "int64_t rank"),
    *("const void* x", "int64_t tokens", "void* y", "int32_t threads"),
)
SERVES_PREFILL = _function("serves_prefill", result="int32_t")
PREFILL_ROWS = _function("prefill", "const Prefill* given", "int32_t threads")
LINEAR_COLUMNS = _function("linear_columns", "const Columns* c", "int32_t halves", "int32_t threads")
NORM_ROWS = _function(
    "norm_rows",
    *("int32_t halves", "const void* x", "int64_t count", "int64_t dim", "const void* weight", "float eps"),
    *("int32_t once", "void* y", "int32_t threads"),
)
ROTATE_ROWS = _function(
    "rotate_rows",
    *("int32_t halves", "int32_t half_tables", "const void* x", "int64_t head_stride", "int64_t token_stride"),
    *("int64_t heads", "int64_t tokens", "int64_t dim", "const void* cos", "const void* sin"),
    *("int32_t interleaved", "void* y", "int32_t threads"),
)
SILU_PRODUCT = _function(
    "silu_product",  # gate and up [rows, width], `stride` numbers from row to row
    *("int32_t halves", "const void* gate", "const void* up", "int64_t rows", "int64_t width", "int64_t stride"),
    *("void* y", "int32_t threads"),
)
SILU_PRODUCT_BACK = _function(
    "silu_product_back",
    *("int32_t halves", "const void* gradient", "const void* gate", "const void* up", "int64_t rows", "int64_t width"),
    *("int64_t stride", "void* of_gate", "void* of_up", "int64_t to_stride", "int32_t threads"),
)
QUICK_GELU = _function("quick_gelu", "int32_t halves", "const void* x", "int64_t count", "void* y", "int32_t threads")
PLACE_ROWS = _function(
    "place_rows",  # strides and the width in bytes
    *("const void* x", "int64_t x_token", "int64_t x_head", "const int64_t* slots", "int64_t tokens"),
    *("int64_t heads", "int64_t width", "void* rows", "int64_t token", "int64_t head"),
)
ROUTE_ROWS = _function(
    "route_rows",
    *("int32_t halves", "int32_t half_weight", "const void* x", "int64_t tokens", "int64_t dim", "const void* weight"),
    *("int64_t experts", "int32_t softmax", "float* logits", "float* scores", "int32_t threads"),
)
GROUPED_ROWS = _function(
    "grouped_rows",  # x [rows, in], a weight [out, in] of each run or, turned, [in, out], y [rows, out]
    *("const bf16* x", "const bf16* weight", "int64_t run_stride", "int64_t stride", "int32_t turned", "int64_t runs"),
    *("const int64_t* counts", "int64_t in", "int64_t out", "bf16* y", "int32_t threads"),
)
GROUPED_WEIGHTS = _function(
    "grouped_weights",  # gradient [rows, out], x [rows, in], y [runs, out, in]
    *("const bf16* gradient", "const bf16* x", "int64_t runs", "const int64_t* counts", "int64_t in", "int64_t out"),
    *("bf16* y", "int32_t threads"),
)
SERVES_TRAINING = _function("serves_training", result="int32_t")
ATTEND_FORWARD = _function("attend_forward", "const Trained* all", "int32_t halves", "int32_t threads")
ATTEND_BACKWARD = _function("attend_backward", "const Trained* all", "int32_t halves", "int32_t threads")
FUNCTIONS = (
    *(BEST_UNIT, LINEAR_ROWS, EXPERT_ROWS, PAGED_DECODE, LATENT_IN, LATENT_OUT, SERVES_PREFILL, PREFILL_ROWS),
    *(LINEAR_COLUMNS, NORM_ROWS, ROTATE_ROWS, SILU_PRODUCT, QUICK_GELU, PLACE_ROWS, ROUTE_ROWS),
    *(SERVES_TRAINING, SILU_PRODUCT_BACK, GROUPED_ROWS, GROUPED_WEIGHTS, ATTEND_FORWARD, ATTEND_BACKWARD),
)


def header() -> str:
    """The text of ``layouts.h``, which every kernel includes."""
    constants = [f"constexpr int {name} = {value};" for name, value in CONSTANTS.items()]
    blocks = ["#pragma once", "// Written by layouts.py.", "#include <cstddef>\n#include <cstdint>", "struct bf16;"]
    blocks += ["\n".join(constants), *map(_enum_text, ENUMS), *map(_structure_text, STRUCTURES)]
    return "\n\n".join([*blocks, 'extern "C" {', *(function.text for function in FUNCTIONS), "}"]) + "\n"


def _enum_text(kind: type[IntEnum]) -> str:
    members = ", ".join(f"{member.name.lower()} = {member.value}" for member in kind)
    return f"enum class {kind.__name__} : int32_t {{ {members} }};"


def _structure_text(one: Structure) -> str:
    """The structure, and what fails to compile where C places its members elsewhere than Python packs them."""
    members = "".join(f"    {field.text};\n" for field in one.fields)
    asserts = [f'static_assert(sizeof({one.name}) == {one.size}, "{one.name} is not as large as layouts.py packs it");']
    for name, offset in one.offsets().items():
        said = f"{one.name}.{name} lies elsewhere than layouts.py packs it"
        asserts.append(f'static_assert(offsetof({one.name}, {name}) == {offset}, "{said}");')
    return f"struct {one.name} {{\n{members}}};\n" + "\n".join(asserts)
