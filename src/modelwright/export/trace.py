"""One graph to one ONNX file by torch's own exporter, the same bytes for the same weights.

What the exporter notes about its own run (stack traces, object names, symbols) is left out; axes get their names.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from modelwright.errors import ConfigError
from modelwright.export.decoder import KEPT
from modelwright.export.graphs import PAST, Axes, Graph
from modelwright.export.manifest import LOGITS_TO_KEEP

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
EXTERNAL_ABOVE = 2 * 1024**3
"""Bytes of weights above which they lie in a file of their own: a protobuf holds no more than 2 GiB."""
_END = 2**63 - 1


def write_graph(graph: Graph, folder: Path, opset: int = DEFAULT_OPSET, external_above: int = EXTERNAL_ABOVE) -> Path:
    """Trace ``graph`` and write ``folder/NAME.onnx``, with ``NAME.onnx.data`` beside it where the weights are large.

    Raises:
        ConfigError: torch's exporter cannot translate the model, or not to this opset.
    """
    from onnxscript import ir

    from modelwright.export.products import drop_unread, expand_experts, fold_transposes

    with quiet():
        model = _traced(graph, opset)
    expand_experts(model)
    fold_transposes(model)
    _name_axes(model, graph)
    if KEPT in graph.inputs:
        _choose_logits(model)
    drop_unread(model.graph)
    _tidy(model)
    path = folder / f"{graph.name}.onnx"
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=f"{path.name}.data" if size > external_above else None)
    return path


def check_opset(opset: int) -> None:
    """Raise a ConfigError for an opset that is not served."""
    if opset not in OPSETS:
        raise ConfigError(f"opset must be from {OPSETS.start} to {OPSETS.stop - 1}, got {opset}", field="opset")


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what the exporter says about itself; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _traced(graph: Graph, opset: int) -> Any:
    """The exporter's model, its inputs and outputs named."""
    lengths: dict[str, Any] = {}
    shapes = {name: _dims(axes, lengths) for name, axes in graph.inputs.items()}
    example = {name: graph.example[name] for name in graph.inputs}
    try:
        with torch.no_grad():
            program = torch.export.export(graph.module, (example,), dynamic_shapes=(shapes,), strict=False)
        _select_kept(program)
        exported = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=opset,
            custom_translation_table=_translations(),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(f"torch cannot export the {graph.name} graph: {_first_line(error)}") from error
    assert exported is not None
    return exported.model


def _translations() -> dict[Callable, Callable]:
    """The operators of torch that have a translation of ours."""
    from modelwright.export import products

    aten = torch.ops.aten
    return {
        aten.linear.default: products.linear,
        aten.addmm.default: products.addmm,
        aten.amax.default: products.largest,
        aten.sort.stable: products.stable_sort,
        torch.ops.modelwright.grouped_linear.default: products.grouped_product,
    }


def _select_kept(program: Any) -> None:
    """The tokens with logits by one ``Gather``, where the exporter would write transpositions around a ``GatherND``.

    In float16 onnxruntime (1.24 to 1.31) fuses a transposition, a cast and the head's product into a node on which a
    later step of its own crashes (its issue 28392).
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.index.Tensor and len(node.args[1]) == 2 and node.args[1][0] is None:
            node.target, node.args = torch.ops.aten.index_select.default, (node.args[0], 1, node.args[1][1])


def _dims(axes: Axes, lengths: dict[str, Any]) -> dict[int, Any]:
    """torch's dynamic dimensions; a sum of others is left to be found out."""
    for name in axes.values():
        lengths.setdefault(name, Dim.DYNAMIC if "+" in name else Dim(name, min=0 if name == PAST else 1))
    return {axis: lengths[name] for axis, name in axes.items()}


def _name_axes(model: Any, graph: Graph) -> None:
    """Inputs and outputs with the names of their axes instead of the exporter's symbols."""
    for values, named in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value in values:
            for axis, name in named[value.name].items():
                value.shape[axis] = name


def _choose_logits(model: Any) -> None:
    """The input ``logits_to_keep`` in place of the indices of the kept tokens, which follow from it.

    It has no default: that would be an initializer among the inputs, of which onnxruntime warns.
    """
    from onnxscript import ir

    [indices] = [value for value in model.graph.inputs if value.name == KEPT]
    content = model.graph.inputs[0]  # [batch, sequence, ...]
    keep = ir.Value(name=LOGITS_TO_KEEP, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    zero, one, none, end = (
        _initializer(model, f"kept.{name}", number)
        for name, number in (("zero", 0), ("one", 1), ("first", [0]), ("end", [_END]))
    )
    length = ir.node("Shape", [content], {"start": 1, "end": 2}, name="kept.length")
    scalar = ir.node("Squeeze", length.outputs, name="kept.scalar")
    every = ir.node("Range", [zero, scalar.outputs[0], one], name="kept.every")
    start = ir.node("Neg", [keep], name="kept.start")
    last = ir.node("Slice", [every.outputs[0], start.outputs[0], end, none], name="kept.last")
    nodes = [length, scalar, every, start, last]
    for node in nodes:
        node.outputs[0].name = f"{node.name}.value"
    model.graph.insert_before(model.graph[0], nodes)
    indices.replace_all_uses_with(last.outputs[0])
    model.graph.inputs.remove(indices)
    model.graph.inputs.append(keep)


def _initializer(model: Any, name: str, numbers: int | list[int]) -> Any:
    from onnxscript import ir

    tensor: Any = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _tidy(model: Any) -> None:
    """Leave out notes that differ from run to run, and shapes of inner values, which onnxruntime finds out itself."""
    from onnxscript import ir

    bodies = [model.graph, *model.functions.values()]
    for part in (model, *bodies):
        part.metadata_props.clear()
        part.doc_string = None
    for body in bodies:
        ends = set(body.outputs)
        for node in ir.traversal.RecursiveGraphIterator(body):
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                if value not in ends:
                    value.shape = value.type = None
        for value in (*body.inputs, *ends):
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.producer_name, model.producer_version = "modelwright", None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
