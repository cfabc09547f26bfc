"""The activation functions that a config may name, as modules."""

from torch import nn
from transformers.activations import ACT2FN

_SILU = frozenset(type(ACT2FN[name]) for name in ("silu", "swish"))


def activation(name: str) -> nn.Module:
    """A new module of the function that transformers calls ``name``; each SiLU of it is torch's own, as layers know it.

    Raises:
        KeyError: there is none of that name.
    """
    made = ACT2FN[name]
    return nn.SiLU() if type(made) in _SILU else made
