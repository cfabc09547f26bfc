"""Triton kernels for GPUs: attention over pages, grouped or latent, for any number of queries, and gated experts.

torch's way stands beside each in ``ops/paged.py`` and ``ops/experts.py``, which ask ``serves_attention`` and
``serves_experts``. They serve on a device only after they were found right on it. Leaves out CPUs (``backends/cpu/``),
except that Triton's interpreter runs the same programs there.
"""

from modelwright.ops.backends.triton.attention import decode, ragged
from modelwright.ops.backends.triton.experts import experts
from modelwright.ops.backends.triton.load import available, reason
from modelwright.ops.backends.triton.self_check import FAILURES, attention_failure, experts_failure
from modelwright.ops.backends.triton.serves import serves_attention, serves_experts

__all__ = [
    "FAILURES",
    "attention_failure",
    "available",
    "decode",
    "experts",
    "experts_failure",
    "ragged",
    "reason",
    "serves_attention",
    "serves_experts",
]
