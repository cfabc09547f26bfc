"""The activation functions that a config may name, as modules."""

from torch import nn
from transformers.activations import ACT2FN

from modelwright.layers import QuickGELU

_SILU = frozenset(type(ACT2FN[name]) for name in ("silu", "swish"))


def activation(name: str) -> nn.Module:
    """A new module of the function that transformers calls ``name``.

    Where there is a kernel for it, the module is one that the kernels know: each SiLU torch's own, and our `QuickGELU`.

    Raises:
        KeyError: there is none of that name.
    """
    if name == "quick_gelu":
        return QuickGELU()
    made = ACT2FN[name]
    return nn.SiLU() if type(made) in _SILU else made
