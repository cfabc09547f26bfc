"""Whether an operation is asked for numbers alone, which is when a compiled kernel may compute it instead of torch.

Every operation of this room asks :func:`only_numbers`, whether a kernel of ``backends`` serves the tensors, and whether
it is the faster one for their sizes. Whatever else is wanted of an operation is torch's business: gradients, autocast,
a graph that is exported, compiled or traced, a transformation of ``torch.func``, tensors that compute in their own way,
and modes that watch torch's operations.
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

_PLAIN = frozenset({Tensor, nn.Parameter, type(None)})
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_KEEPS = "torch.utils.checkpoint"
_WITHOUT_NUMBERS = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


class KernelAwareMode(TorchDispatchMode):
    """A mode that watches torch's operations and does not mind that compiled kernels pass it by.

    Under any other mode, such as one that counts floating-point operations, everything is computed by torch.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under such a mode, and torch need not import its compiler to keep it out."""
        return False


def only_numbers(x: Tensor, *others: Tensor | None) -> bool:
    """Whether nothing but the numbers of a result is asked for, from tensors that are nothing but numbers."""
    if torch.is_grad_enabled() or _is_compiling() or _transforms_active() or _tracing_state() is not None:
        return False
    if not _PLAIN.issuperset(map(type, (x, *others))):
        return False
    if torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type):
        return False
    return not _modes() or all(isinstance(mode, KernelAwareMode) for mode in _get_current_dispatch_mode_stack())


def transforms_active() -> bool:
    """Whether a transformation of ``torch.func`` is going on."""
    return _transforms_active()


def only_known_modes() -> bool:
    """Whether no mode watches torch's operations but ours, and those that keep some of a layer's for its gradients."""
    return not _modes() or all(
        isinstance(mode, KernelAwareMode) or type(mode).__module__ == _KEEPS
        for mode in _get_current_dispatch_mode_stack()
    )


def graph_is_made(x: Tensor) -> bool:
    """Whether an operation on ``x`` is recorded for later, by a compiler, an export or a trace, and has no numbers."""
    if x.is_meta or _is_compiling() or _tracing_state() is not None:
        return True
    return any(torch._C._get_dispatch_mode(key) is not None for key in _WITHOUT_NUMBERS)


def numbers_are_known(x: Tensor) -> bool:
    """Whether Python may read the numbers of ``x`` and branch on them.

    It may not while a graph is made or captured, nor under a transformation of ``torch.func``: what is computed then
    must hold whatever they will be.
    """
    if graph_is_made(x) or _transforms_active():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())
