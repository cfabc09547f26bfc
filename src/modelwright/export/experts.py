"""Experts in a graph: which of them run is decided by the routing at run time, never by the traced one.

Everything about an expert layer but its two grouped products is traced as it is: the routing, the sort by expert, the
activation and the weighted sum. A grouped product is one operator to the tracer, and ``products.py`` makes of it one
product for each expert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
