"""Where the compiled kernels are faster than torch: every number that the dispatch compares a shape with.

Each was chosen by ``benchmarks/kernels.py`` on a processor with AVX-512 and its dot products of bf16 (AMD EPYC, two
cores), which times both sides of each; those named ``NARROW`` on one whose registers hold 8 floats (AVX2 of a Zen 3,
one core). ``LACKED`` are of types that torch has no products of there (``torch_lacks`` of ``unit.py``): more rows are
multiplied in fp32 (``ops/products.py``). Leaves out what a kernel cannot compute at all, which its ``serves`` function
knows, and the thresholds inside the C++ kernels (``thresholds.h``).
"""

import torch

from modelwright.ops.backends.cpu.layouts import Unit

LINEAR_ROWS_BF16 = {Unit.STREAMS: 8, Unit.DOTS: 64, Unit.TILES: 64}
"""Rows of bf16 up to which a linear layer is computed by the kernel. ``TILES`` is an estimate, not measured."""

LACKED_LINEAR_ROWS = 63
"""Rows up to which a linear layer is computed by the kernel where torch has no products of the type. Of 32 rows a
product in fp32, copies included, takes 0.8 to 1.3 times the kernel's time, of 64 0.75 to 1, of 128 0.6 to 0.75, of 512
0.4 to 0.55; with a weight ``[in, out]`` as much or less. Four layers, 384 to 2048 wide."""

LACKED_ROWS_OF_AN_EXPERT = 40
"""The same for the mean rows of an expert: of 24 and 16 fp32 takes 1.3 and 1.5 times as long, of 32 and 48 0.9, of 128
0.6."""

LINEAR_ROWS_FP32 = 32
"""Rows of fp32 up to which a linear layer is computed by the kernel, where registers are wide."""

NARROW_LINEAR_ROWS_FP32 = range(2, 9)
"""Rows of fp32 for which it is where they are narrow: 1.7 to 2.2 times as fast as torch for 2 to 4 rows, 1.25 for 8,
but 0.9 for one and for 16."""

STORED_LINEAR_ROWS = {Unit.STREAMS: 8, Unit.DOTS: 512, Unit.TILES: 512}
"""Rows of bf16 up to which a linear layer multiplies int8 or int4 by the kernel; torch copies the weight first."""

STORED_LINEAR_ROWS_FP32 = 8
"""The same for rows of fp32, which only stream by the weight."""

NARROW_STORED_LINEAR_ROWS = {torch.bfloat16: 64, torch.float32: 32}
"""The same for rows of either type where registers are narrow: about where a copy of the weight, and a product with it,
take as long. For 8 rows of fp32 they take 13 (int8) and 2.5 times (int4) as long, for 32 4.5 and 1.2 times."""

STORED_EXPERT_TOKENS = 8
"""Tokens up to which all quantized experts are computed in one call; more are sorted by expert, one product each."""

ROWS_OF_AN_EXPERT = 12
"""Mean rows of an expert up to which its kernel is faster; of bf16 it always is where there are dot products.
Where registers are narrow it is 2 to 3 times as fast for so many rows of fp32."""

GROUPED_ROWS = 128
"""Mean rows of an expert up to which products that are trained, and their gradients, are the kernel's in bf16: 8 rows
take 0.3 to 0.5 of torch's time, 48 0.55 to 0.8, 128 and 512 about as long (0.95 to 1.05; 120 to 2816 wide)."""

ROUTED_TOKENS = 64
"""Tokens up to which the kernel scores experts; beyond, torch's product catches up with its single pass."""

LATENT_TOKENS = 8
"""Tokens up to which ``kv_b`` is absorbed by the kernel row by row."""

LATENT_TOKENS_IN_BLOCKS = 64
"""The same in blocks, where there are dot products and all widths are multiples of 32."""

PREFILL_TOKENS = 16
"""Tokens from which on the kernel attends to a prompt; a third of its 48 queries are then used."""

INPUT_MAJOR_ROWS_FP32 = 64
"""Rows of fp32 up to which a weight ``[in, out]`` is multiplied by the kernel: one row in 0.68 of torch's time. Where
registers are not wide torch takes 0.5 to 0.7 of the kernel's time for one row and 0.65 to 0.85 for 16."""

INPUT_MAJOR_ROWS_BF16 = 32
"""Rows of bf16 up to which the kernel multiplies by a weight ``[in, out]``."""
