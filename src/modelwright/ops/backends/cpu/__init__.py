"""Compiled CPU kernels, for decoding above all, where each weight is read once; torch's way stands beside each.

``linear``, ``linears``, ``columns`` and ``experts`` serve few and several tokens, ``decode`` one query per sequence
over pages; ``latent_in`` and ``latent_to_values`` absorb a latent layer's projection. ``prefill`` attends to a prompt's
tokens; ``rms_norm``, ``rotate``, ``silu_product``, ``quick_gelu``, ``route`` and ``place`` take any number of rows.
Each ``serves_`` function says whether a kernel takes some tensors, for callers that want numbers alone
(``ops/dispatch.py``). Leaves out GPUs. README.md has a map.
"""

from modelwright.ops.backends.cpu.attention import decode, serves_decode
from modelwright.ops.backends.cpu.build import available, reason
from modelwright.ops.backends.cpu.columns import columns, prefers_columns, serves_columns
from modelwright.ops.backends.cpu.latent import latent_in, latent_to_values, serves_latent
from modelwright.ops.backends.cpu.layouts import Unit
from modelwright.ops.backends.cpu.linear import (
    experts,
    linear,
    linears,
    serves_experts,
    serves_linear,
)
from modelwright.ops.backends.cpu.prefill import prefill, serves_prefill
from modelwright.ops.backends.cpu.rows import (
    place,
    quick_gelu,
    rms_norm,
    rotate,
    route,
    serves_placing,
    serves_rows,
    silu_product,
)
from modelwright.ops.backends.cpu.unit import has_wide_registers, torch_lacks, unit

__all__ = [
    "Unit",
    "available",
    "columns",
    "decode",
    "experts",
    "has_wide_registers",
    "latent_in",
    "latent_to_values",
    "linear",
    "linears",
    "place",
    "prefers_columns",
    "prefill",
    "quick_gelu",
    "reason",
    "rms_norm",
    "rotate",
    "route",
    "serves_columns",
    "serves_decode",
    "serves_experts",
    "serves_latent",
    "serves_linear",
    "serves_placing",
    "serves_prefill",
    "serves_rows",
    "silu_product",
    "torch_lacks",
    "unit",
]
