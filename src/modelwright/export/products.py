"""Every product with a weight as a ``MatMul`` with a constant ``[in, out]``, which tools that quantize look for.

The exporter writes a product of a matrix as ``Gemm``, which they leave alone, and knows none of sorted rows with their
experts' matrices: that one becomes as many products as there are experts. Needs onnxscript, so it is imported at use.
"""

from typing import Any

import numpy as np
from onnxscript import ir, opset18

op: Any = opset18  # its own annotations know tensors and no sequences
GROUPED = "ri,eoi,e->ro"
"""Rows, their experts' matrices, and how many rows each has: what marks their product while it is traced."""


def linear(x, weight, bias=None):
    """``aten::linear``: ``weight`` is ``[out, in]``."""
    product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def addmm(self, mat1, mat2, *, beta=1, alpha=1):
    """``aten::addmm`` of a bias; no model of ours scales it."""
    assert beta == alpha == 1
    return op.Add(op.MatMul(mat1, mat2), self)


def grouped_product(x, weight, counts):
    """``modelwright::grouped_linear`` as a node of its shape, which :func:`expand_experts` replaces."""
    return op.Einsum(x, weight, op.CastLike(counts, x), equation=GROUPED)


def stable_sort(x, *, stable, dim=-1, descending=False):
    """``aten::sort.stable`` of one dimension: ONNX orders equal numbers by their index."""
    return op.TopK(x, op.Shape(x), axis=dim, largest=int(descending), sorted=1)


def largest(self, dim, keepdim=False):
    """``aten::amax`` over one dimension by the operator whose axis is an attribute: symbolic shapes need to know it."""
    [axis] = dim
    values, _ = op.TopK(self, op.Constant(value_ints=[1]), axis=axis)
    return values if keepdim else op.Squeeze(values, op.Constant(value_ints=[axis]))


def expand_experts(model: Any) -> None:
    """A product for each expert with its run of the sorted rows, which is empty where nobody chose it.

    A pass thus reads the chosen experts' weights and no others: a product of no rows takes some microseconds.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Einsum" or node.attributes.get_string("equation") != GROUPED:
            continue
        x, stack, cast = node.inputs
        counts = cast.producer().inputs[0]
        experts, name = stack.shape[0], node.name
        # Slices, because tools that follow shapes by symbols take the outputs of a Split for equally long.
        ends = ir.node("CumSum", [counts, _numbers(graph, "experts.zero", 0)], name=f"{name}.ends")
        starts = ir.node("Sub", [ends.outputs[0], counts], name=f"{name}.starts")
        places = [
            ir.node(
                "Split",
                [part.outputs[0]],
                {"axis": 0, "num_outputs": experts},
                num_outputs=experts,
                name=f"{part.name}.each",
            )
            for part in (starts, ends)
        ]
        axis = _numbers(graph, "experts.axis", [0])
        runs, products = [], []
        for expert, (start, end) in enumerate(zip(*(part.outputs for part in places), strict=True)):
            runs.append(ir.node("Slice", [x, start, end, axis], name=f"{name}.{expert}.rows"))
            products.append(
                ir.node("MatMul", [runs[-1].outputs[0], _constant(graph, stack, expert)], name=f"{name}.{expert}")
            )
        joined = ir.node("Concat", [product.outputs[0] for product in products], {"axis": 0}, name=f"{name}.joined")
        # As many rows as came in, which is not seen from the sum of the runs.
        rows = ir.node("Shape", [x], {"start": 0, "end": 1}, name=f"{name}.length")
        width = _numbers(graph, f"{name}.width", [stack.const_value.shape[1]])
        shape = ir.node("Concat", [rows.outputs[0], width], {"axis": 0}, name=f"{name}.shape")
        whole = ir.node("Reshape", [joined.outputs[0], shape.outputs[0]], {"allowzero": 1}, name=f"{name}.whole")
        made = [ends, starts, *places, *runs, *products, joined, rows, shape, whole]
        for part in made:
            for place, value in enumerate(part.outputs):
                value.name = f"{part.name}.value.{place}"
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, whole.outputs)
        if not cast.uses():  # products of one routing share it
            graph.remove(cast.producer(), safe=True)


def fold_transposes(model: Any) -> None:
    """Transposed weights as constants of their own, however large: the exporter leaves the large ones as they are."""
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        [source], [result] = node.inputs, node.outputs
        if source.const_value is None or len(source.const_value.shape) != 2:
            continue
        folded = _register(model.graph, f"{source.name}.transposed", source, None)
        result.replace_all_uses_with(folded)
        model.graph.remove(node, safe=True)


def _numbers(graph: Any, name: str, numbers: int | list[int]) -> Any:
    """An int64 constant, registered once."""
    if name not in graph.initializers:
        tensor: Any = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        )
    return graph.initializers[name]


def _constant(graph: Any, stack: Any, expert: int) -> ir.Value:
    """One matrix ``[out, in]`` of a stack as ``[in, out]``."""
    return _register(graph, f"{stack.name}.{expert}", stack, expert)


def _register(graph: Any, name: str, source: Any, index: int | None) -> ir.Value:
    """The transpose of a matrix, or of the one at ``index`` of a stack, made when it is written and not kept."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = source.const_value
    assert tensor is not None

    def transposed() -> ir.Tensor:
        numbers = tensor.numpy()
        matrix = numbers if index is None else numbers[index]
        return ir.Tensor(np.ascontiguousarray(matrix.T), name=name)

    rows, columns = tensor.shape[-2:]
    lazy = ir.LazyTensor(transposed, dtype=tensor.dtype, shape=ir.Shape([columns, rows]), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=lazy.shape, const_value=lazy)
    graph.register_initializer(value)
    return value


def drop_unread(graph: Any) -> None:
    """Leave out the initializers that nobody reads, of each of which onnxruntime warns."""
    read = {value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.inputs} | set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if value not in read:
            del graph.initializers[name]
