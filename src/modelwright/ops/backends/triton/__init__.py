"""Triton kernels for GPUs: attention over pages, grouped or latent, for any number of queries, and gated experts.

torch's way stands beside each in ``ops/paged.py`` and ``ops/experts.py``, which ask ``serves_attention`` and
``serves_experts``. Leaves out CPUs (``backends/cpu/``), except that Triton's interpreter runs the same programs there.
"""

from modelwright.ops.backends.triton.attention import decode, ragged, serves_attention
from modelwright.ops.backends.triton.experts import experts, serves_experts
from modelwright.ops.backends.triton.load import available, reason

__all__ = ["available", "decode", "experts", "ragged", "reason", "serves_attention", "serves_experts"]
