"""Compiled CPU kernels, for decoding above all, where each weight is read once; torch's way stands beside each.

``linear``, ``linears``, ``columns`` and ``experts`` serve few and several tokens, ``decode`` one query per sequence
over pages; ``latent_in`` and ``latent_to_values`` absorb a latent layer's projection. ``prefill`` attends to a prompt's
tokens; ``rms_norm``, ``rotate``, ``silu_product``, ``quick_gelu``, ``route`` and ``place`` take any number of rows.
Training asks for ``attend`` and ``grouped_linear`` with their gradients, and for those of ``silu_product``.
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
    silu_product_back,
)
from modelwright.ops.backends.cpu.trained import (
    attend,
    attend_backward,
    grouped_linear,
    grouped_weight_gradient,
    multiplies_by_vectors,
    serves_grouped,
    serves_grouped_gradient,
    serves_trained_attention,
)
from modelwright.ops.backends.cpu.unit import has_wide_registers, torch_lacks, unit

__all__ = [
    "Unit",
    "attend",
    "attend_backward",
    "available",
    "columns",
    "decode",
    "experts",
    "grouped_linear",
    "grouped_weight_gradient",
    "has_wide_registers",
    "latent_in",
    "latent_to_values",
    "linear",
    "linears",
    "multiplies_by_vectors",
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
    "serves_grouped",
    "serves_grouped_gradient",
    "serves_latent",
    "serves_linear",
    "serves_placing",
    "serves_prefill",
    "serves_rows",
    "serves_trained_attention",
    "silu_product",
    "silu_product_back",
    "torch_lacks",
    "unit",
]
