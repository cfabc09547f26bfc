"""A computation recorded as the calls it makes, to be repeated on the same memory without the Python around them.

What CUDA graphs are for a GPU: kernels' pointers stay, what is computed into new tensors goes to memory of the tape,
and views, shapes and decisions are made once. Leaves out what the calls compute, and when their inputs are filled.
"""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from modelwright.ops.backends.cpu.build import Kernel
from modelwright.ops.dispatch import KernelAwareMode

Call = Callable[[], object]

_NEW = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations whose result is memory alone."""
_WAITS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__}
"""What asks a tensor for its numbers, which will be others each time."""
_LEAST = 6
"""The smallest piece has two to the power of so many bytes; each other is twice as large as one below."""
_DEPENDS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NotRecordable(RuntimeError):
    """A computation asks for numbers, or for shapes that depend on them."""


class Memory:
    """Room for what tapes compute, of which they use the same: one of them runs at a time.

    A piece is taken by a tensor until nothing refers to that any more, so that a recorded computation needs as much
    room as one that runs.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}
        self._pieces: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes in all pieces."""
        return sum(piece.nbytes for piece in self._pieces.values())

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of that type, shape and strides, whose values are whatever was there."""
        size = 1 << max(_LEAST, (tensor.untyped_storage().nbytes() - 1).bit_length())
        free = self._free.setdefault(size, [])
        piece = free.pop() if free else torch.empty(size, dtype=torch.uint8)
        self._pieces[piece.data_ptr()] = piece
        held = (ctypes.c_uint8 * size).from_address(piece.data_ptr())  # the new storage has it, and nobody else
        weakref.finalize(held, free.append, piece).atexit = False
        return _laid_out(torch.frombuffer(held, dtype=tensor.dtype), tensor)

    def kept(self, tensor: Tensor) -> Tensor:
        """The same numbers without a claim to the piece that they lie in; any other tensor as it is."""
        piece = self._pieces.get(tensor.untyped_storage().data_ptr())
        return tensor if piece is None else _laid_out(piece.view(tensor.dtype), tensor)


def record(computation: Callable[[], Tensor], memory: Memory) -> Callable[[], Tensor]:
    """Run ``computation`` once; what is returned repeats its calls, on what its inputs then hold.

    The result is the same tensor each time, valid until any tape of that memory runs. Inputs must stay where they are.
    To be called without autograd.

    Raises:
        NotRecordable: the computation asks for numbers.
    """
    calls: list[Call] = []
    with _FunctionRecorder(calls), _Recorder(calls, memory) as recorder:
        result = memory.kept(computation())
    return _Tape(calls, result, (memory, recorder.kept))


@dataclass(frozen=True)
class _Tape:
    """The calls, their result, and what holds the memory that their pointers lead to."""

    calls: list[Call]
    result: Tensor
    held: tuple[Memory, list[Tensor]]

    def __call__(self) -> Tensor:
        for call in self.calls:
            call()
        return self.result


class _FunctionRecorder(TorchFunctionMode):
    """Appends calls of compiled kernels, and raises where Python asks for numbers: torch's dispatch sees neither."""

    def __init__(self, calls: list[Call]):
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITS:
            raise NotRecordable(f"{func.__name__} asks for numbers")
        if isinstance(func, Kernel):
            self._calls.append(partial(func.run, *args))
        return func(*args, **(kwargs or {}))


class _Recorder(KernelAwareMode):
    """Lets torch's operations write into the tape's memory, and appends them to the calls."""

    def __init__(self, calls: list[Call], memory: Memory):
        super().__init__()
        self._calls, self._memory = calls, memory
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _DEPENDS & set(func.tags):
            raise NotRecordable(f"{func} asks for numbers")
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        new = [tensor for tensor in _tensors(result) if tensor.untyped_storage().data_ptr() not in given]
        if name == "lift_fresh":
            self.kept += _tensors(result)
        elif not new:
            if func._schema.is_mutable:
                self._calls.append(self._call(func, args, kwargs))
        elif name in _NEW:
            return self._memory.like(result)
        else:
            return self._into_memory(func, args, kwargs, result)
        return result

    def _into_memory(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """``result`` in the tape's memory, and the call that computes it there anew."""
        mine = tree_map_only(Tensor, self._memory.like, result)
        for target, computed in zip(_tensors(mine), _tensors(result), strict=True):
            target.copy_(computed)
        targets = [self._memory.kept(tensor) for tensor in _tensors(mine)]
        into = _into(func, len(targets))
        if into is not None:
            overload, names = into
            self._calls.append(self._call(overload, args, kwargs | dict(zip(names, targets, strict=True))))
            return mine
        compute = self._call(func, args, kwargs)

        def compute_and_copy() -> None:
            for target, computed in zip(targets, _tensors(compute()), strict=True):
                target.copy_(computed)

        self._calls.append(compute_and_copy)
        return mine

    def _call(self, func: Any, args: Any, kwargs: Any) -> Call:
        args, kwargs = tree_map_only(Tensor, self._memory.kept, (args, kwargs))
        return lambda: func(*args, **kwargs)


def _into(func: Any, results: int) -> tuple[Any, list[str]] | None:
    """The same operation with tensors to write to, and what those are called; None if there is none."""
    packet = func.overloadpacket
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        given = overload._schema.arguments
        names = [argument.name for argument in given if argument.is_out]
        own = [(argument.name, str(argument.type)) for argument in given if not argument.is_out]
        if len(names) == results and own == wanted:
            return overload, names
    return None


def _laid_out(flat: Tensor, tensor: Tensor) -> Tensor:
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
