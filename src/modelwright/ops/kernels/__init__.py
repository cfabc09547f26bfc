"""Compiled CPU kernels for decoding, where each weight and each key is read once; torch's way stands beside each.

``linear``, ``linears`` and ``experts`` serve a few tokens, ``decode`` one query per sequence over pages. Leaves out
GPUs.
"""

from modelwright.ops.kernels.attention import decode, serves_decode
from modelwright.ops.kernels.build import available, reason
from modelwright.ops.kernels.linear import experts, linear, linears, serves_experts, serves_linear

__all__ = [
    "available",
    "decode",
    "experts",
    "linear",
    "linears",
    "reason",
    "serves_decode",
    "serves_experts",
    "serves_linear",
]
