"""Experts in a graph: which of them run is decided by the routing at run time, never by the traced one.

Everything about an expert layer but its two grouped products is traced as it is: the routing, the sort by expert, the
activation and the weighted sum. A grouped product is one operator to the tracer and a loop over the experts that were
chosen to ONNX.

An iteration gathers one expert's matrix, which copies it, and multiplies the rows that chose it: a pass reads the
chosen experts' weights and no others, and computes no more rows than were routed. A decode step of one row thus costs
``top_k`` copies and products, a prefill at most one copy per expert, whatever the number of tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modelwright.layers import Experts, MoE, Routing
from modelwright.ops.experts import opaque_grouped_linear


class GraphDispatcher:
    """All experts are here, and their products are opaque to the tracer."""

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        """See :class:`Dispatcher`."""
        return experts(x, routing.weights, routing.chosen, opaque_grouped_linear)


@contextmanager
def traceable_experts(model: nn.Module) -> Iterator[None]:
    """Every expert layer of ``model`` with a :class:`GraphDispatcher`, its own dispatcher back at the end."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    before = [layer.dispatch for layer in layers]
    for layer in layers:
        layer.dispatch = GraphDispatcher()
    try:
        yield
    finally:
        for layer, dispatch in zip(layers, before, strict=True):
            layer.dispatch = dispatch


def expert_translations(module: nn.Module) -> dict[Callable, Callable]:
    """What the graph of ``module`` needs as :attr:`Graph.translations`: nothing where it has no experts."""
    if not any(isinstance(part, MoE) for part in module.modules()):
        return {}
    from modelwright.export.grouped_product import grouped_product, stable_sort

    operators = torch.ops
    return {operators.modelwright.grouped_linear.default: grouped_product, operators.aten.sort.stable: stable_sort}
