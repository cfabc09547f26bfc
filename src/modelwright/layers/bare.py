"""Whether a module may be computed from its weights without being called, and whether a whole model is as it was built.

This is the one place that decides it. Whoever adds a hook, an adapter, a parametrization or a ``forward`` of their own
to a module, or puts another module in its place, wants it to be called: then it is.
"""

import sys
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
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
_KNOWN = frozenset({"modelwright", "torch", "transformers"})
"""Packages whose classes of modules do nothing but compute."""
_SHOWN = _KNOWN | {"peft"}
"""Packages whose modules keep all that they read in attributes and tensors."""
_CALLING = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
"""The methods of a module of torch's that a call runs."""


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
    return _consists_of(model, _KNOWN) and all(map(_has_bare_parameters, model.modules()))


def shows_its_state(model: nn.Module) -> bool:
    """Whether all that the Python of a pass reads stands in attributes and tensors of ``model``.

    An adapter of peft's does not hinder that. A hook, a replaced method or a module of somebody else's does: what it
    reads may be anywhere, and change without a trace.
    """
    return _consists_of(model, _SHOWN)


def _consists_of(model: nn.Module, packages: frozenset[str]) -> bool:
    """Whether calls of all modules run code of these packages alone."""
    if _has_any_global_hook():
        return False
    modules = list(model.modules())
    callables: dict[type, set[str]] = {}
    for kind in {type(module) for module in modules}:
        if not _comes_from(kind, packages) or any(_foreign(method, packages) for method in _methods(kind)):
            return False
        callables[kind] = {name for name in dir(kind) if callable(getattr(kind, name, None))}
    return all(
        callables[type(module)].isdisjoint(module.__dict__)  # no method is replaced
        and _runs_its_forward(module)
        and not any(callable(value) and _foreign(value, packages) for value in module.__dict__.values())
        for module in modules
    )


def _has_bare_parameters(module: nn.Module) -> bool:
    bare = all(type(each) is nn.Parameter for each in module._parameters.values() if each is not None)
    return bare and not hasattr(module, "parametrizations")


def _methods(kind: type) -> Iterator[Any]:
    """The methods of a class: of ours all, and of torch's those that a call runs."""
    for base in kind.__mro__:
        if _comes_from(base, frozenset({"modelwright"})):
            yield from vars(base).values()
        elif _comes_from(base, frozenset({"torch"})):
            yield from (vars(base)[name] for name in _CALLING if name in vars(base))


def _foreign(value: Any, packages: frozenset[str]) -> bool:
    """Whether calling a value would run code that is of none of these packages, nor of Python's own."""
    if isinstance(value, staticmethod | classmethod | MethodType):
        return _foreign(value.__func__, packages)
    if isinstance(value, property):
        return _foreign(value.fget, packages)
    if isinstance(value, partial):
        return _foreign(value.func, packages)
    if isinstance(value, FunctionType):
        return _root(value.__globals__.get("__name__")) not in packages | sys.stdlib_module_names
    if isinstance(value, type | nn.Module) or not callable(value):
        return False
    return not _comes_from(type(value), packages | sys.stdlib_module_names)


def _comes_from(kind: type, packages: frozenset[str]) -> bool:
    return _root(kind.__module__) in packages


def _root(name: Any) -> str:
    return str(name).partition(".")[0]


def _runs_its_forward(module: Any) -> bool:
    """Whether calling ``module`` runs the ``forward`` of its class and nothing else, as ``nn.Module.__call__`` asks."""
    own = module.__dict__
    if "forward" in own or own.get("_compiled_call_impl") is not None or _has_any_global_hook():
        return False
    hooked = own["_forward_hooks"] or own["_forward_pre_hooks"]
    return not (hooked or own["_backward_hooks"] or own["_backward_pre_hooks"])
