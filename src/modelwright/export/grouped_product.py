"""The product of sorted rows with their experts' matrices in ONNX; needs onnxscript, so it is imported at use."""

from typing import Any

from onnxscript import FLOAT, opset18, script
from onnxscript.values import Opset

op: Any = opset18  # its own annotations know tensors and no sequences


@script(Opset("modelwright", 1), default_opset=op)
def GroupedLinear(x, weight, counts) -> FLOAT:
    """``grouped_linear`` of ``ops/experts.py``: an iteration for each expert that has rows."""
    busy = op.Squeeze(op.NonZero(counts), op.Constant(value_ints=[0]))  # [experts that have rows], ascending
    lengths = op.Gather(counts, busy)
    ends = op.CumSum(lengths, op.Constant(value_int=0))
    starts = op.Sub(ends, lengths)
    no_rows = op.Concat(op.Constant(value_ints=[0]), op.Shape(weight, start=1, end=2), axis=0)  # [0, out]
    products = op.SequenceConstruct(op.CastLike(op.ConstantOfShape(no_rows), x))  # which says their type
    for i in range(op.Size(busy)):
        place = op.Unsqueeze(i, op.Constant(value_ints=[0]))
        rows = op.Slice(x, op.Gather(starts, place), op.Gather(ends, place), op.Constant(value_ints=[0]))
        matrix = op.Gather(weight, op.Gather(busy, i))  # [out, in]
        products = op.SequenceInsert(products, op.Gemm(rows, matrix, transB=1))
    return op.ConcatFromSequence(products, axis=0)


def grouped_product(x, weight, counts):
    """``modelwright::grouped_linear``."""
    return GroupedLinear(x, weight, counts)


def stable_sort(x, *, stable, dim=-1, descending=False):
    """``aten::sort.stable`` of one dimension: ONNX orders equal numbers by their index."""
    return op.TopK(x, op.Shape(x), axis=dim, largest=int(descending), sorted=1)
