"""Triton kernels for GPUs: attention over pages, grouped or latent, for any number of queries, and gated experts.

torch's way stands beside each in ``ops/paged.py`` and ``ops/experts.py``, which ask ``serves_attention`` and
``serves_experts``. Leaves out CPUs (``ops/kernels/``), except that Triton's interpreter runs the same programs there.
"""

from modelwright.ops.gpu_kernels.attention import decode, ragged, serves_attention
from modelwright.ops.gpu_kernels.experts import experts, serves_experts
from modelwright.ops.gpu_kernels.load import available, reason

__all__ = ["available", "decode", "experts", "ragged", "reason", "serves_attention", "serves_experts"]
