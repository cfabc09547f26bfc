"""Whether a module may be computed from its weights without being called, and whether a whole model is as it was built.

This is the one place that decides it. Whoever adds a hook, an adapter, a parametrization or a ``forward`` of their own
to a module, or puts another module in its place, wants it to be called: then it is.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

from modelwright.layers.linear import Linear
from modelwright.ops.gated import Activation
from modelwright.ops.linear import Layer

_LINEAR = (Linear, nn.Linear)
_BARE = (nn.Parameter, FakeTensor)  # the latter stands for the former while a graph is exported
_KNOWN = ("modelwright", "torch", "transformers")
"""Packages whose classes of modules do nothing but compute."""


def bare_layer(module: nn.Module) -> Layer | None:
    """The weight and bias that say all that a linear layer does; None where it is to be called.

    They do where its class is ``Linear`` itself, ours or torch's, its tensors are parameters and nothing more, and a
    call of it would run the ``forward`` of that class alone.
    """
    if type(module) not in _LINEAR or not _runs_its_forward(module):
        return None
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or type(weight) not in _BARE or not (bias is None or type(bias) in _BARE):
        return None
    return weight, bias


def bare_weight(module: nn.Module) -> Tensor | None:
    """The weight of a linear layer without a bias, where that says all that the layer does; see :func:`bare_layer`."""
    weight, bias = bare_layer(module) or (None, None)
    return weight if bias is None else None


def bare_activation(act: Activation) -> Activation:
    """``F.silu``, which kernels know, where a module is that and nothing more; otherwise ``act`` itself."""
    return F.silu if type(act) is nn.SiLU and _runs_its_forward(act) else act


def is_as_built(model: nn.Module) -> bool:
    """Whether all modules of ``model`` are of known classes, with bare parameters, and nothing was added to any.

    Only then may the calls of a pass be recorded and repeated without calling the modules again.
    """
    return not _has_any_global_hook() and all(map(_is_as_built, model.modules()))


def _is_as_built(module: nn.Module) -> bool:
    kind = type(module)
    known = kind.__module__.partition(".")[0] in _KNOWN and not hasattr(module, "parametrizations")
    bare = all(type(each) is nn.Parameter for each in module._parameters.values() if each is not None)
    replaced = any(callable(getattr(kind, name, None)) for name in module.__dict__)
    return known and bare and not replaced and _runs_its_forward(module)


def _runs_its_forward(module: Any) -> bool:
    """Whether calling ``module`` runs the ``forward`` of its class and nothing else, as ``nn.Module.__call__`` asks."""
    own = module.__dict__
    if "forward" in own or own.get("_compiled_call_impl") is not None or _has_any_global_hook():
        return False
    hooked = own["_forward_hooks"] or own["_forward_pre_hooks"]
    return not (hooked or own["_backward_hooks"] or own["_backward_pre_hooks"])
