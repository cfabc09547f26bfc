"""Several linear layers that read the same input, computed in one call where nothing asks for each to be called."""

from torch import Tensor, nn

from modelwright.layers.bare import bare_layer
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.linear import linears


def joined(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of ``layers`` makes of ``x`` ``[..., in]``: its ``[..., out]``."""
    if only_numbers(x):
        bare = [own for layer in layers if (own := bare_layer(layer)) is not None]
        if len(bare) == len(layers):
            return linears(x, bare)
    return [layer(x) for layer in layers]
